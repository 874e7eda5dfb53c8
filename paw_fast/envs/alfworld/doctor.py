"""Checks ALFWorld's data for `paw-fast doctor`: the official games, or the games generated so far."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.envs.alfworld.games import OFFICIAL_COUNTS, dataset_root, list_games
from paw_fast.envs.base import Finding, Gap, one_line
from paw_fast.runs.atomic_files import cache_folder


def check_data() -> Finding:
    """Counts of playable games in each split of ALFWORLD_DATA, or of the generated sets of games in the cache."""
    named = os.environ.get("ALFWORLD_DATA")
    data: dict[str, Any] = {"source": "ALFWORLD_DATA" if named else "generated", "path": named, "problem": None}
    try:
        data |= _official(Path(named)) if named else _generated()
    except Exception as error:  # a folder that cannot be read is a finding
        data["problem"] = one_line(error)
    return Finding(data, _text(data), tuple(_gaps(data)))


def _official(folder: Path) -> dict[str, Any]:
    root = dataset_root(folder)
    listings = [list_games(root, split) for split in _splits(root)]
    splits = {one.split: len(one.tasks) for one in listings}
    return {
        "splits": splits,
        "official": OFFICIAL_COUNTS,
        "left_out": {one.split: dict(one.left_out) for one in listings if one.left_out},
        "problem": None if any(splits.values()) else f"no playable game.tw-pddl in {root}",
    }


def _generated() -> dict[str, Any]:
    cache = cache_folder() / "alfworld"
    sets = sorted(path for path in cache.glob("[!.]*") if (path / "json_2.1.1").is_dir())
    return {"path": str(cache), "sets": {path.name: _count(path / "json_2.1.1") for path in sets}}


def _splits(root: Path) -> list[str]:
    return [name for name in ("train", "valid_seen", "valid_unseen") if (root / name).is_dir()]


def _count(root: Path) -> dict[str, int]:
    return {name: sum(1 for _ in (root / name).glob("*/*/game.tw-pddl")) for name in _splits(root)}


def _gaps(data: Mapping[str, Any]) -> list[Gap]:
    what = "ALFWorld data"
    if data["problem"]:
        return [Gap(what, data["problem"], "point ALFWORLD_DATA at the folder of json_2.1.1, or unset it")]
    if data["source"] == "generated" and not data.get("sets"):
        return [Gap(what, "ALFWORLD_DATA is not set", "nothing to do: games are generated at the first run", False)]
    splits = data.get("splits", {})
    few = [
        f"{splits.get(split, 0)} of {number} in {split}"
        for split, number in data.get("official", {}).items()
        if splits.get(split, 0) < number
    ]
    if few:
        why = f"not the whole official set: {', '.join(few)}"
        return [Gap(what, why, "run alfworld-download again if it should be", False)]
    return []


def _text(data: Mapping[str, Any]) -> str:
    if data["source"] == "ALFWORLD_DATA":
        found = ", ".join(
            f"{split} {number} ({data['official'][split]} in the official set)"
            for split, number in data.get("splits", {}).items()
        )
        left_out = "".join(f"; left out of {split}: {_words(why)}" for split, why in data.get("left_out", {}).items())
        return f"{data['path']}: {found or data['problem']}{left_out}"
    if data.get("sets"):
        sets = "; ".join(f"{name} ({_words(splits)})" for name, splits in data["sets"].items())
        return f"generated games in {data['path']}: {sets}"
    return "games are generated when they are needed"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {number}" for key, number in counts.items())
