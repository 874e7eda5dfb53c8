"""Reads actions and observations of OpenEnv, which are JSON objects with fields of the environment's own, as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paw_fast.errors import UserError

_TEXT = ("text", "observation", "message", "prompt", "output", "result", "content", "feedback", "echoed_message")
_ACTION = ("command", "action", "message", "text", "content", "input")
_TASK = ("task", "instruction", "mission", "goal", "objective")
_COMMANDS = ("admissible_commands", "available_actions", "legal_actions", "valid_actions", "commands")
_SUCCESS = ("won", "is_success", "success", "solved")
_OWN = ("done", "reward", "metadata")


@dataclass(frozen=True)
class Fields:
    """Which field is what. `text` empty: the whole observation, as JSON."""

    action: str
    text: str = ""
    task: str = ""
    commands: str = ""
    success: str = ""


def choose(schema: Mapping[str, Any], action: str, text: str, env_name: str) -> Fields:
    """Chooses the fields by the server's schemas of actions and observations; `action` and `text` are those of the
    settings, empty where they are to be chosen. Raises `UserError` where that is not possible."""
    actions, observations = (_properties(schema, key) for key in ("action", "observation"))
    texts = [name for name, one in actions.items() if name not in _OWN and _is(one, "string")]
    if action and action not in actions:
        raise UserError(f"--env.action-field {action}: actions of --env {env_name} have {_listed(actions)}")
    if not action:
        named = [name for name in _ACTION if name in texts]
        if len(texts) != 1 and not named:
            raise UserError(
                f"--env {env_name}: its actions have {_listed(actions)}, of which none is clearly a text: say "
                "--env.action-field"
            )
        action = texts[0] if len(texts) == 1 else named[0]
    others = [name for name in _required(schema, "action") if name not in (action, *_OWN)]
    if others:
        raise UserError(
            f"--env {env_name}: its actions also need {', '.join(others)}; only actions of one text are supported"
        )
    if text and text not in observations:
        raise UserError(
            f"--env.observation-field {text}: observations of --env {env_name} have {_listed(observations)}"
        )
    shown = [name for name, one in observations.items() if name not in (*_OWN, *_TASK) and _is(one, "string")]
    chosen = text or (shown[0] if len(shown) == 1 else next((name for name in _TEXT if name in shown), ""))
    first = lambda names, kind: next((n for n in names if n in observations and _is(observations[n], kind)), "")  # noqa: E731
    return Fields(action, chosen, first(_TASK, "string"), first(_COMMANDS, "array"), first(_SUCCESS, "boolean"))


def _properties(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return dict((schema.get(key) or {}).get("properties") or {})


def _required(schema: Mapping[str, Any], key: str) -> list[str]:
    return list((schema.get(key) or {}).get("required") or ())


def _is(one: Mapping[str, Any], kind: str) -> bool:
    return one.get("type") == kind or any(_is(option, kind) for option in one.get("anyOf") or ())


def _listed(properties: Mapping[str, Any]) -> str:
    return ", ".join(name for name in properties if name not in _OWN) or "no fields"


def text_of(observation: Mapping[str, Any], fields: Fields) -> str:
    """What the policy reads of an observation."""
    if fields.text:
        return str(observation.get(fields.text) or "")
    shown = {key: value for key, value in observation.items() if key not in (*_OWN, fields.task, fields.commands)}
    return json.dumps(shown, ensure_ascii=False, sort_keys=True)


def success_of(observation: Mapping[str, Any], metadata: Mapping[str, Any], fields: Fields) -> bool | None:
    """Whether the environment says that the episode is won; None if it does not say."""
    if fields.success:
        return bool(observation.get(fields.success))
    inner = observation.get("metadata") or {}
    for source in (metadata, inner):
        for name in _SUCCESS:
            if isinstance(source, Mapping) and isinstance(source.get(name), bool):
                return source[name]
    return None
