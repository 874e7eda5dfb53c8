"""Reads the two PDDL texts of a game file: the problem into a `Problem`, the domain into a fingerprint.

Only what ALFWorld's problems use is understood. What is malformed raises `PddlError` with the line; what is
well-formed but outside of it is left to the caller, who may hand the file to the reference engine.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

MAX_PROBLEM_CHARS = 2_000_000  # official problems have up to 75,000; more is not a household
MAX_DEPTH = 64  # official goals nest 10 deep

_TOKEN = re.compile(r"[()]|[^\s();]+|;[^\n]*")

_SURROGATE = re.compile("[\ud800-\udfff]")


class PddlError(ValueError):
    """What is wrong with a PDDL text, with the line where known."""


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
        raise PddlError(f"{len(text)} characters long, at most {MAX_PROBLEM_CHARS} are read")
    if (lone := _SURROGATE.search(text)) is not None:
        raise PddlError(f"line {text.count(chr(10), 0, lone.start()) + 1}: half of a surrogate pair, which is no text")
    text = text.lower()
    stack: list[list] = []
    root: list | None = None
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token == "(":
            if root is not None:
                raise PddlError(f"line {_line(text, i)}: text after the last closing parenthesis")
            if len(stack) >= MAX_DEPTH:
                raise PddlError(f"line {_line(text, i)}: nested deeper than {MAX_DEPTH} levels")
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
    for name in (":objects", ":init", ":goal"):
        if name not in sections:
            raise PddlError(f"lacks the section ({name} ...)")
    if len(sections[":goal"]) != 1 or not isinstance(sections[":goal"][0], list):
        raise PddlError("the section (:goal ...) must hold one formula")
    objects = _typed_names(sections[":objects"])
    facts = []
    for node in sections[":init"]:
        if not isinstance(node, list) or not node:
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


def _typed_names(items: list) -> dict[str, str]:
    names: dict[str, str] = {}
    pending: list[str] = []
    it = iter(items)
    for item in it:
        if not isinstance(item, str):
            raise PddlError(f"expected a name in (:objects ...), got {show(item)}")
        if item != "-":
            pending.append(item)
            continue
        kind = next(it, None)
        if not isinstance(kind, str) or not pending:
            raise PddlError("(:objects ...) has a '-' without a name before it or a type after it")
        for name in pending:
            if names.setdefault(name, kind) != kind:
                raise PddlError(f"(:objects ...) declares {show(name)} as {show(names[name])} and as {show(kind)}")
        pending = []
    if pending:
        raise PddlError(f"(:objects ...) gives no type for {show(pending[0])}")
    return names


def typed_variables(items: list) -> dict[str, str]:
    """The variables of a quantifier's list, `?r - receptacle ?o - object`, by name."""
    return _typed_names(items)


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
