"""Fuzzes the ALFWorld engine with damaged game files and random commands: it must not crash, hang or leak memory.

    python tests/envs/alfworld/fuzzing.py --minutes 10 --seed 0

Minutes are CPU time, so that the load of the machine does not matter. Prints one JSON line: the numbers of files tried
and played and of commands, the slowest of each in CPU seconds, and the peak memory.
"""

import argparse
import contextlib
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from adversarial_files import adversarial_cases
from mutations import mutate

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import distinct_games, game_json, load_world
from paw_fast.envs.alfworld.pddl import UnsupportedGame
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.tables import SIZES
from paw_fast.errors import UserError

TOKENS = (
    "(", ")", "((", "))", ";", "-", "?x", "(:init", "(:goal", "(exists (?o - object)", "(not", "(and", "(or", "=",
    "agent1", "(holds agent1", "_bar_", "_minus_1", "\x00", "\ud800", "\n", '"', "999999999999999999999", "(= (a b) 1)",
    "cabinet_bar_1", "(inReceptacle", "(receptacleAtLocation", "exists", "object", "receptacle", "é" * 50,
)  # fmt: skip


@dataclass
class Report:
    """Counts and worst cases of a fuzzing run."""

    files: int = 0
    played: int = 0
    refused: int = 0
    unsupported: int = 0
    commands: int = 0
    slowest_load_s: float = 0.0
    slowest_command_s: float = 0.0
    longest_message: int = 0


def damage(text: str, rng: random.Random) -> str:
    """A game file's text with parts of it removed, duplicated, swapped or replaced."""
    kind = rng.randrange(8)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        at = rng.randrange(len(text))
        return text[:at] + chr(rng.randrange(1, 0xD7FF)) + text[at + rng.randrange(3) :]
    data = json.loads(text)
    problem = data["pddl_problem"]
    if kind == 2:
        a, b = sorted(rng.randrange(len(problem)) for _ in range(2))
        problem = problem[:a] + problem[b:] if rng.random() < 0.5 else problem[:b] + problem[a:]
    elif kind == 3:
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(problem))
            problem = problem[:at] + f" {rng.choice(TOKENS)} " + problem[at:]
    elif kind == 4:
        lines = problem.splitlines()
        for _ in range(rng.randint(1, 9)):
            a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[a], lines[b] = lines[b], rng.choice((lines[a], lines[b], ""))
        problem = "\n".join(lines)
    elif kind == 5:
        words = problem.split(" ")
        for _ in range(rng.randint(1, 5)):
            words[rng.randrange(len(words))] = rng.choice(words)
        problem = " ".join(words)
    elif kind == 6:
        goal = problem.index("(:goal")
        depth = rng.choice((3, 40, 70, 5000))
        body = "(exists (?o - object ?r - receptacle) " * depth + "(inReceptacle ?o ?r)" + ")" * depth
        problem = problem[:goal] + f"(:goal {body}))"
    else:
        return json.dumps(
            rng.choice((data["pddl_problem"], [data], {**data, "grammar": 3}, {"pddl_problem": text}, None))
        )
    data["pddl_problem"] = problem
    return json.dumps(data)


def random_command(rng: random.Random, commands: list[str]) -> str:
    """A command of random characters, or an admissible command with random changes."""
    if rng.random() < 0.5:
        return "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40))) * rng.choice((1, 1, 1, 500))
    command = list(rng.choice(commands))
    for _ in range(rng.randint(0, 3)):
        command[rng.randrange(len(command))] = chr(rng.randrange(256))
    return "".join(command)


def try_file(path: Path, rng: random.Random, num_commands: int, report: Report) -> None:
    """Loads a file and executes commands; lets all exceptions but `UserError` and `UnsupportedGame` propagate."""
    report.files += 1
    started = time.process_time()
    try:
        world = load_world(path)
    except UserError as error:
        message = str(error)
        assert message.isprintable(), message
        assert str(path) in message
        report.refused += 1
        report.longest_message = max(report.longest_message, len(message))
        return
    except UnsupportedGame:
        report.unsupported += 1
        return
    finally:
        report.slowest_load_s = max(report.slowest_load_s, time.process_time() - started)
    report.played += 1
    state = world.initial.clone()
    engine.introduction(state).encode("utf-8")
    for _ in range(num_commands):
        commands = list(engine.commands(state))
        command = rng.choice(commands) if rng.random() < 0.6 else random_command(rng, commands)
        started = time.process_time()
        engine.play(state, command).encode("utf-8")
        state.won()
        report.slowest_command_s = max(report.slowest_command_s, time.process_time() - started)
        report.commands += 1
    stored = state.to_bytes()
    assert State.from_bytes(world, stored) == state
    broken = bytearray(stored)
    broken[rng.randrange(len(broken))] = rng.randrange(256)
    with contextlib.suppress(ValueError):
        State.from_bytes(world, bytes(broken))


def fuzz(seconds: float, seed: int, num_files: int | None = None, num_commands: int = 40) -> Report:
    """Fuzzes for a CPU time in seconds or for a number of files, starting with the adversarial files."""
    report, rng = Report(), random.Random(f"fuzz {seed}")
    sources = [game_json(game) for size in SIZES for game in distinct_games(seed, size, "train", 6)]
    ends = time.process_time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "game.tw-pddl")
        for _, content in adversarial_cases():
            path.write_bytes(content)
            try_file(path, rng, 10, report)
        while (report.files < num_files) if num_files is not None else (time.process_time() < ends):
            text = rng.choice(sources)
            if rng.random() < 0.3:
                text, _ = mutate(text, rng.randrange(1 << 30))
            for _ in range(rng.randint(0, 2)):
                try:
                    text = damage(text, rng)
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
            path.write_text(text, encoding="utf-8", errors="replace")
            try:
                try_file(path, rng, num_commands, report)
            except Exception:
                Path("fuzz-failure.tw-pddl").write_text(text, encoding="utf-8", errors="replace")
                raise
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fuzz(0, options.seed, num_files=200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = fuzz(options.minutes * 60, options.seed + 1)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = vars(report)
    print(json.dumps({**result, "peak_mb_after_200_files": before // 1024, "peak_mb_at_end": after // 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
