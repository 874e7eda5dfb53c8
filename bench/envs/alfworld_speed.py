"""Speed and memory of the native ALFWorld engine against the reference, in one run.

    python bench/envs/alfworld_speed.py --data ../shared/data/alfworld      (needs the extra alfworld)

Both engines play random admissible commands on the same games in this process, on one thread. Times are CPU time
(`time.process_time`), so that a busy machine does not decide; medians over the games. "ours" is
`AlfworldEnv.step` (text, admissible commands, records); "reference" is the packages as they come, "reference,
cached" the same with `reference_speed`. A first reset reads the file; for "ours" and "reference, cached" a later
one of the same game does not.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

from paw_fast import envs
from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import load_world, read_task
from paw_fast.envs.alfworld.textworld.caching import speed_up
from paw_fast.envs.alfworld.textworld.worker import answer_request


def native(path: Path, num_steps: int, num_resets: int) -> dict[str, float]:
    """Seconds a step and a reset take, through the environment."""
    env, task, rng = (
        envs.make("alfworld", data=path.parents[3], max_steps=1 << 30),
        read_task(path),
        random.Random(0),
    )
    started = time.process_time()
    for _ in range(num_resets):
        env._games._worlds.clear()
        observation = env.reset(task)
    first = (time.process_time() - started) / num_resets
    started = time.process_time()
    for _ in range(num_resets):
        observation = env.reset(task)
    again = (time.process_time() - started) / num_resets
    spent, played = 0.0, 0
    while played < num_steps:
        command = rng.choice(observation.admissible)
        started = time.process_time()
        step = env.step(command)
        spent += time.process_time() - started
        played += 1
        observation = env.reset(task) if step.done else step.observation
    return {"step_s": spent / played, "first_reset_s": first, "reset_s": again}


def reference(slots: dict, path: Path, num_steps: int) -> dict[str, float]:
    """CPU seconds of a step, and of the first and the second reset."""
    times = []
    for _ in range(2):
        started = time.process_time()
        answer = answer_request(slots, {"slot": 0, "op": "reset", "path": str(path)})
        times.append(time.process_time() - started)
    rng, played = random.Random(0), 0
    started = time.process_time()
    while played < num_steps:
        command = rng.choice(answer["admissible"])
        answer = answer_request(slots, {"slot": 0, "op": "step", "command": command})
        played += 1
    return {"step_s": (time.process_time() - started) / played, "first_reset_s": times[0], "reset_s": times[1]}


def memory(paths: list[Path]) -> dict[str, float]:
    """Bytes of a loaded game and of one more episode of it."""

    def traced() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    load_world(paths[0])
    tracemalloc.start()
    before = traced()
    worlds = [load_world(path) for path in paths]
    after = traced()
    states = []
    for world in worlds:
        for _ in range(50):
            state = world.initial.clone()
            rng = random.Random(len(states))
            for _ in range(20):
                engine.play(state, rng.choice(list(engine.commands(state))))
            state.commands = None
            states.append(state)
    last = traced()
    tracemalloc.stop()
    return {"world_kb": (after - before) / len(worlds) / 1e3, "episode_kb": (last - after) / len(states) / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000, help="of our engine, for each game")
    parser.add_argument("--reference-steps", type=int, default=15)
    parser.add_argument("--games", type=int, default=12)
    options = parser.parse_args()
    paths = sorted(options.data.glob("**/game.tw-pddl"))[: options.games]
    rows: dict[str, list[dict[str, float]]] = {"ours": [native(path, options.steps, 30) for path in paths]}
    slots: dict = {}
    out = sys.stdout  # the reference replaces it while it translates
    reference(slots, paths[0], 1)  # imports and first use
    rows["reference"] = [reference(slots, path, options.reference_steps) for path in paths]
    assert speed_up() is None
    reference(slots, paths[0], 1)
    rows["reference, cached"] = [reference(slots, path, options.reference_steps * 4) for path in paths]
    sys.stdout = out
    print(f"{'':<18} {'step, ms':>9} {'first reset, ms':>16} {'reset, ms':>10}   medians over {len(paths)} games")
    for name, found in rows.items():
        step, first, again = (
            statistics.median(row[key] for row in found) for key in ("step_s", "first_reset_s", "reset_s")
        )
        print(f"{name:<18} {step * 1e3:9.4f} {first * 1e3:16.2f} {again * 1e3:10.2f}")
    ours, plain = rows["ours"], rows["reference"]
    ratios = {
        key: [b[key] / a[key] for a, b in zip(ours, plain, strict=True)]
        for key in ("step_s", "first_reset_s", "reset_s")
    }
    for key, values in ratios.items():
        print(f"ours is faster, {key[:-2]:<12}: median {statistics.median(values):8.0f}x, least {min(values):8.0f}x")
    print(json.dumps(memory(paths)))


if __name__ == "__main__":
    main()
