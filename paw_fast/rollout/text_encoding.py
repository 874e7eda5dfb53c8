"""Encodes text so that only text comes out of it: what an environment shows cannot forge the chat's control tokens.

A control token is one that the tokenizer marks as special, or that was added to it in the form of markup (`<think>`,
`[INST]`). Added tokens that are ordinary words are no control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

from paw_fast.errors import UserError

_MARKUP = re.compile(r"\s*(<\S.*>|\[\S.*\]|◁.+▷|｜.+｜)\s*", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what characters outside the vocabulary are written with
_BREAK = "\ufdd0"  # a noncharacter, of which no tokenizer's control token is made


class TemplateText(str):
    """Text that a prompt template wrote, in which what came from outside has gone through `TextEncoder.guard`.

    The template's own tags may become control tokens. Produced by a guarded `PromptTemplate`, consumed by `ChatFormat`;
    any other `str` is text throughout.
    """


class TextEncoder:
    """Encodes with a Hugging Face tokenizer, without its own start or end tokens.

    `control` holds the ids of its control tokens with their texts.

    >>> encoder = TextEncoder(tokenizer)                                       # doctest: +SKIP
    >>> tokenizer.convert_ids_to_tokens(encoder.text("<|end|>"))               # doctest: +SKIP
    ['<', '|', 'e', 'n', 'd', '|', '>']
    >>> tokenizer.convert_ids_to_tokens(encoder.mixed("<|end|>"))              # doctest: +SKIP
    ['<|end|>']
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = {i: (token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        added |= {i: (tokenizer.convert_ids_to_tokens(i), True) for i in tokenizer.all_special_ids if i not in added}
        self.control = {
            i: text
            for i, (text, special) in added.items()
            if (special or _MARKUP.fullmatch(text)) and not _BYTE.fullmatch(text)
        }
        self._forbidden = self.control.keys() - {tokenizer.unk_token_id}
        longest_first = sorted((text for text in self.control.values() if text), key=len, reverse=True)
        self._markers = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._id_of = {text: i for i, text in self.control.items()}

    def text(self, text: str) -> list[int]:
        """Ids of a text, whatever it holds; no control token is among them. Raises `UserError` where that cannot be."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids if self.control.keys().isdisjoint(ids) else self._plain(text)

    def mixed(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant, apart from those in stretches that were guarded."""
        if _BREAK not in text:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            meant = [self._id_of[marker] for marker in self._markers.findall(text)]
            if [i for i in ids if i in self._forbidden] == [i for i in meant if i in self._forbidden]:
                return ids
        ids = []
        for piece in text.split(_BREAK):
            end = 0
            for marker in self._markers.finditer(piece):
                ids += [*self.text(piece[end : marker.start()]), self._id_of[marker.group()]]
                end = marker.end()
            ids += self.text(piece[end:])
        return ids

    def guard(self, text: str) -> str:
        """The text with a mark inside of what reads as a control token, for `mixed`. Other texts stay as they are."""
        text = text.replace(_BREAK, "\ufffd")
        return self._markers.sub(lambda found: found.group()[0] + _BREAK + found.group()[1:], text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(first character, end) of each of the ids that `text` gives; [] where the tokenizer cannot tell."""
        if not getattr(self.tokenizer, "is_fast", False):
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if self.control.keys().isdisjoint(found["input_ids"]):
            return found["offset_mapping"]
        apart = self._splitting.encode(text, add_special_tokens=False)
        return apart.offsets if apart.ids == self.text(text) else []

    @cached_property
    def _splitting(self) -> tokenizers.Tokenizer:
        """The same tokenizer, which takes control tokens in a text for ordinary characters."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["id"] in self.control
        made = tokenizers.Tokenizer.from_str(json.dumps(state))
        made.encode_special_tokens = True
        made.no_truncation()
        made.no_padding()
        return made

    def _plain(self, text: str) -> list[int]:
        if getattr(self.tokenizer, "is_fast", False):
            ids = self._splitting.encode(text, add_special_tokens=False).ids
            if self._forbidden.isdisjoint(ids):
                return ids
        # Control tokens that the model of the tokenizer has as words of its own: no piece holds one whole.
        pieces = self.guard(text).split(_BREAK)
        ids = [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False)]
        if not self._forbidden.isdisjoint(ids):
            found = next(self.control[i] for i in ids if i in self._forbidden)
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'this model'} cannot write {found!r} as text: an "
                "observation that holds it would forge a control token; take another model"
            )
        return ids

    def without_end(self, ids: Sequence[int], ends: frozenset[int]) -> list[int]:
        """The ids without the tokens of `ends`, and the padding and start tokens, that stand at their end."""
        extra = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id}
        kept = list(ids)
        while kept and (kept[-1] in ends or kept[-1] in extra):
            kept.pop()
        return kept
