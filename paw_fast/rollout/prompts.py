"""Renders prompt templates and parses actions. A template is a TOML file of Jinja templates.

Parsing in games follows verl-agent. The action is the text between the first `<action>` and `</action>`, in lower case;
without these tags, it is the last 20 characters and is marked as invalid. It is also invalid without
`<think>...</think>`, and if the text contains Chinese, Japanese or Korean characters.

Parsing in search QA follows Search-R1. The text is used up to the first `</search>` or `</answer>`; the query or answer
starts after the last opening tag of that kind. The command is `search[...]` or `answer[...]`.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from paw_fast import envs
from paw_fast.errors import UserError
from paw_fast.rollout.text_encoding import TemplateText
from paw_fast.types import Observation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FALLBACK_CHARS = 20
_OBSERVATION = "\u2402paw-observation\u2403"
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
STYLES = ("action", "think_action", "search", "think_search")
# Up to the first closing tag of either kind; then from the last opening tag of that kind.
_SEARCH_ACTION = re.compile(
    r"\A(?:(?!</(?:search|answer)>).)*<(?P<kind>search|answer)>(?P<content>(?:(?!<(?P=kind)>|</(?:search|answer)>).)*)"
    r"</(?P=kind)>",
    re.DOTALL,
)
_TEXTS = ("first", "next", "window", "window_first")


@dataclass(frozen=True)
class ParsedAction:
    """The command for the environment, and whether the answer had the format that the template requires.

    >>> parse_action("<think>hm</think><action> Look </action>", "think_action")
    ParsedAction(command='look', well_formed=True)
    >>> parse_action("I would rather go to bed now", "think_action")
    ParsedAction(command='rather go to bed now', well_formed=False)
    """

    command: str
    well_formed: bool


def parse_action(text: str, style: str, thought_opened: bool = False) -> ParsedAction:
    """Parses the command from an answer of the policy.

    Args:
        text: the answer.
        style: one of `STYLES`: `action` (the whole answer), `think_action` (a thought and an action in tags), `search`
            (search or answer tags), `think_search` (the same after a thought).
        thought_opened: the prompt ends with `<think>`, so the answer only closes the thought.

    >>> parse_action("hm</think><action>look</action>", "think_action", thought_opened=True)
    ParsedAction(command='look', well_formed=True)
    """
    opened = "<think>" if thought_opened else ""
    if style.endswith("search"):
        return _parse_search(text, style == "think_search", opened)
    if style == "action":
        answer = text.partition("</think>")[2] if thought_opened and "</think>" in text else text
        command = answer.strip().lower()
        return ParsedAction(command, bool(command) and not _CJK.search(text))
    lower = text.lower()
    start = lower.find("<action>")
    end = lower.find("</action>", start + len("<action>")) if start >= 0 else -1
    if end < 0:
        return ParsedAction(lower[-FALLBACK_CHARS:].strip(), False)
    whole = opened + lower
    thought = 0 <= whole.find("<think>") < whole.find("</think>")
    return ParsedAction(lower[start + len("<action>") : end].strip(), thought and not _CJK.search(text))


def _parse_search(text: str, wants_thought: bool, opened: str) -> ParsedAction:
    found = _SEARCH_ACTION.search(text)
    if found is None:
        return ParsedAction(f"invalid[{text[-FALLBACK_CHARS:].strip()}]", False)
    thought = re.search(r"<think>.*</think>", opened + text[: found.start("content")], re.DOTALL) is not None
    content = found["content"].strip()
    return ParsedAction(f"{found['kind']}[{content}]", bool(content) and (thought or not wants_thought))


def write_action(command: str, style: str, thought_opened: bool = False) -> str:
    """Formats a command as an answer of the policy: the inverse of `parse_action`.

    >>> write_action("search[Ada Lovelace]", "search")
    '<search> Ada Lovelace </search>'
    """
    if style == "action":
        return f"</think>{command}" if thought_opened else command
    opening = "" if thought_opened else "<think>"
    if style == "think_action":
        return f"{opening}I choose: {command}</think><action>{command}</action>"
    kind, _, content = command.removesuffix("]").partition("[")
    if kind == "invalid":
        return content
    thought = f"{opening}I choose: {kind}</think>" if style == "think_search" or thought_opened else ""
    return f"{thought}<{kind}> {content} </{kind}>"


def policy_view(observation: Observation, max_chars: int = 0) -> tuple[Observation, bool]:
    """Returns the observation as the policy reads it, and whether it was truncated.

    That is its text, or `Observation.shown` where an environment gives the policy another form of it, and at most
    `max_chars` characters from its start (0: all).

    >>> policy_view(Observation("a long page", shown="'a long page'"), 7)[0].text
    "'a long"
    """
    text = observation.text if observation.shown is None else observation.shown
    cut = 0 < max_chars < len(text)
    return replace(observation, text=text[:max_chars] if cut else text, shown=None), cut


class PromptTemplate:
    """A prompt template: the messages of an episode in the `trajectory` and `window` layouts.

    Templates are rendered in Jinja's sandbox, so they cannot run code. Any error in a template raises a `UserError`
    that names it.
    """

    def __init__(self, values: Mapping[str, Any], name: str):
        self.name = name
        self._escape: Callable[[str], str] | None = None
        known = {*_TEXTS, "style", "invalid", "stop", "max_chars"}
        for key in values:
            if key not in known:
                raise UserError(f"template {name}: unknown key '{key}', expected one of {', '.join(sorted(known))}")
        for key in _TEXTS:
            if not isinstance(values.get(key), str):
                raise UserError(f"template {name}: '{key}' is missing or not a string")
        self.style = str(values.get("style", "think_action"))
        self.invalid = str(values.get("invalid", "format"))
        stop, max_chars = values.get("stop", []), values.get("max_chars", 13000)
        if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"template {name}: stop is {stop!r}, expected a list of strings")
        if not isinstance(max_chars, int) or isinstance(max_chars, bool) or max_chars < 1:
            raise UserError(f"template {name}: max_chars is {max_chars!r}, expected an integer of at least 1")
        self.stop, self.max_chars = tuple(stop), max_chars
        if self.style not in STYLES:
            raise UserError(f"template {name}: style is '{self.style}', expected one of {', '.join(STYLES)}")
        if self.invalid not in ("format", "admissible"):
            raise UserError(f"template {name}: invalid is '{self.invalid}', expected 'format' or 'admissible'")
        engine = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        # `{{ turn.command | written }}` gives an earlier command as the policy writes it, without the thought.
        engine.filters["written"] = lambda command: write_action(command, self.style.replace("think_search", "search"))
        try:
            self._texts = {key: engine.from_string(values[key].lstrip("\n")) for key in _TEXTS}
        except jinja2.TemplateError as e:
            raise UserError(f"template {name}: {_one_line(e)}") from e
        probe = Observation("o", ("look",))
        for key in _TEXTS:
            self._render(key, probe, "t", [{"observation": "o", "command": "look"}], 1)
        marked = self._render("next", Observation(_OBSERVATION, ("look",)), "t", [], 1)
        if marked.count(_OBSERVATION) != 1:
            raise UserError(f"template {name}: 'next' must contain {{{{ observation }}}} exactly once")

    def with_escape(self, escape: Callable[[str], str]) -> PromptTemplate:
        """Returns a copy of the template that applies `escape` (see `ChatFormat.escape`) to all text from outside.

        Control tokens then come only from the text of the template itself.
        """
        other = copy.copy(self)
        other._escape = escape
        return other

    @classmethod
    def load(cls, name: str, env: str = "alfworld") -> PromptTemplate:
        """Loads a built-in template by name or a TOML file by path. Raises `UserError`.

        An environment's own templates come before those in `rollout/templates/`, which suit any environment.
        """
        folders = [Path(str(resources.files("paw_fast.rollout") / "templates"))]
        if (own := envs.find(env).templates) is not None:
            folders.insert(0, own)
        path = Path(name)
        if not name.endswith(".toml"):
            files = [folder / f"{name}.toml" for folder in folders]
            path = next((file for file in files if file.is_file()), files[-1])
        try:
            return cls(tomllib.loads(path.read_text(encoding="utf-8")), name)
        except UnicodeDecodeError as e:
            raise UserError(f"template {path} is not a text file: byte {e.start} is not UTF-8") from e
        except OSError as e:
            shipped = sorted({p.stem for folder in folders for p in folder.glob("*.toml")})
            raise UserError(
                f"--env.template {name}: cannot read {path} ({e.strerror}); built-in templates are "
                f"{', '.join(shipped)}; or give the path of a .toml file"
            ) from e
        except (ValueError, RecursionError) as e:  # also numbers of thousands of digits, lists in lists
            if isinstance(e, UserError):
                raise
            raise UserError(f"template {path} is not valid TOML: {e}") from e

    def first(self, observation: Observation) -> str:
        """The opening message in the `trajectory` layout."""
        return self._render("first", observation, observation.task, [], 0)

    def split_next(self, observation: Observation) -> tuple[str, str]:
        """What stands before and after the observation's text in a later message of the `trajectory` layout."""
        shown = replace(observation, text=_OBSERVATION)
        text = self._render("next", shown, "", [], 0)
        if text.count(_OBSERVATION) != 1:
            raise UserError(f"template {self.name}: 'next' must contain {{{{ observation }}}} exactly once")
        before, after = text.split(_OBSERVATION)
        return (before, after) if self._escape is None else (TemplateText(before), TemplateText(after))

    def window(self, observation: Observation, task: str, history: Sequence[Mapping[str, str]], step: int) -> str:
        """Renders the prompt of a turn in the `window` layout. The history is omitted if the prompt is too long."""
        return self.fit_window(observation, task, history, step)[0]

    def fit_window(
        self, observation: Observation, task: str, history: Sequence[Mapping[str, str]], step: int
    ) -> tuple[str, bool]:
        """Like `window`, but also returns whether the history was omitted."""
        if history:
            text = self._render("window", observation, task, history, step)
            if len(text) <= self.max_chars:
                return text, False
        return self._render("window_first", observation, task, [], step), bool(history)

    def _render(self, key: str, observation: Observation, task: str, history: Sequence, step: int) -> str:
        escape = self._escape or (lambda text: text)
        try:
            text = self._texts[key].render(
                task=escape(task), observation=escape(observation.text),
                admissible=tuple(map(escape, observation.admissible)),
                history=[{name: escape(value) for name, value in turn.items()} for turn in history], step=step,
            )  # fmt: skip
        except Exception as e:  # templates can raise anything: ZeroDivisionError, UndefinedError, SecurityError
            raise UserError(f"template {self.name}: '{key}' cannot be rendered: {_one_line(e)}") from e
        return text if self._escape is None else TemplateText(text)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
