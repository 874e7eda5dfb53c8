"""Adds up what several environments have counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merged(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts of several environments as one: sums, and shares weighted by the searches they are shares of.

    >>> merged([{"retrieval/queries": 1.0, "retrieval/known_share": 1.0}, {"retrieval/queries": 3.0}])
    {'retrieval/queries': 4.0, 'retrieval/known_share': 0.25}
    """
    out: dict[str, float] = {}
    for one in counts:
        for name, value in one.items():
            weight = one["retrieval/queries"] if name.endswith("_share") else 1.0
            out[name] = out.get(name, 0.0) + weight * value
    total = max(1.0, out.get("retrieval/queries", 0.0))
    return {name: value / total if name.endswith("_share") else value for name, value in out.items()}
