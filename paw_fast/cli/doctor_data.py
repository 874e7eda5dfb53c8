"""What `paw-fast doctor` finds of the environments' data: official sets, generated games and worlds, indexes.

Looking never raises: what cannot be read is the `problem` of its record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def data_found() -> dict[str, Any]:
    """What is there for each environment, as plain JSON-able values."""
    return {"alfworld": _alfworld_data(), "webshop": _webshop_data(), "search": _search_data()}


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def _alfworld_data() -> dict[str, Any]:
    """Counts of playable games per split of ALFWORLD_DATA, or of the sets of games generated so far."""
    named = os.environ.get("ALFWORLD_DATA")
    result: dict[str, Any] = {"source": "ALFWORLD_DATA" if named else "generated", "path": named, "problem": None}
    try:
        from paw_fast.envs.alfworld.games import OFFICIAL_COUNTS, dataset_root, list_games
        from paw_fast.runs.atomic_files import cache_folder

        if named:
            root = dataset_root(named)
            listings = [list_games(root, split) for split in _splits(root)]
            result["splits"] = {one.split: len(one.tasks) for one in listings}
            result["official"] = OFFICIAL_COUNTS
            result["left_out"] = {one.split: dict(one.left_out) for one in listings if one.left_out}
            if not any(result["splits"].values()):
                result["problem"] = f"no playable game.tw-pddl in {root}"
        else:
            cache = cache_folder() / "alfworld"
            sets = sorted(path for path in cache.glob("[!.]*") if (path / "json_2.1.1").is_dir())
            result["path"] = str(cache)
            result["sets"] = {path.name: _count(path / "json_2.1.1") for path in sets}
    except Exception as error:  # a folder that cannot be read is a finding
        result["problem"] = one_line(error)
    return result


def _splits(root: Path) -> list[str]:
    return [name for name in ("train", "valid_seen", "valid_unseen") if (root / name).is_dir()]


def _count(root: Path) -> dict[str, int]:
    return {name: sum(1 for _ in (root / name).glob("*/*/game.tw-pddl")) for name in _splits(root)}


def _webshop_data() -> dict[str, Any]:
    named = os.environ.get("WEBSHOP_DATA")
    problem = f"WEBSHOP_DATA names {named}, which is no folder" if named and not Path(named).is_dir() else None
    result: dict[str, Any] = {"path": named, "problem": problem}
    if named and not problem:
        try:
            from paw_fast.envs.webshop.factory import find_files

            result["files"] = [path.name for path in find_files(Path(named), None, False) if path is not None]
        except Exception as error:  # a folder without the files is a finding
            result["problem"] = one_line(error)
    return result


def _search_data() -> dict[str, Any]:
    """Passages of every index in the cache: those of generated worlds and of corpus files that were used."""
    result: dict[str, Any] = {"path": None, "problem": None}
    try:
        from paw_fast.envs.search_qa.retrieval import cache_folder
        from paw_fast.envs.search_qa.retrieval.store import read_meta

        cache = cache_folder()
        result["path"] = str(cache)
        result["indexes"], broken = {}, []
        for folder in sorted(path for path in cache.glob("[!.]*") if path.is_dir()):
            try:
                result["indexes"][folder.name] = read_meta(folder)["num_passages"]
            except Exception as error:  # one that cannot be read hides none of the others
                broken.append(one_line(error))
        if broken:
            result["problem"] = "; ".join(broken)
    except Exception as error:  # a cache that cannot be read is a finding
        result["problem"] = one_line(error)
    return result


def data_gaps(data: Mapping[str, Any], add: Any) -> None:
    """Calls `add(what, why, mend, needed)` for each gap in what `data_found` gave."""
    alfworld, webshop, search = data["alfworld"], data["webshop"], data["search"]
    if alfworld["problem"]:
        add("ALFWorld data", alfworld["problem"], "point ALFWORLD_DATA at the folder of json_2.1.1, or unset it")
    elif alfworld["source"] == "generated" and not alfworld.get("sets"):
        add("ALFWorld data", "ALFWORLD_DATA is not set", "nothing to do: games are generated at the first run", False)
    elif few := _fewer_than_official(alfworld):
        add("ALFWorld data", f"not the whole official set: {few}", "run alfworld-download again if it should be", False)
    if webshop["problem"]:
        add("WebShop data", webshop["problem"], "point WEBSHOP_DATA at the folder of the product files, or unset it")
    if search["problem"]:
        add("search data", search["problem"], f"remove that folder of {search['path']}: it is made again when needed")
    elif not search.get("indexes"):
        add("search data", "nothing is indexed yet", "nothing to do: the first run generates a world, or indexes "
            "the file that --env.corpus names", False)  # fmt: skip


def _fewer_than_official(alfworld: Mapping[str, Any]) -> str:
    """The splits that have fewer games than the official ones; empty where none has."""
    splits = alfworld.get("splits", {})
    few = [
        f"{splits.get(split, 0)} of {number} in {split}"
        for split, number in alfworld.get("official", {}).items()
        if splits.get(split, 0) < number
    ]
    return ", ".join(few)


def data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table's rows on data: a name and what was found, in words."""
    alfworld, webshop, search = data["alfworld"], data["webshop"], data["search"]
    if alfworld["source"] == "ALFWORLD_DATA":
        found = ", ".join(
            f"{split} {number} ({alfworld['official'][split]} in the official set)"
            for split, number in alfworld.get("splits", {}).items()
        )
        left_out = "".join(
            f"; left out of {split}: {words(why)}" for split, why in alfworld.get("left_out", {}).items()
        )
        text = f"{alfworld['path']}: {found or alfworld['problem']}{left_out}"
    elif alfworld.get("sets"):
        text = "; ".join(f"{name} ({words(splits)})" for name, splits in alfworld["sets"].items())
        text = f"generated games in {alfworld['path']}: {text}"
    else:
        text = "games are generated when they are needed"
    rows = [("ALFWorld data", text)]
    text = "WEBSHOP_DATA is not set"
    if webshop["path"]:
        text = f"{webshop['path']}: {', '.join(webshop.get('files', ())) or webshop['problem']}"
    rows.append(("WebShop data", text))
    text = "a world is generated, and a corpus indexed, when it is needed"
    if search.get("indexes"):
        found = ", ".join(f"{name} ({count:,} passages)" for name, count in search["indexes"].items())
        text = f"indexes in {search['path']}: {found}"
    return [*rows, ("search data", text)]


def words(value: Any) -> str:
    """A JSON-able value as a person would write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
