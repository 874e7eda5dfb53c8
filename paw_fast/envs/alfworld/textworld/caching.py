"""Installs caches in the reference engine that make it about twenty times faster without changing its output.

The engine spends most of its time parsing the same grammar rules at every step, deep-copying them, and translating the
same PDDL problem four times per episode. Caches replace these public functions:

- `textworld.logic.Rule.parse_conjunctive_query`, `CSGParser.parse` and `PddlLogicParser.parse`: cached by text;
- `deepcopy` as imported by `textworld.envs.pddl.textgen`: replaced by a shallower copy of the few types it is used on;
- `fast_downward.pddl2sas`: cached by problem.

Only the exact releases in `CHECKED_WITH` are patched; for other releases, or if a name is missing, nothing is patched
and `install_caches` returns the reason. A test compares the outputs with and without caches byte by byte.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

CHECKED_WITH = {"textworld": "1.7.0", "fast-downward-textworld": "20.6.4"}
MAX_PARSED = 5_000
MAX_PROBLEMS = 16  # a translated problem holds 2 to 10 MB


def install_caches() -> str | None:
    """Installs either all caches or none. Returns None on success, else the reason."""
    for package, checked in CHECKED_WITH.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
        if found != checked:
            return f"{package} is {found}, but the caches were checked with {checked} only"
    try:
        replacements = _replacements()
    except (ImportError, AttributeError) as error:
        return f"a name to be replaced is missing in textworld: {error}"
    for holder, name, value in replacements:
        setattr(holder, name, value)
    return None


def _replacements() -> list[tuple[Any, str, Any]]:
    """(module or class, attribute name, replacement) of each patch."""
    import fast_downward
    from textworld.envs.pddl import textgen
    from textworld.envs.pddl.logic.parser import PddlLogicParser
    from textworld.envs.pddl.textgen.parser import CSGParser
    from textworld.logic import Rule

    if textgen.deepcopy is not copy.deepcopy:
        raise AttributeError("textgen.deepcopy is not copy.deepcopy")
    parse_query = _cached(Rule.parse_conjunctive_query, MAX_PARSED)
    return [
        (Rule, "parse_conjunctive_query", staticmethod(parse_query)),
        (CSGParser, "parse", _cached_parse(CSGParser.parse)),
        (PddlLogicParser, "parse", _cached_parse(PddlLogicParser.parse)),
        (textgen, "deepcopy", _ShallowCopier(textgen)),
        (fast_downward, "pddl2sas", _cached(fast_downward.pddl2sas, MAX_PROBLEMS)),
    ]


def _cached(function: Callable[..., Any], most: int) -> Callable[..., Any]:
    return functools.lru_cache(most)(function)


def _cached_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Caches a parser's results by text and settings; parsed models are never modified."""
    kept: OrderedDict[tuple, Any] = OrderedDict()

    @functools.wraps(parse)
    def parse_once(self: Any, text: str, **settings: Any) -> Any:
        key = (text, *sorted(settings.items()))
        if key not in kept:
            kept[key] = parse(self, text, **settings)
            if len(kept) > MAX_PARSED:
                kept.popitem(last=False)
        return kept[key]

    return parse_once


class _ShallowCopier:
    """Replaces `copy.deepcopy` where the grammar copies symbols and dictionaries of names.

    A symbol's `context` is replaced after each copy, so symbols are copied one level deep, together with the inner
    symbol of a list or condition. Names are shared, since nothing modifies them.
    """

    def __init__(self, textgen: Any) -> None:
        self._symbol, self._list, self._condition = textgen.Symbol, textgen.ListSymbol, textgen.ConditionalSymbol

    def __call__(self, value: Any) -> Any:
        if type(value) is list:
            return [self(item) for item in value]
        if type(value) is dict:
            return dict(value)
        if not isinstance(value, self._symbol):
            return copy.deepcopy(value)
        duplicate = copy.copy(value)
        if isinstance(value, self._list):
            duplicate.symbol = self(value.symbol)
        elif isinstance(value, self._condition):
            duplicate.expression = self(value.expression)
        return duplicate
