"""Generated games beside official ones: what is in them, how long their texts and plans are, what they ask for.

    python bench/envs/games_table.py --data ../shared/data/alfworld --games 120

prints a Markdown table. Rows give the mean and, in brackets, the least and the most. Texts, admissible commands
and episode lengths are those of the searcher's episodes. Generated games are shown in the official files' wording
here (no articles, no help), so that the texts' lengths can be compared. --room kitchen leaves the other rooms out.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from paw_fast import envs
from paw_fast.envs.alfworld import Planner, SearcherExpert
from paw_fast.envs.alfworld.games import read_task
from paw_fast.envs.alfworld.tables import ROOMS
from paw_fast.envs.alfworld.text import OFFICIAL, Rules
from paw_fast.types import Task


def measure(env, tasks: list[Task]) -> dict[str, list[float]]:
    """One list of numbers for each row of the table."""
    rows: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for task in tasks:
        env.reset(task)
        world, state = env.state.world, env.state
        world.rules = Rules(OFFICIAL, has_help=False)
        world.initial.commands = None
        observation = env.reset(task)
        state = env.state
        add("receptacles", len(world.receptacles))
        add("of these openable", len(world.openable))
        add("places", len(set(world.place_of)))
        add("objects", len({o for group in state.inside for o in group}))
        add("object types", len({world.object_types[o] for group in state.inside for o in group}))
        add("words of the introduction", len(observation.text.split()))
        add("characters of the introduction", len(observation.text))
        add("shortest plan, steps", len(Planner().plan(state) or ()))
        expert, steps = SearcherExpert(), 0
        expert.reset(observation)
        while True:
            add("admissible commands", len(observation.admissible))
            step = env.step(expert.act(observation))
            observation, steps = step.observation, steps + 1
            add("words of a later observation", len(observation.text.split()))
            if step.done:
                break
        add("searcher's success, %", 100 * step.score)
        add("searcher's episode, steps", steps)
    return rows


def in_room(task: Task, room: str | None) -> bool:
    """Whether the task's scene is one of the room type."""
    scene = int(task.task_id.split("/")[0].rsplit("-", 1)[1])
    return room is None or any(kind.name == room and scene in kind.scenes for kind in ROOMS)


def cell(values: list[float], show: Callable[[float], str] = "{:.1f}".format) -> str:
    if set(values) <= {0.0, 100.0}:
        return f"{statistics.mean(values):.1f}"
    return f"{show(statistics.mean(values))} ({min(values):.0f}-{max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the official data set")
    parser.add_argument("--games", type=int, default=120, help="of each size, half of them in unseen rooms")
    parser.add_argument("--room", choices=[kind.name for kind in ROOMS])
    options = parser.parse_args()
    columns: dict[str, dict[str, list[float]]] = {}
    if options.data:
        env = envs.make("alfworld", data=options.data)
        tasks = [read_task(path) for path in sorted(options.data.glob("**/game.tw-pddl"))]
        tasks = [task for task in tasks if in_room(task, options.room)]
        columns[f"official ({len(tasks)})"] = measure(env, tasks)
    with tempfile.TemporaryDirectory() as cache:
        for size in ("full", "medium", "small"):
            half = options.games // 2
            env = envs.make("alfworld", size=size, num_train=half, num_unseen=half, cache_dir=cache)
            tasks = [task for split in ("train", "unseen") for task in env.tasks(split) if in_room(task, options.room)]
            columns[f"{size} ({len(tasks)})"] = measure(env, tasks)
    print("| | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(cell(rows[name]) for rows in columns.values()) + " |")
    for name, rows in columns.items():
        lengths = rows["searcher's episode, steps"]
        print(f"\nmedian searcher's episode, {name}: {statistics.median(lengths):g} steps", end="")
    print()


if __name__ == "__main__":
    main()
