"""Builds prompts as token ids in the chat format of a tokenizer.

In the `trajectory` layout an episode is one growing list of ids, which is never re-encoded:

    first(message)  action ids (sampled)  between + next message + after  action ids  ...

The ids between the messages are derived from the chat template of the tokenizer by rendering marked messages, so any
model with a chat template is supported. Pieces of text are encoded separately, so each prompt is an exact prefix of the
next one.

Control tokens come only from the chat template and from the text of prompt templates (some tokenizers have `<think>`
as a token). Observations, tasks, commands and earlier turns are encoded as plain text (see `text_encoding`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date as Date
from functools import lru_cache
from typing import Any

from paw_fast.errors import UserError
from paw_fast.rollout import prompts
from paw_fast.rollout.text_encoding import TemplateText, TextEncoder
from paw_fast.types import Observation

MAX_CACHED_TEXTS, MAX_CACHED_CHARS = 4096, 600  # about 25 MB of ids when the cache is full
_CLOSING_TAG = re.compile(r"</\w+>\s*\Z")
_ACTION, _MESSAGE = "\u2402paw-action\u2403", "\u2402paw-message\u2403"


class ChatFormat:
    """Encodes and decodes the messages of an episode for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop_ids: end tokens that the model declares in addition to the tokenizer's (see `declared_stop_ids`).
        date: the date (YYYY-MM-DD) for chat templates that contain today's date; "" is the current date.

    The attribute `thought_opened` is True if the chat template opens `<think>` before the policy's answer. Raises
    `UserError` if the tokenizer has no chat template or end token, or the chat template cannot be used.

    >>> chat = ChatFormat(tokenizer)                       # doctest: +SKIP
    >>> chat.first("Your task is to: ...")                 # doctest: +SKIP
    [1, 220, 17, 3]
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int] = (), date: str = ""):
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: "
                "use an instruct model, or set `chat_template` in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.date = date or Date.today().isoformat()
        self._encoder = TextEncoder(tokenizer)
        self._text_ids = lru_cache(MAX_CACHED_TEXTS)(lambda text: tuple(self._encoder.encode_text(text)))
        self._template_ids = lru_cache(MAX_CACHED_TEXTS)(lambda text: tuple(self._encoder.encode_template(text)))
        self._template = tokenizer.get_chat_template()
        if "strftime_now" in self._template:
            self._template = with_date(self._template, Date.fromisoformat(self.date))
        turns = [
            {"role": "user", "content": "start"},
            {"role": "assistant", "content": _ACTION},
            {"role": "user", "content": _MESSAGE},
        ]
        text = self._render(turns)
        if text.count(_ACTION) != 1 or text.count(_MESSAGE) != 1:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} alters messages: cannot build prompts with it"
            )
        between, after = text.split(_ACTION)[1].split(_MESSAGE)
        self.thought_opened = after.rfind("<think>") > after.rfind("</think>")
        self.between = self._encoder.encode_template(between)
        self.after = self._encoder.encode_template(after)
        self._end_at = self._first_control(self.between)
        closing = self._closing(turns[:2])
        closing_at = None if closing is None else self._first_control(closing)
        ends = {tokenizer.eos_token_id, *stop_ids}
        ends |= {self.between[self._end_at]} if self._end_at is not None else set()
        ends |= {closing[closing_at]} if closing is not None and closing_at is not None else set()
        self.stop_ids = frozenset(ends - {None})
        # A template without an end token continues with the next header, which must also follow a sampled end token.
        self._ends_turns = closing is None or closing_at is not None
        if not self.stop_ids:
            raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no end token: set `eos_token`")
        self._may_complete: dict[tuple[int, tuple[str, ...]], bool] = {}

    def _render(self, turns: Sequence[dict[str, str]], generate: bool = True) -> str:
        """Renders the chat template for a conversation, with the generation prompt if `generate`.

        Raises `UserError` for any error in the template.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=generate, chat_template=self._template
            )  # fmt: skip
        except Exception as error:
            text = str(error).strip().splitlines()
            name = self.tokenizer.name_or_path or "this model"
            raise UserError(
                f"the chat template of {name} fails on a conversation of {', '.join(t['role'] for t in turns)}: "
                f"{type(error).__name__}{': ' + text[0] if text else ''}; set another `chat_template` in its "
                "tokenizer_config.json"
            ) from error

    def _closing(self, turns: Sequence[dict[str, str]]) -> list[int] | None:
        """Encodes what the chat template writes after a final assistant message. None if it does not allow one."""
        try:
            text = self._render(turns, generate=False)
        except UserError:
            return None
        return self._encoder.encode_template(text.rpartition(_ACTION)[2]) if _ACTION in text else None

    def _first_control(self, glue: Sequence[int]) -> int | None:
        """Returns the index of the first control token in `glue`, or None if other text than whitespace precedes it."""
        for at, token in enumerate(glue):
            if token in self._encoder.control:
                return at
            if self.tokenizer.decode([token]).strip():
                return None
        return None

    @property
    def turn_end(self) -> int:
        """The token that ends an action in a conversation: that of the chat template, or else of the tokenizer."""
        if self._ends_turns and self._end_at is not None:
            return self.between[self._end_at]
        eos = self.tokenizer.eos_token_id
        return min(self.stop_ids) if eos is None else eos

    def encode(self, text: str) -> list[int]:
        """Encodes a piece of text, without start and end tokens.

        The ids contain control tokens only if the text is a `TemplateText`. Short texts are cached, because episodes
        repeat them often.
        """
        is_template = isinstance(text, TemplateText)
        if len(text) > MAX_CACHED_CHARS:
            return self._encoder.encode_template(text) if is_template else self._encoder.encode_text(text)
        return list(self._template_ids(str(text)) if is_template else self._text_ids(text))

    def escape(self, text: str) -> str:
        """Escapes control tokens in text from outside that a prompt template includes (see `TemplateText`)."""
        return self._encoder.escape(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes sampled ids without trailing end tokens.

        Other control tokens are kept as text: tags such as `<action>` may be control tokens, and one inside a command
        must not disappear from it.
        """
        return self.tokenizer.decode(self._encoder.strip_end(ids, self.stop_ids), skip_special_tokens=False)

    def fit(self, text: str, max_tokens: int) -> str:
        """Truncates text to `max_tokens` tokens. A closing tag at its end is kept.

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
            # A cut within a multi-byte character leaves a replacement character; truncated text may need more tokens.
            short = self.tokenizer.decode(ids[:room]).rstrip("\ufffd")[: len(text) - len(end)] + end
            if len(self.encode(short)) <= max_tokens:
                return short
            room -= 1
        return end

    def policy_view(
        self, observation: Observation, max_chars: int = 0, max_tokens: int = 0
    ) -> tuple[Observation, bool]:
        """Returns the observation as the policy reads it, and whether it was truncated to the limits (0: no limit)."""
        observation, cut = prompts.policy_view(observation, max_chars)
        if max_tokens and (text := self.fit(observation.text, max_tokens)) != observation.text:
            return replace(observation, text=text), True
        return observation, cut

    def locate(self, text: str, places: Sequence[tuple[int, int, str]]) -> tuple[tuple[int, int, str], ...]:
        """Converts ranges of characters (start, end, name) of a text into ranges of its tokens.

        Ranges beyond the end of the text are dropped. Returns () if the tokenizer gives no offsets (slow tokenizers).
        """
        starts = [start for start, _ in self._encoder.offsets(text)] if places else []
        found = ((bisect_left(starts, start), bisect_left(starts, end), name) for start, end, name in places)
        return tuple((start, end, name) for start, end, name in found if start < end)

    def ends_action(self, ids: Sequence[int], stop: tuple[str, ...] = ()) -> bool:
        """Returns True if the last of the sampled ids is an end token or completes one of the texts in `stop`."""
        if ids[-1] in self.stop_ids:
            return True
        if not stop:
            return False
        key = (ids[-1], stop)
        if key not in self._may_complete:
            # Most tokens do not contain the last character of a stop text, so the preceding text need not be decoded.
            text = self.decode(ids[-1:])
            ends = {s[-1] for s in stop}
            self._may_complete[key] = any(c in text or not c.isascii() for c in ends)
        if not self._may_complete[key]:
            return False
        tail = self.decode(ids[-(2 + 2 * max(map(len, stop))) :])
        return any(s in tail for s in stop)

    def first(self, message: str) -> list[int]:
        """Encodes a conversation that consists of one user message, including the generation prompt."""
        content = message if isinstance(message, TemplateText) else self.escape(message)
        return self._encoder.encode_template(self._render([{"role": "user", "content": str(content)}]))

    def follow(self, action_ids: Sequence[int], before: str, text: str, after: str) -> tuple[list[int], list[bool]]:
        """Encodes what follows an action: the next user message `before + text + after` and the generation prompt.

        Returns the ids and a mask that is True on the tokens of `text`. If the action ends with any end token, that of
        the chat template is not added.
        """
        glue, at = self.between, self._end_at
        last = action_ids[-1] if action_ids else None
        if at is not None and last in self.stop_ids and (self._ends_turns or last == glue[at]):
            glue = glue[at + 1 :]
        head = list(glue) + (self.encode(before) if before else [])
        body = self.encode(text)
        tail = (self.encode(after) if after else []) + list(self.after)
        return head + body + tail, [False] * len(head) + [True] * len(body) + [False] * len(tail)


def with_date(template: str, date: Date) -> str:
    """Returns the chat template with `strftime_now`, which gives today's date, redefined to give `date`.

    `apply_chat_template` cannot pass functions to a template, so the function is a macro in front of the template.
    """
    parts = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBdDeFHIjmMpSTuUVwWxXyYcGh"]
    steps = "".join(f" | replace({part!r}, {date.strftime(part)!r})" for part in (*parts, "%%"))
    # Jinja strips whitespace before a block only at the start of a line, where the macro now is.
    rest = template.lstrip(" \t") if template.lstrip(" \t").startswith("{%") else template
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}{{{{ '' }}}}{rest}"


def declared_stop_ids(generation_config: Any) -> tuple[int, ...]:
    """Returns the end tokens that the generation config of a model declares (none, one or several).

    >>> from types import SimpleNamespace
    >>> declared_stop_ids(SimpleNamespace(eos_token_id=[1, 106]))
    (1, 106)
    """
    declared = getattr(generation_config, "eos_token_id", None)
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else tuple(int(i) for i in declared)
