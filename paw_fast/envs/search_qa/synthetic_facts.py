"""The generated world's facts: relations between people, cities, works and organisations, and how they are told.

A relation leads from one entity to one other (or to a year, a trade, a country). Its texts say the fact in a passage,
ask for it, and name its value inside a longer question: "Where was the author of The Silent Harbor born?".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PERSON, CITY, WORK, ORGANISATION, VALUE = "person", "city", "work", "organisation", "value"


@dataclass(frozen=True)
class Relation:
    """One kind of fact. In the texts, `{s}` is the subject and `{o}` the object.

    told     sentences of the subject's passage, one of which is used
    asked    questions for the object
    phrase   the object as a noun phrase, for questions of several hops; empty where the object has no passage
    """

    name: str
    subject: str
    object: str
    told: tuple[str, ...]
    asked: tuple[str, ...]
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
"""Every relation by its name. Each sentence ends with its object, which is how a small model learns to read soonest."""

HOP_NAMES = {1: "one_hop", 2: "two_hop", 3: "three_hop"}


def of_subject(kind: str) -> list[Relation]:
    """The relations that an entity of this kind has, in a fixed order."""
    return [r for r in RELATIONS.values() if r.subject == kind]


def ask(subject: str, chain: tuple[str, ...], form: int = 0) -> str:
    """The question for the end of a chain of relations that starts at a named entity.

    >>> ask("The Silent Harbor", ("author", "birthplace"))
    'Where was the author of The Silent Harbor born?'
    """
    phrase = subject
    for name in chain[:-1]:
        phrase = RELATIONS[name].phrase.format(s=phrase)
    forms = RELATIONS[chain[-1]].asked
    return forms[form % len(forms)].format(s=phrase)


def _pattern(text: str, **groups: str) -> re.Pattern[str]:
    escaped = re.escape(text)
    for name, group in groups.items():
        escaped = escaped.replace(re.escape("{" + name + "}"), group)
    return re.compile(escaped)


_ASKED = [(r.name, _pattern(form, s="(.+)")) for r in RELATIONS.values() for form in r.asked]
_PHRASES = [(r.name, _pattern(r.phrase, s="(.+)")) for r in RELATIONS.values() if r.phrase]


def understand(question: str) -> tuple[str, tuple[str, ...]] | None:
    """The named entity and the chain of relations of a question that `ask` made; None for another.

    >>> understand("Where was the author of The Silent Harbor born?")
    ('The Silent Harbor', ('author', 'birthplace'))
    """
    for name, pattern in _ASKED:
        if found := pattern.fullmatch(question.strip()):
            chain, phrase = [name], found.group(1)
            while inner := next(((n, p) for n, p in _PHRASES if p.fullmatch(phrase)), None):
                chain.append(inner[0])
                phrase = inner[1].sub(r"\1", phrase)
            return phrase, tuple(reversed(chain))
    return None


def read_fact(text: str, subject: str, relation: str) -> str | None:
    """The object of a relation of `subject`, read out of a passage's text; None where it does not stand there."""
    for told in RELATIONS[relation].told:
        pattern = re.escape(told).replace(re.escape("{s}"), re.escape(subject))
        pattern = pattern.replace(re.escape("{o}"), r"([^.,]+?)")
        if found := re.search(r"(?:^|(?<=\. ))" + pattern, text):
            return found.group(1)
    return None
