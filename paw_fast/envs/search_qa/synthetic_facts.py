"""Defines the relations of the synthetic world and the sentences that state, ask for and refer to a fact.

A relation links a person, city, work or organisation to one other entity or to a plain value (a year, a trade, a
country). Its texts state the fact in a passage, ask for its object, and refer to the object inside a longer question:
"Where was the author of The Silent Harbor born?".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PERSON, CITY, WORK, ORGANISATION, VALUE = "person", "city", "work", "organisation", "value"


@dataclass(frozen=True)
class Relation:
    """One kind of fact. In the texts, `{s}` is the subject and `{o}` the object.

    statements  alternative sentences for the subject's passage
    questions   alternative questions for the object
    phrase      the object as a noun phrase, for multi-hop questions; empty if the object has no passage
    """

    name: str
    subject: str
    object: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    phrase: str = ""


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "birthplace", PERSON, CITY,
            ("{s} was born in {o}.", "{s} comes from {o}."),
            ("Where was {s} born?", "In which city was {s} born?"), "the birthplace of {s}",
        ),
        Relation(
            "employer", PERSON, ORGANISATION,
            ("{s} works for {o}.", "{s} is employed by {o}."),
            ("Who does {s} work for?", "Where is {s} employed?"), "the employer of {s}",
        ),
        Relation(
            "spouse", PERSON, PERSON,
            ("{s} is married to {o}.", "The spouse of {s} is {o}."),
            ("Who is {s} married to?", "Who married {s}?"), "the spouse of {s}",
        ),
        Relation(
            "trade", PERSON, VALUE,
            ("{s} makes a living as a {o}.", "By trade {s} is a {o}."),
            ("What is the trade of {s}?", "What does {s} do for a living?"),
        ),
        Relation(
            "mayor", CITY, PERSON,
            ("The mayor of {s} is {o}.", "{s} is governed by {o}."),
            ("Who is the mayor of {s}?", "Who governs {s}?"), "the mayor of {s}",
        ),
        Relation(
            "country", CITY, VALUE,
            ("{s} is a city in {o}.", "{s} lies in {o}."),
            ("In which country is {s}?", "Which country does {s} lie in?"),
        ),
        Relation(
            "author", WORK, PERSON,
            ("{s} was written by {o}.", "The author of {s} is {o}."),
            ("Who wrote {s}?", "Who is the author of {s}?"), "the author of {s}",
        ),
        Relation(
            "setting", WORK, CITY,
            ("{s} is set in {o}.", "{s} takes place in {o}."),
            ("Where is {s} set?", "In which city does {s} take place?"), "the setting of {s}",
        ),
        Relation(
            "year", WORK, VALUE,
            ("{s} was published in {o}.", "{s} came out in {o}."),
            ("When was {s} published?", "In which year did {s} come out?"),
        ),
        Relation(
            "founder", ORGANISATION, PERSON,
            ("{s} was founded by {o}.", "The founder of {s} is {o}."),
            ("Who founded {s}?", "Who is the founder of {s}?"), "the founder of {s}",
        ),
        Relation(
            "seat", ORGANISATION, CITY,
            ("{s} has its seat in {o}.", "{s} is based in {o}."),
            ("Where is {s} based?", "In which city does {s} have its seat?"), "the seat of {s}",
        ),
    )
}  # fmt: skip
"""All relations by name. Every statement ends with its object, which is the form a small model learns fastest."""

HOP_NAMES = {1: "one_hop", 2: "two_hop", 3: "three_hop"}


def relations_of(kind: str) -> list[Relation]:
    """The relations of an entity of this kind, in a fixed order."""
    return [r for r in RELATIONS.values() if r.subject == kind]


def compose_question(subject: str, chain: tuple[str, ...], form: int = 0) -> str:
    """The question for the last object of a chain of relations that starts at `subject`; `form` picks the wording.

    >>> compose_question("The Silent Harbor", ("author", "birthplace"))
    'Where was the author of The Silent Harbor born?'
    """
    phrase = subject
    for name in chain[:-1]:
        phrase = RELATIONS[name].phrase.format(s=phrase)
    forms = RELATIONS[chain[-1]].questions
    return forms[form % len(forms)].format(s=phrase)


def _pattern(text: str, **groups: str) -> re.Pattern[str]:
    escaped = re.escape(text)
    for name, group in groups.items():
        escaped = escaped.replace(re.escape("{" + name + "}"), group)
    return re.compile(escaped)


_QUESTION_PATTERNS = [(r.name, _pattern(form, s="(.+)")) for r in RELATIONS.values() for form in r.questions]
_PHRASE_PATTERNS = [(r.name, _pattern(r.phrase, s="(.+)")) for r in RELATIONS.values() if r.phrase]


def parse_question(question: str) -> tuple[str, tuple[str, ...]] | None:
    """Inverts `compose_question`: returns (entity, chain of relations), or None for any other question.

    >>> parse_question("Where was the author of The Silent Harbor born?")
    ('The Silent Harbor', ('author', 'birthplace'))
    """
    for name, pattern in _QUESTION_PATTERNS:
        if found := pattern.fullmatch(question.strip()):
            chain, phrase = [name], found.group(1)
            while inner := next(((n, p) for n, p in _PHRASE_PATTERNS if p.fullmatch(phrase)), None):
                chain.append(inner[0])
                phrase = inner[1].sub(r"\1", phrase)
            return phrase, tuple(reversed(chain))
    return None


def read_fact(text: str, subject: str, relation: str) -> str | None:
    """Extracts the object of a relation of `subject` from a passage; None if the passage does not state it."""
    for statement in RELATIONS[relation].statements:
        pattern = re.escape(statement).replace(re.escape("{s}"), re.escape(subject))
        pattern = pattern.replace(re.escape("{o}"), r"([^.,]+?)")
        if found := re.search(r"(?:^|(?<=\. ))" + pattern, text):
            return found.group(1)
    return None
