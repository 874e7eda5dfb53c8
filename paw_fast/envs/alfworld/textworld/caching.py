"""Makes the reference engine some twenty times faster without changing what it says.

It spends its time parsing the same few grammar rules again at every step, copying them deeply, and translating the
same PDDL problem four times for each episode. All of that can be kept from outside through public names:

- `textworld.logic.Rule.parse_conjunctive_query` and `CSGParser.parse`, `PddlLogicParser.parse`: remembered by text;
- `deepcopy`, a name that `textworld.envs.pddl.textgen` imports: replaced by a copy of the few types it is used on;
- `fast_downward.pddl2sas`: remembered by problem.

Only the exact releases this was checked with are touched; with others, or where a name is missing, nothing is, and
`speed_up` says why. A test holds the outputs of both together, byte for byte.
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


def speed_up() -> str | None:
    """Puts the caches in place, all or none. Returns None, or why it was not done."""
    for package, checked in CHECKED_WITH.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
        if found != checked:
            return f"{package} is {found}, this was checked with {checked}"
    try:
        replacements = _replacements()
    except (ImportError, AttributeError) as error:
        return f"textworld lacks a name that is to be replaced: {error}"
    for holder, name, value in replacements:
        setattr(holder, name, value)
    return None


def _replacements() -> list[tuple[Any, str, Any]]:
    """(module or class, name, what takes its place)."""
    import fast_downward
    from textworld.envs.pddl import textgen
    from textworld.envs.pddl.logic.parser import PddlLogicParser
    from textworld.envs.pddl.textgen.parser import CSGParser
    from textworld.logic import Rule

    if textgen.deepcopy is not copy.deepcopy:
        raise AttributeError("textgen.deepcopy is not copy.deepcopy")
    parse_query = _remember(Rule.parse_conjunctive_query, MAX_PARSED)
    return [
        (Rule, "parse_conjunctive_query", staticmethod(parse_query)),
        (CSGParser, "parse", _remember_parse(CSGParser.parse)),
        (PddlLogicParser, "parse", _remember_parse(PddlLogicParser.parse)),
        (textgen, "deepcopy", _Copier(textgen)),
        (fast_downward, "pddl2sas", _remember(fast_downward.pddl2sas, MAX_PROBLEMS)),
    ]


def _remember(function: Callable[..., Any], most: int) -> Callable[..., Any]:
    return functools.lru_cache(most)(function)


def _remember_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Remembers a parser's results by text and settings; parsed models are read, never written."""
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


class _Copier:
    """Stands in for `copy.deepcopy` where the grammar copies symbols and the dictionaries of names.

    A symbol's `context` is replaced after each copy, so symbols are copied one level deep, and a list's or
    condition's inner symbol with them. Names are shared: nothing writes to them.
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
        twin = copy.copy(value)
        if isinstance(value, self._list):
            twin.symbol = self(value.symbol)
        elif isinstance(value, self._condition):
            twin.expression = self(value.expression)
        return twin
