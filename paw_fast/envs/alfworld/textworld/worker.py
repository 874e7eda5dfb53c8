"""Runs the reference engine in a worker process: reads one JSON request per line, writes one JSON response per line.

The reference needs a separate process because it is not thread-safe, replaces `sys.stdout` and `sys.argv`, prints, and
leaks memory; responses are written to a duplicated file descriptor that it cannot write to. A request that takes
longer than `--time-limit` seconds ends the process. Requests: {"op": "reset", "slot": n, "path": file} or
{"op": "step", "slot": n, "command": text}. Responses: {"text", "admissible", "won", "reward"} or {"error": message}.
Environment objects are reused for later episodes, since each new one leaks 1.7 MB.
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
    """The game to load: the path, or the contents completed with domain and grammar if the file lacks them."""
    from paw_fast.envs.alfworld.games import read_game, reference_texts

    data = read_game(Path(path))
    metadata = data.get("paw_fast")
    texts = reference_texts()
    if data["pddl_domain"] or data["grammar"] or not isinstance(metadata, dict) or texts is None:
        return path
    grammar = texts[1].replace("UNKNOWN GOAL", str(metadata.get("task")))
    return {**data, "pddl_domain": texts[0], "grammar": grammar}


def answer_request(slots: dict[int, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Executes one request (see the module's docstring) on the environment objects in `slots`."""
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
    """Serves requests until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="run without caches")
    parser.add_argument("--time-limit", type=float, default=150.0)
    options = parser.parse_args()
    stop_signals.ignore_in_child()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    caches_off_because = "--slow was given"
    if not options.slow:
        from paw_fast.envs.alfworld.textworld.caching import install_caches

        caches_off_because = install_caches()
    print(json.dumps({"ready": True, "caches_off_because": caches_off_because}), file=answers, flush=True)
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
