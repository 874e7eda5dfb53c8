"""Reads the two PDDL texts of a game file: the problem into a `Problem`, the domain into a fingerprint.

Only what ALFWorld's problems use is understood. What is malformed raises `PddlError` with the line; what the reference
engine may take all the same (it checks little) raises `UnsupportedGame`, and the caller may hand the file to it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

MAX_PROBLEM_CHARS = 2_000_000  # official problems have up to 75,000; more is not a household
MAX_DEPTH = 500  # official goals nest 10 deep; the reference ends with a RecursionError at 492

KINDS = {"agent", "location", "receptacle", "object", "rtype", "otype"}
# The kinds of the arguments of each predicate.
SIGNATURES = {
    "atlocation": ("agent", "location"),
    "receptacleatlocation": ("receptacle", "location"),
    "objectatlocation": ("object", "location"),
    "openable": ("receptacle",),
    "opened": ("receptacle",),
    "inreceptacle": ("object", "receptacle"),
    "isreceptacleobject": ("object",),
    "inreceptacleobject": ("object", "object"),
    "isreceptacleobjectfull": ("object",),
    "wasinreceptacle": ("object", "receptacle"),
    "checked": ("receptacle",),
    "examined": ("location",),
    "receptacletype": ("receptacle", "rtype"),
    "cancontain": ("rtype", "otype"),
    "objecttype": ("object", "otype"),
    "holds": ("agent", "object"),
    "holdsany": ("agent",),
    "holdsanyreceptacleobject": ("agent",),
    "full": ("receptacle",),
    "isclean": ("object",),
    "cleanable": ("object",),
    "ishot": ("object",),
    "heatable": ("object",),
    "iscool": ("object",),
    "coolable": ("object",),
    "pickupable": ("object",),
    "moveable": ("object",),
    "toggleable": ("object",),
    "ison": ("object",),
    "istoggled": ("object",),
    "sliceable": ("object",),
    "issliced": ("object",),
}

# A question mark begins a name, as in the reference: "?o?r" are two.
_TOKEN = re.compile(r"[()]|\??[^\s();?]+|\?|;[^\n]*")
_COMMENT = re.compile(r";[^\n]*")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class PddlError(ValueError):
    """What is wrong with a PDDL text, with the line where known."""


class TooLarge(PddlError):
    """Larger than this engine takes, which bounds the time and memory that malicious files can use."""


class UnsupportedGame(ValueError):
    """Not what this engine plays, though the reference may: one clause that begins with "its"."""


@dataclass(frozen=True)
class Problem:
    """A parsed problem; every name is lower-cased, as the reference does.

    objects: name -> type. facts: initial facts, in file order. goal: nested lists of names.
    """

    objects: dict[str, str]
    facts: tuple[tuple[str, ...], ...]
    goal: list


def read_sexpr(text: str) -> list:
    """The nested lists of the one expression in `text`, lower-cased. Raises `PddlError` with the line."""
    if len(text) > MAX_PROBLEM_CHARS:
        raise TooLarge(f"{len(text)} characters long, at most {MAX_PROBLEM_CHARS} are read")
    if not text.isascii():
        text = _COMMENT.sub("", text)
        if (other := _NOT_ASCII.search(text)) is not None:
            line = text.count("\n", 0, other.start()) + 1
            raise PddlError(f"line {line}: the character {show(other.group())} outside of a comment is not ASCII")
    text = text.lower()
    stack: list[list] = []
    root: list | None = None
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token == "(":
            if root is not None:
                raise PddlError(f"line {_line(text, i)}: text after the last closing parenthesis")
            if len(stack) >= MAX_DEPTH:
                raise TooLarge(f"line {_line(text, i)}: nested deeper than {MAX_DEPTH} levels")
            stack.append([])
        elif token == ")":
            if not stack:
                raise PddlError(f"line {_line(text, i)}: a closing parenthesis too many")
            node = stack.pop()
            if stack:
                stack[-1].append(node)
            else:
                root = node
        elif token[0] != ";":
            if not stack:
                raise PddlError(f"line {_line(text, i)}: {show(token)} stands outside of parentheses")
            stack[-1].append(token)
    if stack:
        raise PddlError(f"ends inside {len(stack)} open parentheses (truncated?)")
    if root is None:
        raise PddlError("holds no PDDL expression")
    return root


def _line(text: str, index: int) -> int:
    """The line of the token with that number."""
    for i, match in enumerate(_TOKEN.finditer(text)):
        if i == index:
            return text.count("\n", 0, match.start()) + 1
    raise AssertionError


def parse_problem(text: str) -> Problem:
    """Reads `(define (problem ...) (:domain ...) (:objects ...) (:init ...) (:goal ...))`."""
    root = read_sexpr(text)
    if not root or root[0] != "define":
        raise PddlError("does not begin with (define ...)")
    sections: dict[str, list] = {}
    for node in root[1:]:
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise PddlError(f"expected a section such as (:init ...), got {show(node)}")
        if node[0] in sections:
            raise PddlError(f"has the section {show(node[0])} twice")
        sections[node[0]] = node[1:]
        if node[0] == ":goal":
            break  # the reference reads no further
    for name in (":init", ":goal"):
        if name not in sections:
            raise PddlError(f"lacks the section ({name} ...)")
    if len(sections[":goal"]) != 1 or not isinstance(sections[":goal"][0], list):
        raise PddlError("the section (:goal ...) must hold one formula")
    objects = typed_names(sections.get(":objects", []))
    facts = []
    for node in sections[":init"]:
        if isinstance(node, str) or node[:1] == ["not"]:
            raise UnsupportedGame(f"its (:init ...) holds {show(node)}, which is not a plain fact")
        if not node:
            raise PddlError(f"expected a fact in (:init ...), got {show(node)}")
        if node[0] == "=":  # distances and costs, of which nothing is observable
            continue
        if not all(isinstance(item, str) for item in node):
            raise PddlError(f"expected a plain fact in (:init ...), got {show(node)}")
        for name in node[1:]:
            if name not in objects:
                raise PddlError(f"the fact {show(node)} names {show(name)}, which (:objects ...) does not declare")
        facts.append(tuple(node))
    return Problem(objects=objects, facts=tuple(facts), goal=sections[":goal"][0])


def typed_names(items: list) -> dict[str, str]:
    """The types of names, by name, from `agent1 - agent ?r ?s - receptacle ...`; without a type it is object."""
    names: dict[str, str] = {}
    pending: list[str] = []
    it = iter(items)
    for item in it:
        if not isinstance(item, str):
            raise PddlError(f"expected a name in a list of names, got {show(item)}")
        if item != "-":
            pending.append(item)
            continue
        kind = next(it, None)
        if not isinstance(kind, str):
            raise PddlError("a list of names ends in a '-' without a type after it, or has a list for a type")
        _declare(names, pending, kind)
        pending = []
    _declare(names, pending, "object")
    return names


def _declare(names: dict[str, str], new: list[str], kind: str) -> None:
    for name in new:
        if names.setdefault(name, kind) != kind:
            raise PddlError(f"a list of names declares {show(name)} as {show(names[name])} and as {show(kind)}")


def show(node: object) -> str:
    """A piece of a PDDL text for a message: at most 80 characters, all of them printable ASCII."""
    text = _text(node) if isinstance(node, list) else repr(node)
    text = ascii(text)[1:-1] if not (text.isascii() and text.isprintable()) else text
    return text if len(text) <= 80 else text[:77] + "..."


def _text(node: object) -> str:
    """As much of the nested lists' text as `show` may need."""
    if not isinstance(node, list):
        return str(node)[:90]
    return f"({' '.join(map(_text, node[:20]))})"


@lru_cache(maxsize=64)
def fingerprint(text: str) -> str:
    """SHA-256 of a PDDL text's tokens: white space, comments and upper case do not count."""
    tokens = (t for t in _TOKEN.findall(text.lower()) if t[0] != ";")
    return hashlib.sha256(" ".join(tokens).encode("utf-8", "surrogatepass")).hexdigest()
