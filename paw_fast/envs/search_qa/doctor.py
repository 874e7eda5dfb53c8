"""Checks the cached indexes of search question answering for `paw-fast doctor`."""

from __future__ import annotations

from typing import Any

from paw_fast.envs.base import Finding, Gap, one_line
from paw_fast.envs.search_qa.retrieval import index_cache
from paw_fast.envs.search_qa.retrieval.store import read_meta


def check_data() -> Finding:
    """Passages of every index in the cache: those of generated facts and of corpus files that were used."""
    data: dict[str, Any] = {"path": None, "problem": None}
    try:
        cache = index_cache()
        data["path"] = str(cache)
        data["indexes"], broken = {}, []
        for folder in sorted(path for path in cache.glob("[!.]*") if path.is_dir()):
            try:
                data["indexes"][folder.name] = read_meta(folder)["num_passages"]
            except Exception as error:  # one that cannot be read hides none of the others
                broken.append(one_line(error))
        data["problem"] = "; ".join(broken) or None
    except Exception as error:  # a cache that cannot be read is a finding
        data["problem"] = one_line(error)
    what, indexes = "search data", data.get("indexes")
    text = "facts are generated, and a corpus indexed, when they are needed"
    if indexes:
        found = ", ".join(f"{name} ({count:,} passages)" for name, count in indexes.items())
        text = f"indexes in {data['path']}: {found}"
    gaps: tuple[Gap, ...] = ()
    if data["problem"]:
        fix = f"remove that folder of {data['path']}: it is made again when needed"
        gaps = (Gap(what, data["problem"], fix),)
    elif not indexes:
        fix = "nothing to do: the first run generates facts, or indexes the file that --env.corpus names"
        gaps = (Gap(what, "nothing is indexed yet", fix, False),)
    return Finding(data, text, gaps)
