"""Generates a synthetic question-answering world from a seed: a corpus of linked facts and multi-hop questions.

Questions have one to three hops. The world consists of regions whose facts link only to entities of the same region.
All questions of a region belong to the same split, so that the entities and facts of evaluation questions never occur
in a training question. All regions share one corpus, which also contains distractors: passages about entities with
similar names that answer no question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from paw_fast.envs.search_qa.datasets import Question
from paw_fast.envs.search_qa.retrieval.records import Passage
from paw_fast.envs.search_qa.reward import normalize
from paw_fast.envs.search_qa.synthetic_facts import (
    CITY,
    HOP_NAMES,
    ORGANISATION,
    PERSON,
    RELATIONS,
    VALUE,
    WORK,
    compose_question,
    relations_of,
)
from paw_fast.envs.search_qa.synthetic_names import COUNTRIES, TRADES, Names
from paw_fast.errors import UserError

WORLD_VERSION = 2  # part of the cache key: increment it when the world of a seed changes
REGION = {CITY: 4, PERSON: 10, WORK: 5, ORGANISATION: 5}
"""Number of entities of each kind in a region."""
DISTRACTORS = 6
"""Number of additional entities per region that no question is about."""
QUESTIONS_PER_REGION = 12
HOPS = (1, 2, 3)


@dataclass(frozen=True)
class Entity:
    """An entity that has a passage. `facts` maps the name of each of its relations to the object's name.

    >>> Entity("Torvik", "city", {"country": "Morland", "mayor": "Anna Bell"}).facts["mayor"]
    'Anna Bell'
    """

    name: str
    kind: str
    facts: dict[str, str]


@dataclass(frozen=True)
class World:
    """Training and evaluation questions, and the corpus of both. Produced by `make_world`."""

    train: tuple[Question, ...]
    unseen: tuple[Question, ...]
    passages: tuple[Passage, ...]


def make_world(seed: int, num_train: int, num_unseen: int) -> World:
    """Generates the world of a seed, with the given numbers of questions; deterministic across machines.

    Raises `UserError` if a number is below 1.
    """
    for what, number in (("num_train", num_train), ("num_unseen", num_unseen)):
        if number < 1:
            raise UserError(f"{what} is {number}, expected at least 1")
    rng = random.Random(f"paw-fast search {WORLD_VERSION} {seed}")
    names = Names(rng)
    entities: list[Entity] = []

    def questions(split: str, total: int) -> tuple[Question, ...]:
        made: list[Question] = []
        while len(made) < total:
            region = make_region(rng, names)
            entities.extend(region)
            entities.extend(make_distractors(rng, names, region))
            wanted = min(QUESTIONS_PER_REGION, total - len(made))
            made.extend(make_questions(rng, region, split, len(made), wanted))
        return tuple(made)

    unseen, train = questions("unseen", num_unseen), questions("train", num_train)
    rng.shuffle(entities)
    passages = tuple(Passage(str(i), e.name, passage_text(rng, e)) for i, e in enumerate(entities))
    return World(train, unseen, passages)


def make_region(rng: random.Random, names: Names) -> list[Entity]:
    """Generates a region: the object of every fact is a plain value or another entity of the region."""
    people = [names.person() for _ in range(REGION[PERSON])]
    cities = [names.city() for _ in range(REGION[CITY])]
    works = [names.work() for _ in range(REGION[WORK])]
    bodies = [names.organisation() for _ in range(REGION[ORGANISATION])]
    mayors, authors, founders = (rng.sample(people, len(of)) for of in (cities, works, bodies))
    couples = rng.sample(people, len(people))
    partner = dict(zip(couples[::2], couples[1::2], strict=True))
    partner |= {b: a for a, b in partner.items()}
    entities = [
        Entity(p, PERSON, {"birthplace": rng.choice(cities), "employer": rng.choice(bodies), "spouse": partner[p],
                           "trade": rng.choice(TRADES)})
        for p in people
    ]  # fmt: skip
    entities += [
        Entity(c, CITY, {"mayor": m, "country": rng.choice(COUNTRIES)}) for c, m in zip(cities, mayors, strict=True)
    ]
    entities += [
        Entity(w, WORK, {"author": a, "setting": rng.choice(cities), "year": str(rng.randint(1801, 1999))})
        for w, a in zip(works, authors, strict=True)
    ]
    entities += [
        Entity(o, ORGANISATION, {"founder": f, "seat": rng.choice(cities)})
        for o, f in zip(bodies, founders, strict=True)
    ]
    return entities


def make_distractors(rng: random.Random, names: Names, region: Sequence[Entity]) -> list[Entity]:
    """Generates entities whose names share a word with one of the region's, with facts about the same cities."""
    of = {kind: [e.name for e in region if e.kind == kind] for kind in REGION}
    made = []
    for number in range(DISTRACTORS):
        kind = (PERSON, WORK, ORGANISATION)[number % 3]
        word = rng.choice(of[kind]).split()
        if kind == PERSON:
            facts = {"birthplace": rng.choice(of[CITY]), "trade": rng.choice(TRADES)}
            made.append(Entity(names.person(word[-1]), PERSON, facts))
        elif kind == WORK:
            facts = {"setting": rng.choice(of[CITY]), "year": str(rng.randint(1801, 1999))}
            made.append(Entity(names.work(word[-1]), WORK, facts))
        else:
            made.append(Entity(names.organisation(word[0]), ORGANISATION, {"seat": rng.choice(of[CITY])}))
    return made


def passage_text(rng: random.Random, entity: Entity) -> str:
    """All facts of an entity as sentences, in random order and wording."""
    facts = list(entity.facts.items())
    rng.shuffle(facts)
    return " ".join(rng.choice(RELATIONS[name].statements).format(s=entity.name, o=value) for name, value in facts)


def make_questions(rng: random.Random, region: Sequence[Entity], split: str, first: int, count: int) -> list[Question]:
    """Generates `count` distinct questions about a region, cycling through the numbers of hops in `HOPS`.

    A chain never visits an entity twice, and a question never contains its answer.
    """
    by_name = {e.name: e for e in region}
    made: list[Question] = []
    asked: set[tuple[str, tuple[str, ...]]] = set()
    while len(made) < count:
        hops = HOPS[(first + len(made)) % len(HOPS)]
        start = rng.choice(region)
        path = sample_chain(rng, start, by_name, hops)
        if path is None:
            continue
        chain, names = path
        question = compose_question(start.name, chain, rng.randrange(2))
        inside = f" {normalize(names[-1])} " in f" {normalize(question)} "
        if (start.name, chain) in asked or inside:
            continue
        asked.add((start.name, chain))
        made.append(
            Question(f"{split}-{first + len(made)}", question, (names[-1],), HOP_NAMES[hops], tuple(names[:-1]))
        )
    return made


def sample_chain(
    rng: random.Random, start: Entity, by_name: dict[str, Entity], hops: int
) -> tuple[tuple[str, ...], list[str]] | None:
    """Samples a chain of relations from `start`; None if it revisits an entity.

    Returns the names of the relations, and the entities along the chain, of which the last is the answer.
    """
    chain, names = [], [start.name]
    for hop in range(hops):
        last = hop == hops - 1
        here = by_name[names[-1]]
        relation = rng.choice(
            [r for r in relations_of(here.kind) if r.name in here.facts and (last or r.object != VALUE)]
        )
        chain.append(relation.name)
        if here.facts[relation.name] in names:
            return None
        names.append(here.facts[relation.name])
    return tuple(chain), names
