"""Plays the same commands in our engine and in the reference, and reports the first difference.

    python tests/envs/differential.py --data ../shared/data/alfworld --steps 30000 --seed 0

needs the extra `alfworld`. Half of the commands are admissible, the others near misses and garbage. A
failure prints the game, the seed and the step, which replay it: --only GAME --seed SEED.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mutations import mutate

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import distinct_games, game_json, load_world
from paw_fast.envs.alfworld.reference import Worker
from paw_fast.envs.alfworld.world import Unplayable
from paw_fast.types import UserError

GARBAGE = (
    "", " ", "go", "go to", "take", "examine", "dance", "open the door", "look around", "Look", "LOOK", "inventory 1",
    "help me", "go to cabinet 99", "take mug from table", "nothing", "\t", "\x00", "é", "\U0001f600", "a" * 900,
    "use", "heat", "go to  ", "examine agent1", "look; look", "put it down", "{r.name}", "#look.feedback#",
)  # fmt: skip


class Difference(AssertionError):
    """The first step at which the two engines differ."""


@dataclass
class Tally:
    """How much was compared."""

    steps: int = 0
    admissible: int = 0
    wins: int = 0
    games: int = 0
    refused: int = 0


def near_miss(command: str, others: list[str], rng: random.Random) -> str:
    """A command that is almost right."""
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
    """The next command: admissible (mostly one that changes something), a near miss, or garbage."""
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
    """Raises `Difference` unless text, admissible commands and won are equal."""
    pairs = (
        ("text", text, answer["text"]),
        ("admissible commands", list(engine.commands(state)), answer["admissible"]),
        ("won", state.won(), answer["won"]),
    )
    for name, ours, reference in pairs:
        if ours != reference:
            if name == "admissible commands":
                ours, reference = sorted(set(ours) - set(reference)), sorted(set(reference) - set(ours))
            raise Difference(
                f"{where}, step {len(history)}: {name} differ\n  ours      {str(ours)[:600]!r}\n"
                f"  reference {str(reference)[:600]!r}\n  after {history[-12:]!r}"
            )


def play_both(worker: Worker, path: Path, seed: int, num_steps: int, tally: Tally, where: str = "") -> None:
    """One episode of `num_steps` commands, drawn from `seed`."""
    where = where or f"game {path}, seed {seed}"
    answer = worker.receive(worker.send({"op": "reset", "slot": 0, "path": str(path)}))
    try:
        world = load_world(path)
    except (Unplayable, UserError) as error:
        if "error" in answer:
            tally.refused += 1
            return
        raise Difference(f"{where}: the reference loads it, ours does not: {error}") from None
    if "error" in answer:
        tally.refused += 1  # unsolvable games and the like crash its loader
        return
    state, rng, history = world.initial.clone(), random.Random(f"{seed} {path.name}"), []
    compare(state, engine.introduction(state), answer, where, history)
    tally.games += 1
    earlier = list(engine.commands(state))
    for _ in range(num_steps):
        commands = list(engine.commands(state))
        earlier = (earlier + rng.sample(commands, min(3, len(commands))))[-200:]
        command = choose(commands, earlier, rng)
        history.append(command)
        answer = worker.receive(worker.send({"op": "step", "slot": 0, "command": command}))
        tally.admissible += command.strip() in engine.commands(state)
        text = engine.play(state, command)
        if "error" in answer:
            raise Difference(f"{where}, step {len(history)}: the reference fails: {answer['error']}")
        compare(state, text, answer, where, history)
        tally.steps += 1
        tally.wins += answer["won"]


def games_for(data: Path | None, folder: Path, num_generated: int, num_mutated: int) -> list[Path]:
    """Official games, generated ones of all sizes, and mutations of both."""
    plain = sorted(data.glob("**/game.tw-pddl")) if data else []
    for i, size in enumerate(("small", "medium", "full")):
        num = (num_generated + 2 - i) // 3
        for k, game in enumerate(distinct_games(7, size, "train", num) if num else ()):
            path = folder / f"{size}-{k}.tw-pddl"
            path.write_text(game_json(game), encoding="utf-8")
            plain.append(path)
    mutated = []
    for k in range(num_mutated):
        source = plain[k % len(plain)]
        text, names = mutate(source.read_text(encoding="utf-8"), k)
        path = folder / f"mutated-{k}-{'-'.join(names)}.tw-pddl"
        path.write_text(text, encoding="utf-8")
        mutated.append(path)
    return plain + mutated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--generated", type=int, default=60)
    parser.add_argument("--mutated", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="part of a game's path")
    parser.add_argument("--slow", action="store_true", help="the reference without reference_speed")
    options = parser.parse_args()
    worker, tally, started = Worker(slow=options.slow), Tally(), time.monotonic()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = games_for(options.data, Path(folder), options.generated, options.mutated)
        paths = [path for path in paths if not options.only or options.only in str(path)]
        each = -(-options.steps // len(paths))
        for path in paths:
            try:
                play_both(worker, path, options.seed, each, tally)
            except Difference as error:
                failures += 1
                print(f"DIFFERENCE {error}", flush=True)
    worker.stop()
    result = {**vars(tally), "differences": failures, "seed": options.seed, "slow_reference": options.slow}
    print(json.dumps({**result, "wall_s": round(time.monotonic() - started)}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
