"""Executes the same commands on the native and the reference engine, and reports the first difference.

    python tests/envs/alfworld/differential.py --data ../shared/data/alfworld --steps 30000 --seed 0

Needs the extra `alfworld`. Hypothesis draws the commands: two thirds are admissible, the others near misses and
garbage. A failure prints the game, the first step that differs, and a command line that reproduces it: the numbers
after --choices determine the commands up to that step. --shrink lets Hypothesis search for a simpler episode, which
takes minutes.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from mutations import mutate
from nonstandard_pddl import rewrite_nonstandard

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import distinct_games, game_json, load_world
from paw_fast.envs.alfworld.pddl import UnsupportedGame
from paw_fast.envs.alfworld.tables import SIZES
from paw_fast.envs.alfworld.textworld.env import Worker
from paw_fast.errors import UserError

GARBAGE = (
    "", " ", "go", "go to", "take", "examine", "dance", "open the door", "look around", "Look", "LOOK", "inventory 1",
    "help me", "go to cabinet 99", "take mug from table", "nothing", "\t", "\x00", "é", "\U0001f600", "a" * 900,
    "use", "heat", "go to  ", "examine agent1", "look; look", "put it down", "{r.name}", "#look.feedback#",
)  # fmt: skip


class Difference(AssertionError):
    """The first step at which the two engines differ; `choices` determine the commands up to it."""

    choices: Sequence[int] = ()


@dataclass
class Tally:
    """What was compared. refused: games that the reference cannot load. handed_over: games that only it supports."""

    steps: int = 0
    admissible: int = 0
    wins: int = 0
    episodes: int = 0
    refused: int = 0
    handed_over: int = 0


def near_miss(command: str, others: list[str], rng: random.Random) -> str:
    """A command that is almost admissible."""
    words = command.split(" ")
    kind = rng.randrange(9)
    if kind == 0 and words[-1].isdigit():
        return " ".join([*words[:-1], str(int(words[-1]) + rng.choice((-1, 1, 2)))])
    if kind == 1:
        return command.upper() if rng.random() < 0.5 else command.capitalize()
    if kind == 2:
        return f"  {command}\n" if rng.random() < 0.7 else command.replace(" ", "  ", 1)
    if kind == 3:
        return " ".join(words[:-1])
    if kind == 4:
        return command + rng.choice((".", " 1", " now", "!"))
    if kind == 5:
        return rng.choice(("put ", "move ", "open ", "close ", "use ", "examine ")) + " ".join(words[1:])
    if kind == 6:
        return command.replace(" to ", " in/on ") if " to " in command else command.replace(" in/on ", " to ")
    if kind == 7:
        other = rng.choice(others).split(" ")
        return " ".join(words[: len(words) // 2] + other[len(other) // 2 :])
    return rng.choice(others)


def choose(commands: list[str], earlier: list[str], rng: random.Random) -> str:
    """The next command: admissible (preferably one that changes the state), a near miss, or garbage."""
    roll = rng.random()
    if roll < 0.35:
        doing = [c for c in commands if c.split(" ")[0] not in ("go", "look", "inventory", "help", "examine")]
        return rng.choice(doing or commands)
    if roll < 0.65:
        return rng.choice(commands)
    if roll < 0.92:
        return near_miss(rng.choice(commands), earlier, rng)
    return rng.choice(GARBAGE)


def compare(state, text: str, answer: dict, where: str, history: list[str]) -> None:
    """Raises `Difference` unless observation, admissible commands, won and reward are equal."""
    pairs = (
        ("text", text, answer["text"]),
        ("admissible commands", list(engine.commands(state)), answer["admissible"]),
        ("won", state.won(), answer["won"]),
        ("reward", float(state.won() and bool(history)), answer["reward"]),
    )
    for name, ours, reference in pairs:
        if ours != reference:
            if name == "admissible commands":
                ours, reference = sorted(set(ours) - set(reference)), sorted(set(reference) - set(ours))
            raise Difference(
                f"{where}, step {len(history)}: {name} differ\n  ours      {str(ours)[:600]!r}\n"
                f"  reference {str(reference)[:600]!r}\n  after {history[-12:]!r}"
            )


def play_both(worker: Worker, path: Path, choices: Sequence[int], tally: Tally, slot: int = 0) -> None:
    """Runs one episode with one command per choice. Raises `Difference` at the first step that differs."""
    answer = worker.receive(worker.send({"op": "reset", "slot": slot, "path": str(path)}))
    try:
        world = load_world(path)
    except UnsupportedGame:
        tally.refused += "error" in answer
        tally.handed_over += "error" not in answer
        return
    except UserError as error:
        if "error" in answer:
            tally.refused += 1
            return
        raise Difference(f"game {path}: the reference loads it, ours does not: {error}") from None
    if "error" in answer:
        tally.refused += 1  # its loader crashes on unsolvable games, among others
        return
    state, history = world.initial.clone(), []
    earlier = list(engine.commands(state))
    try:
        compare(state, engine.introduction(state), answer, f"game {path}", history)
        tally.episodes += 1
        for choice in choices:
            commands = list(engine.commands(state))
            rng = random.Random(f"{path.name} {len(history)} {choice}")
            earlier = (earlier + rng.sample(commands, min(3, len(commands))))[-200:]
            command = choose(commands, earlier, rng)
            history.append(command)
            answer = worker.receive(worker.send({"op": "step", "slot": slot, "command": command}))
            tally.admissible += command.strip() in engine.commands(state)
            text = engine.play(state, command)
            if "error" in answer:
                raise Difference(f"game {path}, step {len(history)}: the reference fails: {answer['error']}")
            compare(state, text, answer, f"game {path}", history)
            tally.steps += 1
            tally.wins += answer["won"]
    except Difference as difference:
        difference.choices = choices[: len(history)]
        raise


def explore(
    worker: Worker, path: Path, from_seed: int, episodes: int, length: int, tally: Tally, shrink: bool = False
) -> None:
    """Runs episodes with choices drawn by Hypothesis. Raises the first `Difference`, or the simplest with `shrink`."""

    @seed(from_seed)
    @settings(
        max_examples=episodes, database=None, deadline=None, verbosity=Verbosity.quiet, print_blob=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.lists(st.integers(0, 1 << 20), min_size=length, max_size=length))
    def play(choices: list[int]) -> None:
        play_both(worker, path, choices, tally)

    play()


def games_for(
    data: Path | None, folder: Path, num_generated: int, num_mutated: int, from_seed: int = 0, num_nonstandard: int = 0
) -> list[Path]:
    """Official games, generated games of all sizes, and mutated and nonstandard variants of both."""
    plain = sorted(data.glob("**/game.tw-pddl")) if data else []
    for i, size in enumerate(SIZES):
        num = (num_generated + len(SIZES) - 1 - i) // len(SIZES)
        for k, game in enumerate(distinct_games(7 + from_seed, size, "train", num) if num else ()):
            path = folder / f"{size}-{k}.tw-pddl"
            path.write_text(game_json(game), encoding="utf-8")
            plain.append(path)
    mutated, nonstandard = [], []
    for k in range(num_mutated):
        source = plain[k % len(plain)]
        text, names = mutate(source.read_text(encoding="utf-8"), 1000 * from_seed + k)
        path = folder / f"mutated-{k}-{'-'.join(names)}.tw-pddl"
        path.write_text(text, encoding="utf-8")
        mutated.append(path)
    for k in range(num_nonstandard):
        source = (plain + mutated)[k * 7 % len(plain + mutated)]
        text, name = rewrite_nonstandard(source.read_text(encoding="utf-8"), 10_000 * from_seed + k)
        nonstandard.append(folder / f"nonstandard-{k}-{name}.tw-pddl")
        nonstandard[-1].write_text(text, encoding="utf-8", errors="surrogatepass")
    return plain + mutated + nonstandard


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--length", type=int, default=50, help="steps of an episode")
    parser.add_argument("--generated", type=int, default=60)
    parser.add_argument("--mutated", type=int, default=72)
    parser.add_argument("--nonstandard", type=int, default=0, help="additional games (see nonstandard_pddl.py)")
    parser.add_argument("--seed", type=int, default=0, help="of the games and the commands")
    parser.add_argument("--only", help="only games whose path contains this text")
    parser.add_argument("--choices", help="run one episode with these comma-separated choices")
    parser.add_argument("--slow", action="store_true", help="run the reference without caches")
    parser.add_argument("--shrink", action="store_true", help="search for a simpler episode after a difference")
    options = parser.parse_args(arguments)
    worker, tally, started = Worker(slow=options.slow), Tally(), time.monotonic()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = games_for(
            options.data, Path(folder), options.generated, options.mutated, options.seed, options.nonstandard
        )
        episodes = -(-options.steps // (options.length * len(paths)))
        for path in paths:
            if options.only and options.only not in str(path):
                continue
            try:
                if options.choices:
                    play_both(worker, path, [int(number) for number in options.choices.split(",")], tally)
                else:
                    explore(worker, path, options.seed, episodes, options.length, tally, options.shrink)
            except Difference as error:
                failures += 1
                print(f"DIFFERENCE {error}\n  reproduce: {replay(options, path, error.choices)}", flush=True)
    worker.stop()
    result = {**vars(tally), "differences": failures, "seed": options.seed, "slow_reference": options.slow}
    print(json.dumps({**result, "wall_s": round(time.monotonic() - started)}))
    return 1 if failures else 0


def replay(options: argparse.Namespace, path: Path, choices: Sequence[int]) -> str:
    """The command line that reproduces an episode."""
    data = ["--data", str(options.data)] if options.data else []
    words = ["python", "tests/envs/alfworld/differential.py", *data]
    words += ["--generated", str(options.generated), "--mutated", str(options.mutated), "--seed", str(options.seed)]
    words += ["--nonstandard", str(options.nonstandard)] * bool(options.nonstandard)
    name = path.name if path.name != "game.tw-pddl" else path.parent.name
    words += ["--only", name, "--choices", ",".join(map(str, choices)) or "0", *["--slow"] * options.slow]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
