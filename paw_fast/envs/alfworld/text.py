"""Defines the two text grammars of ALFWorld, and detects which one a game file uses.

`WHEEL` is the grammar in the `alfworld` 0.4.2 package, `OFFICIAL` the one in the json_2.1.1 game files. A file is
identified by the hashes of its grammar (without the task's sentence) and of its PDDL domain; supported domains are
listed in `_DOMAINS`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from paw_fast.envs.alfworld.pddl import fingerprint

NOTHING_HAPPENS = "Nothing happens."
WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
TASK_PREFIX = "Your task is to: "
MIDDLE = "You are in the middle of a room. Looking quickly around you, you see "

_COMMANDS_HELP = (
    ("look", "look around your current location"),
    ("inventory", "check your current inventory"),
    ("go to (receptacle)", "move to a receptacle"),
    ("open (receptacle)", "open a receptacle"),
    ("close (receptacle)", "close a receptacle"),
    ("take (object) from (receptacle)", "take an object from a receptacle"),
    ("move (object) to (receptacle)", "place an object in or on a receptacle"),
    ("examine (something)", "examine a receptacle or an object"),
    ("use (object)", "use an object"),
    ("heat (object) with (receptacle)", "heat an object using a receptacle"),
    ("clean (object) with (receptacle)", "clean an object using a receptacle"),
    ("cool (object) with (receptacle)", "cool an object using a receptacle"),
    ("slice (object) with (object)", "slice an object using a sharp object"),
)


def _help_text() -> str:
    # As in the reference, the line of "move" is indented by two spaces less than the others.
    lines = []
    for usage, meaning in _COMMANDS_HELP:
        width = 33 if usage.startswith("move") else 35
        lines.append(f"  {usage + ':':<{width - 1}}{meaning}")
    return "Available commands:\n" + "\n".join(lines) + "\n"


HELP = _help_text()


@dataclass(frozen=True)
class Dialect:
    """The text templates of a grammar: {o} is an object, {r} a receptacle, {place} a location, {list} a listing.

    article: precedes each name in a listing. facing_state: whether `look` adds "(is open)" to openable receptacles.
    """

    name: str
    article: str
    facing_state: bool
    arrive: str
    open: str
    close: str
    take: str
    put: str
    put_command: str
    is_open: str
    is_closed: str
    on: str
    facing: str
    use: str
    heat: str
    clean: str
    cool: str
    slice: str

    def listing(self, names: Iterable[str]) -> str:
        """Joins names with articles as the grammar does: "a mug 2, and a mug 1", or "nothing"."""
        return join_list([self.article + name for name in names])


def join_list(items: list[str]) -> str:
    """Joins items with ", " and a final ", and "; returns "nothing" for an empty list."""
    if len(items) > 1:
        return ", ".join(items[:-1]) + ", and " + items[-1]
    return items[0] if items else "nothing"


WHEEL = Dialect(
    name="wheel",
    article="a ",
    facing_state=False,
    arrive="You arrive at {r}. ",
    open="You open the {r}. ",
    close="You close the {r}.",
    take="You pick up the {o} from the {r}.",
    put="You move the {o} to the {r}.",
    put_command="move {o} to {r}",
    is_open="The {r} is open. In it, you see {list}.",
    is_closed="The {r} is closed.",
    on="On the {r}, you see {list}.",
    facing="You are facing the {list}. Next to it, you see {floor}.",
    use="You turn on the {o}.",
    heat="You heat the {o} using the {r}.",
    clean="You clean the {o} using the {r}.",
    cool="You cool the {o} using the {r}.",
    slice="You sliced the {o} with the {tool}.",
)

OFFICIAL = Dialect(
    name="official",
    article="",
    facing_state=True,
    arrive="You arrive at {place}. ",
    open="You open {r}. ",
    close="You close {r}.",
    take="You take {o} from {r}.",
    put="You put {o} in/on {r}.",
    put_command="put {o} in/on {r}",
    is_open="In {r}, you see {list}.",
    is_closed="{r} is closed.",
    on="On {r}, you see {list}.",
    facing="You are facing {list}. Next to it, you see {floor}.",
    use="You turn on {o}.",
    heat="You heat {o} using {r}.",
    clean="You clean {o} using {r}.",
    cool="You cool {o} using {r}.",
    slice="You sliced {o} with {tool}.",
)

DIALECTS = {"wheel": WHEEL, "official": OFFICIAL}


@dataclass(frozen=True)
class Rules:
    """The rules of a game, determined by its PDDL domain and its text grammar."""

    dialect: Dialect
    has_help: bool = True
    sink_cleans: bool = False  # in an older domain, receptacles of the type SinkType clean too


# SHA-256 of the grammar with the task's sentence replaced.
_GRAMMARS = {
    "c5b22f0f73309a7fd7c8e5b71de42ad4803b60766ab4a51cc2feb34162be036b": WHEEL,
    "7877085679b6f1dc5254c4a8a94fce7c98d7ab204d341b83b6c9a731106c0c7e": OFFICIAL,
}
# `pddl.fingerprint` of the domain -> (has the action help, SinkType cleans too).
_DOMAINS = {
    "915e118f4f32b4d826bf53c99e860dd85831afffb1a31ad333f063ce005b7122": (True, False),
    "b0b8259a4e11c9f45e91c181404bde4c2c936ad872fdc4d368c7e63094eaafac": (False, False),
    "0c42dbe9f67ce2474749f02dd32a40bcc41ef44e8ed28bcedf4526fb02078fec": (False, True),
}
MAX_RULE_CHARS = 200_000  # the supported domains and grammars have fewer than 30,000 characters together
_SENTENCE = re.compile(r'"Your task is to: ([^"\n]*)\."')
# Other characters have a meaning in the reference's grammar; sentences that contain them are not supported.
_PLAIN = re.compile(r"[A-Za-z0-9 ,.'!?:&()/-]+")


def is_plain(task: str) -> bool:
    """Whether both engines treat a task's sentence as plain text."""
    return _PLAIN.fullmatch(task) is not None and task == task.strip()


def _dialect(bare_grammar: str) -> Dialect | None:
    return _GRAMMARS.get(hashlib.sha256(bare_grammar.encode("utf-8", "surrogatepass")).hexdigest())


def read_rules(domain: str, grammar: str) -> tuple[Rules, str] | str:
    """(rules, task sentence) of a game's domain and grammar, or a clause saying why they are not supported."""
    if len(domain) + len(grammar) > MAX_RULE_CHARS:
        return f"its domain and grammar have more than {MAX_RULE_CHARS} characters"
    match = _SENTENCE.search(grammar)
    if match is None:
        return "its grammar has no task sentence"
    task = match.group(1)
    if not is_plain(task):
        return "its task sentence holds grammar symbols"
    bare = grammar[: match.start(1)] + "UNKNOWN GOAL" + grammar[match.end(1) :]
    dialect = _dialect(bare)
    if dialect is None:
        return "its text grammar is not one of the two known ones"
    known = _DOMAINS.get(fingerprint(domain))
    if known is None:
        return "its PDDL domain is not one of the three known ones"
    has_help, sink_cleans = known
    if has_help and dialect is OFFICIAL:
        return "its domain has the action help but its grammar has no text for it"
    return Rules(dialect, has_help, sink_cleans), task
