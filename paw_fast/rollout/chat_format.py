"""Chat format as token ids: what is put before, between and after the parts that the policy writes.

An episode in the `trajectory` layout is one growing list of ids, never re-encoded:

    first(message)  action ids (sampled)  between+next message+after  action ids  ...

The glue is read off the tokenizer's own chat template by rendering marked messages, so any model with a chat
template works. Text pieces are encoded one by one, and so every prompt is an exact prefix of the next.

Control tokens come from the chat template and from the prompt template's own text (a tokenizer may have `<think>` as
a token); observations, tasks, commands and earlier turns are text, whatever they hold (`text_encoding`).
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

MAX_KEPT_TEXTS, MAX_KEPT_CHARS = 4096, 600  # some 25 MB of ids when all are there
_CLOSING_TAG = re.compile(r"</\w+>\s*\Z")
_ACTION, _MESSAGE = "\u2402paw-action\u2403", "\u2402paw-message\u2403"


class ChatFormat:
    """Token ids around the policy's actions, for one tokenizer.

    stop_ids: end tokens that the model declares beside the tokenizer's (`declared_stop_ids`). date: what a chat
    template that writes today's date is told (YYYY-MM-DD; "": the date on which this object is made).

    `thought_opened` says that the chat template itself opens `<think>` before the policy writes.

    >>> chat = ChatFormat(tokenizer)                       # doctest: +SKIP
    >>> chat.first("Your task is to: ...")                 # doctest: +SKIP
    [1, 220, 17, 3]
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int] = (), date: str = ""):
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: "
                "take an instruct model, or set `chat_template` in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.date = date or Date.today().isoformat()
        self._encoder = TextEncoder(tokenizer)
        self._text_ids = lru_cache(MAX_KEPT_TEXTS)(lambda text: tuple(self._encoder.text(text)))
        self._template_ids = lru_cache(MAX_KEPT_TEXTS)(lambda text: tuple(self._encoder.mixed(text)))
        own = tokenizer.get_chat_template()
        self._template = with_date(own, Date.fromisoformat(self.date)) if "strftime_now" in own else own
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
        self.thought_opened = after.rfind("<think>") > after.rfind("</think>")
        self.between = self._encoder.mixed(between)
        self.after = self._encoder.mixed(after)
        self._end_at = self._first_control(self.between)
        closing = self._closing(turns[:2])
        closing_at = None if closing is None else self._first_control(closing)
        ends = {tokenizer.eos_token_id, *stop_ids}
        ends |= {self.between[self._end_at]} if self._end_at is not None else set()
        ends |= {closing[closing_at]} if closing is not None and closing_at is not None else set()
        self.stop_ids = frozenset(ends - {None})
        # A template that ends no turn goes on with the next one's header: that must follow an end token all the same.
        self._ends_turns = closing is None or closing_at is not None
        if not self.stop_ids:
            raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no end token: set `eos_token`")
        self._may_complete: dict[tuple[int, tuple[str, ...]], bool] = {}

    def _render(self, turns: Sequence[dict[str, str]], generate: bool = True) -> str:
        """The chat template's text of a conversation, up to where the policy writes if `generate`.

        Raises `UserError` for whatever the template's code raises.
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
        """What the chat template writes after an assistant message that is the last; None where it allows none."""
        try:
            text = self._render(turns, generate=False)
        except UserError:
            return None
        return self._encoder.mixed(text.rpartition(_ACTION)[2]) if _ACTION in text else None

    def _first_control(self, glue: Sequence[int]) -> int | None:
        """Where in the glue after an action the first control token stands, with no more than space before it."""
        for at, token in enumerate(glue):
            if token in self._encoder.control:
                return at
            if self.tokenizer.decode([token]).strip():
                return None
        return None

    @property
    def turn_end(self) -> int:
        """The token that ends an action in a conversation: the chat template's, else the tokenizer's."""
        if self._ends_turns and self._end_at is not None:
            return self.between[self._end_at]
        eos = self.tokenizer.eos_token_id
        return min(self.stop_ids) if eos is None else eos

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without the tokenizer's own start or end tokens. Control tokens are among them only
        where a prompt template wrote them (`TemplateText`).

        Those of short texts are kept: episodes of a group and games alike say the same again and again.
        """
        own = isinstance(text, TemplateText)
        if len(text) > MAX_KEPT_CHARS:
            return self._encoder.mixed(text) if own else self._encoder.text(text)
        return list(self._template_ids(str(text)) if own else self._text_ids(text))

    def guard(self, text: str) -> str:
        """Marks what reads as a control token in a text from outside that a prompt template puts into its own."""
        return self._encoder.guard(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without the end tokens at their end. Control tokens before them are kept as text: tags
        may be such tokens, and one that stands inside a command makes it another command."""
        return self.tokenizer.decode(self._encoder.without_end(ids, self.stop_ids), skip_special_tokens=False)

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
            return replace(observation, text=text), True
        return observation, cut

    def locate(self, text: str, places: Sequence[tuple[int, int, str]]) -> tuple[tuple[int, int, str], ...]:
        """Stretches of a text, (first character, end, name), as stretches of its tokens. What lies past the text's end
        is left out, and all of it where the tokenizer cannot tell (it is none of the fast ones)."""
        starts = [start for start, _ in self._encoder.offsets(text)] if places else []
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
        content = message if isinstance(message, TemplateText) else self.guard(message)
        return self._encoder.mixed(self._render([{"role": "user", "content": str(content)}]))

    def follow(self, action_ids: Sequence[int], before: str, text: str, after: str) -> tuple[list[int], list[bool]]:
        """Ids that come after an action: glue, then the next user message `before + text + after`.

        Returns the ids and a mask that is True on `text`'s own tokens. After an end token that the policy sampled,
        whichever it was, the template's is not repeated. The ids end where the policy writes its next action.
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
    """A chat template in which `strftime_now`, which templates write today's date with, tells a date of our own.

    `apply_chat_template` passes data to a template and no functions, so the function is a macro before the template.
    """
    parts = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBdDeFHIjmMpSTuUVwWxXyYcGh"]
    steps = "".join(f" | replace({part!r}, {date.strftime(part)!r})" for part in (*parts, "%%"))
    # At a line's start Jinja would have left out the spaces before the template's first block.
    rest = template.lstrip(" \t") if template.lstrip(" \t").startswith("{%") else template
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}{{{{ '' }}}}{rest}"


def declared_stop_ids(generation_config: Any) -> tuple[int, ...]:
    """The end tokens that a model's generation config declares: none, one or several.

    >>> from types import SimpleNamespace
    >>> declared_stop_ids(SimpleNamespace(eos_token_id=[1, 106]))
    (1, 106)
    """
    declared = getattr(generation_config, "eos_token_id", None)
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else tuple(int(i) for i in declared)
