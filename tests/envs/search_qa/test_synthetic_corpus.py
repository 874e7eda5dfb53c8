"""Tests the guarantees of the synthetic corpus about its questions, passages and splits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.search_qa.reward import normalize
from paw_fast.envs.search_qa.synthetic_corpus import make_world
from paw_fast.envs.search_qa.synthetic_facts import RELATIONS, compose_question, parse_question, read_fact, relations_of
from paw_fast.errors import UserError


@pytest.fixture(scope="module")
def world():
    return make_world(seed=5, num_train=240, num_unseen=60)


def test_world_depends_on_the_seed_alone():
    assert make_world(1, 24, 12) == make_world(1, 24, 12)
    assert make_world(1, 24, 12).train != make_world(2, 24, 12).train


def test_questions_have_one_to_three_hops_and_follow_the_passages(world):
    """Follows each chain of relations using the passages alone."""
    text = {p.title: p.text for p in world.passages}
    for question in world.train + world.unseen:
        start, chain = parse_question(question.text)
        assert {1: "one_hop", 2: "two_hop", 3: "three_hop"}[len(chain)] == question.kind
        names = [start]
        for relation in chain:
            names.append(read_fact(text[names[-1]], names[-1], relation))
        assert (names[-1],) == question.golden
        assert tuple(names[:-1]) == question.supporting
        assert len(set(names)) == len(names)
    kinds = [q.kind for q in world.unseen]
    assert {kind: kinds.count(kind) for kind in kinds} == {"one_hop": 20, "two_hop": 20, "three_hop": 20}


def test_questions_do_not_contain_their_answers(world):
    for question in world.train + world.unseen:
        assert f" {normalize(question.golden[0])} " not in f" {normalize(question.text)} "


def test_unseen_questions_share_no_entity_with_training(world):
    def entities(questions):
        text = {p.title for p in world.passages}
        return {name for q in questions for name in (*q.supporting, *q.golden) if name in text}

    assert entities(world.train).isdisjoint(entities(world.unseen))
    assert {q.text for q in world.train}.isdisjoint(q.text for q in world.unseen)


def test_names_and_ids_are_unique_and_distractors_share_words(world):
    titles = [p.title for p in world.passages]
    assert len(set(titles)) == len(titles) == len({p.passage_id for p in world.passages})
    supporting = {name for q in world.train + world.unseen for name in q.supporting}
    others = [t for t in titles if t not in supporting]
    words = {w for name in supporting for w in name.split()} - {"The"}
    assert sum(any(w in words for w in t.split()) for t in others) > len(others) / 2


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (-1, 5)])
def test_question_counts_below_one_are_rejected(counts):
    with pytest.raises(UserError, match="expected at least 1"):
        make_world(0, *counts)


def test_names_stay_unique_in_large_worlds():
    """More names than the short forms provide."""
    world = make_world(0, 20_000, 12)
    assert len({p.title for p in world.passages}) == len(world.passages)


NAMES = st.sampled_from(["Anna Bell", "The SilentServer Harbor", "Torvik", "Reed School"])


@st.composite
def chains(draw):
    """A chain of one to three relations in which each object is the subject of the next."""
    kind = draw(st.sampled_from(["person", "city", "work", "organisation"]))
    chain = []
    for hop in range(draw(st.integers(1, 3))):
        options = [r for r in relations_of(kind) if r.object != "value"]
        if hop == 0 or draw(st.booleans()):
            options = options or relations_of(kind)
        relation = draw(st.sampled_from(options))
        chain.append(relation.name)
        kind = relation.object
    last = draw(st.sampled_from([r for r in relations_of(kind)])) if kind != "value" else None
    return tuple(chain) + ((last.name,) if last and len(chain) < 3 else ())


@settings(max_examples=200)
@given(NAMES, chains(), st.integers(0, 1))
def test_every_composed_question_is_parsed(subject, chain, form):
    assert parse_question(compose_question(subject, chain, form)) == (subject, chain)


def test_every_statement_is_parsed():
    for relation in RELATIONS.values():
        for statement in relation.statements:
            text = "Something else. " + statement.format(s="Anna Bell", o="Stone Bay") + " And more."
            assert read_fact(text, "Anna Bell", relation.name) == "Stone Bay"
            assert read_fact(text, "Tom Bell", relation.name) is None


def test_free_form_questions_are_not_parsed():
    assert parse_question("What is the meaning of life?") is None
