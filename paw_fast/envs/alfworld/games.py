"""Lists and reads ALFWorld game files, and writes generated games to the cache.

Official and generated games have ALFWorld's layout, so that ALFWORLD_DATA can name a cache folder too:
`<root>/json_2.1.1/<split>/<task>-...-<scene>/trial_*/game.tw-pddl`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from paw_fast.envs.alfworld.generate import GENERATOR_VERSIONS, SPLITS, Game, make_game
from paw_fast.envs.alfworld.pddl import PddlError, TooLarge, UnsupportedGame, parse_problem, show
from paw_fast.envs.alfworld.tables import SIZES, TASK_TYPES
from paw_fast.envs.alfworld.text import WHEEL, Rules, is_plain, read_rules
from paw_fast.envs.alfworld.world import World
from paw_fast.envs.json_files import may_contain_surrogates, replace_surrogates_in, warn_once
from paw_fast.errors import UserError
from paw_fast.runs import progress, stop_signals
from paw_fast.runs.atomic_files import cache_folder
from paw_fast.runs.cached_folder import cached_folder
from paw_fast.types import Task

MAX_FILE_BYTES = 16_000_000  # official files have up to 110,000 bytes
OFFICIAL_COUNTS = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
"""Number of playable games in the official data set, json_2.1.1."""
_SOLVABLE = re.compile(rb'"solvable"\s*:\s*(true|false)')
_END_BYTES = 400


def split_name(split: str) -> str:
    """The folder name of a split. Raises `UserError` for an unknown split."""
    name = {"unseen": "valid_unseen", "seen": "valid_seen"}.get(split, split)
    if name not in SPLITS:
        raise UserError(f"alfworld has no split {split!r}: choose train, valid_seen or valid_unseen (short: unseen)")
    return name


def dataset_root(data: str | os.PathLike[str]) -> Path:
    """The folder that contains the splits: `data` or `data/json_2.1.1`. Raises `UserError` if neither does."""
    base = Path(data).expanduser()
    if not base.is_dir():
        raise UserError(f"no ALFWorld data at {base}: expected a folder that contains json_2.1.1")
    for root in (base / "json_2.1.1", base):
        if any((root / split).is_dir() for split in SPLITS):
            return root
    raise UserError(f"no ALFWorld data in {base}: neither json_2.1.1/train nor json_2.1.1/valid_unseen exists")


@dataclass(frozen=True)
class Listing:
    """The playable games of a split, and how many game files were skipped for each reason.

    Files that ALFWorld ignores too (paths with "movable" or "Sliced") are not counted.

    >>> Listing("train", (), {"empty": 2}, 3).line()
    'train: 2 of 3 game files skipped: 2 empty'
    """

    split: str
    tasks: tuple[Task, ...]
    left_out: Mapping[str, int]
    num_files: int

    def line(self) -> str:
        """A one-line summary of the skipped files; empty if there are none."""
        if not self.left_out:
            return ""
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.left_out.items()))
        return f"{self.split}: {sum(self.left_out.values())} of {self.num_files} game files skipped: {reasons}"


def read_task(path: str | Path) -> Task:
    """The task of one game file, `.../<task>-<Object>-...-<scene>/trial_*/game.tw-pddl`.

    The task type is the part of the grandparent folder's name before the first `-`. Raises `UserError` where there is
    no such file; what is wrong inside a file is reported by `Env.reset`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no game file at {path}: give the path of a game.tw-pddl file")
    path = path.resolve()
    kind, trial = path.parent.parent.name, path.parent.name
    return Task(f"{kind}/{trial}", "alfworld", task_type=kind.split("-")[0], path=path)


def list_games(root: Path, split: str) -> Listing:
    """Lists the games that the reference's loader accepts, without reading the files completely.

    As in the reference, paths with "movable" or "Sliced" and files not marked solvable are skipped. The order is
    deterministic and cycles through the task types (each sorted by path), so that any first N games are as balanced as
    the split allows. Raises `UserError` for an unknown split or a missing folder.
    """
    name = split_name(split)
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"no split {split!r} in {root}: there is no folder {folder.name}")
    tasks: list[Task] = []
    left_out: Counter[str] = Counter()
    for path in sorted(folder.glob("*/*/game.tw-pddl")):
        inside = str(path.relative_to(root))
        task_type = path.parent.parent.name.split("-")[0]
        if "movable" in inside or "Sliced" in inside:
            continue
        why = "of an unknown task type" if task_type not in TASK_TYPES else _why_left_out(path)
        if why is not None:
            left_out[why] += 1
            continue
        task_id = f"{path.parent.parent.name}/{path.parent.name}"
        tasks.append(Task(task_id, "alfworld", name, task_type, path))
    turn: Counter[str] = Counter()
    order = []
    for task in tasks:
        order.append((turn[task.task_type], TASK_TYPES.index(task.task_type), task))
        turn[task.task_type] += 1
    in_turn = tuple(task for _, _, task in sorted(order, key=lambda item: item[:2]))
    return Listing(name, in_turn, dict(left_out), len(tasks) + left_out.total())


