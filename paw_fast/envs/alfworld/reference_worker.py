"""The process in which the reference engine runs: reads one JSON request a line, writes one JSON answer a line.

A process because the reference is not thread-safe, replaces `sys.stdout` and `sys.argv`, prints, and leaks; the
answers go to a file descriptor that nothing else knows. Requests: {"op": "reset", "slot": n, "path": file},
{"op": "step", "slot": n, "command": text}. Answers: {"text", "admissible", "won"} or {"error": one line}.
Environment objects are kept and loaded again, since a new one for each episode leaks 1.7 MB.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def _make_slot() -> Any:
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
    from textworld import EnvInfos
    from textworld.envs.pddl import PddlEnv

    return AlfredInfos(AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True))))


def _game(path: str) -> Any:
    """What to load: the file, or its contents filled up when it was generated without the reference's texts."""
    from .games import read_game, reference_texts

    data = read_game(Path(path))
    own = data.get("paw_fast")
    texts = reference_texts()
    if data["pddl_domain"] or data["grammar"] or not isinstance(own, dict) or texts is None:
        return path
    grammar = texts[1].replace("UNKNOWN GOAL", str(own.get("task")))
    return {**data, "pddl_domain": texts[0], "grammar": grammar}


def answer_request(slots: dict[int, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Carries out one request (see the module's text) on the environment objects in `slots`."""
    if request["op"] == "step":
        state, _, _ = slots[request["slot"]].step(request["command"])
    else:
        env = slots.setdefault(request["slot"], None) or _make_slot()
        slots[request["slot"]] = env
        env.load(_game(request["path"]))
        state = env.reset()
    return {"text": state.feedback, "admissible": list(state.admissible_commands), "won": bool(state.won)}


def main() -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if "--slow" not in sys.argv:
        from .reference_speed import speed_up

        speed_up()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    slots: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = answer_request(slots, request)
        except BaseException as error:
            slots.pop(request.get("slot"), None)
            answer = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
            if isinstance(error, KeyboardInterrupt):
                raise
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
