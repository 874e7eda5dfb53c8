"""Chat format as token ids: what is put before, between and after the parts that the policy writes.

An episode in the `trajectory` layout is one growing list of ids, never re-encoded:

    first(message)  action ids (sampled)  between+next message+after  action ids  ...

The glue is read off the tokenizer's own chat template by rendering marked messages, so any model with a chat
template works. Text pieces are encoded one by one, and so every prompt is an exact prefix of the next.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from paw_fast.rollout import prompts
from paw_fast.types import Observation, UserError

MAX_KEPT_TEXTS, MAX_KEPT_CHARS = 4096, 600  # some 25 MB of ids when all are there
_CLOSING_TAG = re.compile(r"</\w+>\s*\Z")
_ACTION, _MESSAGE = "\u2402paw-action\u2403", "\u2402paw-message\u2403"


class ChatFormat:
    """Token ids around the policy's actions, for one tokenizer.

    >>> chat = ChatFormat(tokenizer)                       # doctest: +SKIP
    >>> chat.first("Your task is to: ...")                 # doctest: +SKIP
    [1, 220, 17, 3]
    """

    def __init__(self, tokenizer: Any):
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: "
                "take an instruct model, or set `chat_template` in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self._ids = lru_cache(MAX_KEPT_TEXTS)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        turns = [
            {"role": "user", "content": "start"},
            {"role": "assistant", "content": _ACTION},
            {"role": "user", "content": _MESSAGE},
        ]
        text = self._render(turns)
        if text.count(_ACTION) != 1 or text.count(_MESSAGE) != 1:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} changes messages: cannot build prompts on it"
            )
        between, after = text.split(_ACTION)[1].split(_MESSAGE)
        self.between = self.encode(between)
        self.after = self.encode(after)
        stops = {
            tokenizer.eos_token_id,
            *(self.between[:1] if self.between and self._is_special(self.between[0]) else []),
        }
        self.stop_ids = frozenset(i for i in stops if i is not None)
        if not self.stop_ids:
            raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no end token: set `eos_token`")
        self._may_complete: dict[tuple[int, tuple[str, ...]], bool] = {}

    def _render(self, turns: list[dict[str, str]]) -> str:
        """The conversation as text. Raises `UserError` for whatever the template's code raises."""
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            text = str(error).strip().splitlines()
            name = self.tokenizer.name_or_path or "this model"
            raise UserError(
                f"the chat template of {name} fails on a conversation of {', '.join(t['role'] for t in turns)}: "
                f"{type(error).__name__}{': ' + text[0] if text else ''}; set another `chat_template` in its "
                "tokenizer_config.json"
            ) from error

    def _is_special(self, token: int) -> bool:
        return token in set(self.tokenizer.all_special_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without the tokenizer's own start or end tokens.

        Those of short texts are kept: episodes of a group and games alike say the same again and again.
        """
        if len(text) > MAX_KEPT_CHARS:
            return self.tokenizer.encode(text, add_special_tokens=False)
        return list(self._ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without end tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def fit(self, text: str, max_tokens: int) -> str:
        """The text, or as much of its start as `max_tokens` tokens hold; a closing tag at its end is kept.

        >>> chat.fit("<information>a very long passage</information>", 12)      # doctest: +SKIP
        '<information>a very</information>'
        """
        ids = self.encode(text)
        if len(ids) <= max_tokens:
            return text
        tag = _CLOSING_TAG.search(text)
        end = tag.group() if tag else ""
        room = max_tokens - len(self.encode(end))
        while room > 0:
            # A cut inside a character's bytes leaves a replacement sign; cut text may need more tokens than it had.
            short = self.tokenizer.decode(ids[:room]).rstrip("\ufffd")[: len(text) - len(end)] + end
            if len(self.encode(short)) <= max_tokens:
                return short
            room -= 1
        return end

    def shown(self, observation: Observation, max_chars: int = 0, max_tokens: int = 0) -> tuple[Observation, bool]:
        """The observation as the policy reads it, within its budgets (0: none), and whether it was cut."""
        observation, cut = prompts.shown(observation, max_chars)
        if max_tokens and (text := self.fit(observation.text, max_tokens)) != observation.text:
            return Observation(text, observation.admissible, observation.info), True
        return observation, cut

    def locate(self, text: str, places: Sequence[tuple[int, int, str]]) -> tuple[tuple[int, int, str], ...]:
        """Stretches of a text, (first character, end, name), as stretches of its tokens. What lies past the text's end
        is left out, and all of it where the tokenizer cannot tell (it is none of the fast ones)."""
        if not places or not getattr(self.tokenizer, "is_fast", False):
            return ()
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        starts = [start for start, _ in offsets]
        found = ((bisect_left(starts, start), bisect_left(starts, end), name) for start, end, name in places)
        return tuple((start, end, name) for start, end, name in found if start < end)

    def ended(self, ids: Sequence[int], stop: tuple[str, ...] = ()) -> bool:
        """Whether the last of the sampled ids ends the action: an end token, or the completion of a text in `stop`."""
        if ids[-1] in self.stop_ids:
            return True
        if not stop:
            return False
        key = (ids[-1], stop)
        if key not in self._may_complete:
            # Most tokens hold no stop text's last character: they need no look at the text before them.
            text = self.decode(ids[-1:])
            ends = {s[-1] for s in stop}
            self._may_complete[key] = any(c in text or not c.isascii() for c in ends)
        if not self._may_complete[key]:
            return False
        tail = self.decode(ids[-(2 + 2 * max(map(len, stop))) :])
        return any(s in tail for s in stop)

    def first(self, message: str) -> list[int]:
        """Ids of a conversation of one user message, up to where the policy writes."""
        turns = [{"role": "user", "content": message}]
        return self.encode(self._render(turns))

    def follow(self, action_ids: Sequence[int], before: str, text: str, after: str) -> tuple[list[int], list[bool]]:
        """Ids that come after an action: glue, then the next user message `before + text + after`.

        Returns the ids and a mask that is True on `text`'s own tokens. An end token that the policy sampled is
        not repeated. The ids end where the policy writes its next action.
        """
        glue = self.between
        if action_ids and action_ids[-1] in self.stop_ids and glue and glue[0] in self.stop_ids:
            glue = glue[1:]
        head = list(glue) + (self.encode(before) if before else [])
        body = self.encode(text)
        tail = (self.encode(after) if after else []) + list(self.after)
        return head + body + tail, [False] * len(head) + [True] * len(body) + [False] * len(tail)