def list_tasks(root: Path, split: str) -> list[Task]:
    """The tasks of `list_games`; logs one warning about the skipped files."""
    listing = list_games(root, split)
    if listing.left_out:
        warn_once(f"{root}: {listing.line()}")
    return list(listing.tasks)


def _why_left_out(path: Path) -> str | None:
    """The reason why a file is not a playable game, or None if it is.

    Reads only the end of the file, where published files have the key `solvable`, and all of it if the key is not
    there.
    """
    if not path.is_file():
        return "not a file"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _END_BYTES))
            end = file.read(_END_BYTES)
            found = _SOLVABLE.search(end)
            if found is None or not end.rstrip().endswith(b"}"):
                file.seek(0)
                return _why_not_solvable(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return None if found.group(1) == b"true" else "marked unsolvable"


def _why_not_solvable(content: bytes) -> str | None:
    if not content.strip():
        return "empty"
    if len(content) > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES} bytes"
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "not valid JSON (incomplete download?)"
    if not isinstance(data, dict) or "solvable" not in data:
        return "without the key `solvable`"
    return None if data["solvable"] else "marked unsolvable"


def read_game(path: Path) -> dict:
    """Reads the JSON of a game file. Raises `UserError` with the file and the location of the error."""
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would block forever
            raise UserError(f"cannot read {path}: it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES} bytes: not an ALFWorld game")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    try:
        data = replace_surrogates_in(json.loads(text)) if may_contain_surrogates(text) else json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid JSON: {str(error)[:80] or 'nested too deeply'}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: contains a JSON {type(data).__name__}, expected an object with the key pddl_problem")
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(data.get(key), str):
            raise UserError(f"{path}: the key {key!r} is missing or not a string: not a game.tw-pddl file")
    return data


def load_world(path: Path) -> World:
    """Loads the world of a game file.

    Raises `UserError` for an invalid file, and `UnsupportedGame` for a game that only the reference may support.
    """
    data = read_game(path)
    metadata = data.get("paw_fast")
    if (
        not data["pddl_domain"]
        and not data["grammar"]
        and isinstance(metadata, dict)
        and isinstance(metadata.get("task"), str)
    ):
        rules, task = Rules(WHEEL), metadata["task"]
        if not is_plain(task):
            raise UserError(f"{path}: its task contains unsupported characters: {show(task)}")
    else:
        known = read_rules(data["pddl_domain"], data["grammar"])
        if isinstance(known, str):
            raise UnsupportedGame(known)
        rules, task = known
    try:
        return World(parse_problem(data["pddl_problem"]), rules, task)
    except TooLarge as error:
        raise UserError(f"{path}: in pddl_problem: {error}; --env.engine textworld has other limits") from None
    except PddlError as error:
        raise UserError(f"{path}: in pddl_problem: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: in pddl_problem: the goal is nested too deeply") from None


def task_content(env: object, task: Task) -> str:
    """What makes a game what it is: its problem and task, and for official games the rules in its file.

    Generated files hold the rules only where the `alfworld` extra is installed.
    """
    assert task.path is not None
    data = read_game(task.path)
    metadata = data.get("paw_fast")
    rest = [metadata.get("task")] if isinstance(metadata, dict) else [data["pddl_domain"], data["grammar"]]
    return json.dumps([data["pddl_problem"], *rest])


@lru_cache(maxsize=1)
def reference_texts() -> tuple[str, str] | None:
    """(PDDL domain, text grammar) of the installed `alfworld` package, or None. Does not import the package."""
    try:
        spec = importlib.util.find_spec("alfworld")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        domain, grammar = Path(folder, "data", "alfred.pddl"), Path(folder, "data", "alfred.twl2")
        if domain.is_file() and grammar.is_file():
            return domain.read_text(encoding="utf-8"), grammar.read_text(encoding="utf-8")
    return None


