"""Encodes text from outside so that it cannot produce control tokens of the chat format.

Control tokens are those that the tokenizer marks as special, and added tokens in the form of markup (`<think>`,
`[INST]`). Added tokens that are ordinary words are not control tokens.
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
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # byte tokens, for characters outside the vocabulary
_BREAK = "\ufdd0"  # a noncharacter, which occurs in no control token


class TemplateText(str):
    """Text rendered by a prompt template, in which all text from outside is escaped by `TextEncoder.escape`.

    Markup written by the template itself is encoded as control tokens. Any other `str` is encoded as plain text.
    Produced by `PromptTemplate.with_escape`, consumed by `ChatFormat`.
    """


class TextEncoder:
    """Encodes text with a Hugging Face tokenizer, without start and end tokens.

    `control` maps the ids of the control tokens to their texts.

    >>> encoder = TextEncoder(tokenizer)                                       # doctest: +SKIP
    >>> tokenizer.convert_ids_to_tokens(encoder.encode_text("<|end|>"))        # doctest: +SKIP
    ['<', '|', 'e', 'n', 'd', '|', '>']
    >>> tokenizer.convert_ids_to_tokens(encoder.encode_template("<|end|>"))    # doctest: +SKIP
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

    def encode_text(self, text: str) -> list[int]:
        """Encodes plain text, without control tokens in the result. Raises `UserError` if that is impossible."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids if self.control.keys().isdisjoint(ids) else self._plain(text)

    def encode_template(self, text: str) -> list[int]:
        """Encodes text with control tokens, except in the parts that were escaped by `escape`."""
        if _BREAK not in text:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            expected = [self._id_of[marker] for marker in self._markers.findall(text)]
            if [i for i in ids if i in self._forbidden] == [i for i in expected if i in self._forbidden]:
                return ids
        ids = []
        for piece in text.split(_BREAK):
            end = 0
            for marker in self._markers.finditer(piece):
                ids += [*self.encode_text(piece[end : marker.start()]), self._id_of[marker.group()]]
                end = marker.end()
            ids += self.encode_text(piece[end:])
        return ids

    def escape(self, text: str) -> str:
        """Marks everything in the text that reads as a control token, for `encode_template`."""
        text = text.replace(_BREAK, "\ufffd")
        return self._markers.sub(lambda found: found.group()[0] + _BREAK + found.group()[1:], text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Returns (start, end) in characters for each id of `encode_text`, or [] if the tokenizer gives no offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if self.control.keys().isdisjoint(found["input_ids"]):
            return found["offset_mapping"]
        plain = self._plain_tokenizer.encode(text, add_special_tokens=False)
        return plain.offsets if plain.ids == self.encode_text(text) else []

    @cached_property
    def _plain_tokenizer(self) -> tokenizers.Tokenizer:
        """A copy of the tokenizer that treats control tokens in a text as ordinary characters."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["id"] in self.control
        plain = tokenizers.Tokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain

    def _plain(self, text: str) -> list[int]:
        if getattr(self.tokenizer, "is_fast", False):
            ids = self._plain_tokenizer.encode(text, add_special_tokens=False).ids
            if self._forbidden.isdisjoint(ids):
                return ids
        # Control tokens can also be words of the tokenizer's model: encode pieces, none of which contains a whole one.
        pieces = self.escape(text).split(_BREAK)
        ids = [i for piece in pieces for i in self.tokenizer.encode(piece, add_special_tokens=False)]
        if not self._forbidden.isdisjoint(ids):
            found = next(self.control[i] for i in ids if i in self._forbidden)
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'this model'} cannot encode {found!r} as text: "
                "observations could contain this control token; use another model"
            )
        return ids

    def strip_end(self, ids: Sequence[int], ends: frozenset[int]) -> list[int]:
        """Removes the tokens in `ends` and padding and start tokens from the end of the ids."""
        extra = {self.tokenizer.pad_token_id, self.tokenizer.bos_token_id}
        kept = list(ids)
        while kept and (kept[-1] in ends or kept[-1] in extra):
            kept.pop()
        return kept
