"""The process in which the reference engine runs: reads one JSON request a line, writes one JSON answer a line.

A process because the reference is not thread-safe, replaces `sys.stdout` and `sys.argv`, prints, and leaks; the
answers go to a file descriptor that nothing else knows. A request that takes longer than `--time-limit` seconds ends
the process, whatever it is doing. Requests: {"op": "reset", "slot": n, "path": file},
{"op": "step", "slot": n, "command": text}. Answers: {"text", "admissible", "won", "reward"} or {"error": one line}.
Environment objects are kept and loaded again, since a new one for each episode leaks 1.7 MB.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

from paw_fast.runs import stop_signals


def _make_slot() -> Any:
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
    from textworld import EnvInfos  # pyright: ignore[reportAttributeAccessIssue] - the package, not this folder
    from textworld.envs.pddl import PddlEnv

    return AlfredInfos(AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True))))


def _game(path: str) -> Any:
    """What to load: the file, or its contents filled up when it was generated without the reference's texts."""
    from paw_fast.envs.alfworld.games import read_game, reference_texts

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
        state, reward, _ = slots[request["slot"]].step(request["command"])
    else:
        env = slots.setdefault(request["slot"], None) or _make_slot()
        slots[request["slot"]] = env
        env.load(_game(request["path"]))
        state, reward = env.reset(), 0
    answer = {"text": state.feedback, "admissible": list(state.admissible_commands), "won": bool(state.won)}
    return {**answer, "reward": float(reward)}


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="the packages as they come")
    parser.add_argument("--time-limit", type=float, default=150.0)
    options = parser.parse_args()
    stop_signals.ignore_in_child()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    slow_because = "it was asked for"
    if not options.slow:
        from paw_fast.envs.alfworld.textworld.caching import speed_up

        slow_because = speed_up()
    print(json.dumps({"ready": True, "slow_because": slow_because}), file=answers, flush=True)
    slots: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(options.time_limit, exit=True)
        try:
            answer = answer_request(slots, request)
        except BaseException as error:
            slots.pop(request.get("slot"), None)
            answer = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
            if isinstance(error, KeyboardInterrupt):
                raise
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