def game_json(game: Game) -> str:
    """The contents of a generated game's game.tw-pddl file."""
    domain, grammar = reference_texts() or ("", "")
    data = {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", game.sentence),
        "pddl_problem": game.problem,
        "walkthrough": list(game.plan),
        "paw_fast": {"version": game.version, "task": game.sentence},
        "solvable": True,
    }
    return json.dumps(data)


def trajectory_json(game: Game) -> str:
    """The contents of a generated game's traj_data.json: the part of ALFRED's format that ALFWorld reads."""
    lamp = game.task_type == "look_at_obj_in_light"
    params = {
        "mrecep_target": "",
        "object_sliced": False,
        "object_target": game.target,
        "parent_target": "" if lamp else game.goal,
        "toggle_target": game.goal if lamp else "",
    }
    scene = {"floor_plan": f"FloorPlan{game.scene}", "scene_num": game.scene}
    annotations = {"anns": [{"task_desc": game.sentence, "high_descs": list(game.plan)}]}
    return json.dumps(
        {
            "task_id": game.folder.rsplit("/", 1)[1],
            "task_type": game.task_type,
            "pddl_params": params,
            "scene": scene,
            "turk_annotations": annotations,
        }
    )


def distinct_games(seed: int, size: str, split: str, num: int, seen: set[tuple] | None = None) -> Iterator[Game]:
    """Yields the first `num` games of a split, without duplicates and without those in `seen`, which is extended.

    Raises `UserError` if the rooms of this size do not allow that many distinct games.
    """
    seen = set() if seen is None else seen
    for number in range(num):
        stop_signals.check()
        for attempt in range(1000):
            game = make_game(seed, size, split, number, attempt)
            if game.fingerprint not in seen:
                break
        else:
            raise UserError(
                f"{size} rooms allow only {number} distinct games in the split {split}, {num} were requested"
            )
        seen.add(game.fingerprint)
        yield game


def generated_root(size: str, seed: int, counts: dict[str, int], cache_dir: str | os.PathLike[str] | None) -> Path:
    """The json_2.1.1 folder in the cache of these generated games; `make_split` fills it.

    Raises `UserError` for an unknown size or a count below 1.
    """
    if size not in SIZES:
        raise UserError(f"no game size {size!r}: choose {', '.join(SIZES)}")
    for split, num in counts.items():
        if num < 1:
            raise UserError(f"{num} games requested in the split {split}, expected at least 1")
    kind = "ref" if reference_texts() else "own"  # without the extra, the files lack its domain and grammar
    name = f"{size}-seed{seed}-{'-'.join(str(counts[split]) for split in SPLITS)}-v{GENERATOR_VERSIONS[size]}-{kind}"
    return cache_folder(cache_dir) / "alfworld" / name / "json_2.1.1"


def make_split(root: Path, size: str, seed: int, counts: dict[str, int], split: str) -> None:
    """Generates the games of a split in `root`, unless they are there and as they were made.

    Files that are missing, changed or added are found by the manifest in the split's folder; the games are then made
    again. Of several processes one makes them and the others wait. Raises `UserError` when it cannot write.
    """
    folder = root / split
    try:
        cached_folder(
            folder, lambda hidden: _write_split(hidden, size, seed, counts, split), "generated games",
            root.parent / f".{split}.lock",
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"cannot write generated games to {error.filename or root}: {error.strerror}; "
            "set XDG_CACHE_HOME or the cache folder to a writable folder"
        ) from None


def _write_split(hidden: Path, size: str, seed: int, counts: dict[str, int], split: str) -> None:
    seen: set[tuple] = set()
    total = counts[split] + (counts["train"] if split == "valid_seen" else 0)
    with progress.phase("generating games", total, "games", name=f"generating games ({split})") as made:
        if split == "valid_seen":  # the same rooms as train, so the same game could come twice
            for _ in distinct_games(seed, size, "train", counts["train"], seen):
                made()
        for game in distinct_games(seed, size, split, counts[split], seen):
            folder = hidden / game.folder
            folder.mkdir(parents=True)
            (folder / "game.tw-pddl").write_text(game_json(game), encoding="utf-8")
            (folder / "traj_data.json").write_text(trajectory_json(game), encoding="utf-8")
            made()
