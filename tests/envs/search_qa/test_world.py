"""The generated world: what it promises about its questions and passages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.search_qa.reward import normalize
from paw_fast.envs.search_qa.synthetic_corpus import make_world
from paw_fast.envs.search_qa.synthetic_facts import RELATIONS, ask, of_subject, read_fact, understand
from paw_fast.errors import UserError


@pytest.fixture(scope="module")
def world():
    return make_world(seed=5, num_train=240, num_unseen=60)


def test_the_same_seed_gives_the_same_world_and_another_another():
    assert make_world(1, 24, 12) == make_world(1, 24, 12)
    assert make_world(1, 24, 12).train != make_world(2, 24, 12).train


def test_questions_have_one_to_three_hops_and_lead_to_their_answers(world):
    """Follows each chain through the passages alone, as a reader would."""
    text = {p.title: p.text for p in world.passages}
    for question in world.train + world.unseen:
        start, chain = understand(question.text)
        assert {1: "one_hop", 2: "two_hop", 3: "three_hop"}[len(chain)] == question.kind
        names = [start]
        for relation in chain:
            names.append(read_fact(text[names[-1]], names[-1], relation))
        assert (names[-1],) == question.golden
        assert tuple(names[:-1]) == question.supporting
        assert len(set(names)) == len(names)
    kinds = [q.kind for q in world.unseen]
    assert {kind: kinds.count(kind) for kind in kinds} == {"one_hop": 20, "two_hop": 20, "three_hop": 20}


def test_no_answer_stands_in_its_question(world):
    for question in world.train + world.unseen:
        assert f" {normalize(question.golden[0])} " not in f" {normalize(question.text)} "


def test_unseen_questions_touch_nothing_that_training_asks_about(world):
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
def test_no_questions_are_refused(counts):
    with pytest.raises(UserError, match="expected at least 1"):
        make_world(0, *counts)


def test_more_regions_than_short_names():
    """Names stay unique when the short ones run out."""
    world = make_world(0, 20_000, 12)
    assert len({p.title for p in world.passages}) == len(world.passages)


NAMES = st.sampled_from(["Anna Bell", "The Silent Harbor", "Torvik", "Reed School"])


@st.composite
def chains(draw):
    """Any chain whose links fit together, however long."""
    kind = draw(st.sampled_from(["person", "city", "work", "organisation"]))
    chain = []
    for hop in range(draw(st.integers(1, 3))):
        options = [r for r in of_subject(kind) if r.object != "value"]
        if hop == 0 or draw(st.booleans()):
            options = options or of_subject(kind)
        relation = draw(st.sampled_from(options))
        chain.append(relation.name)
        kind = relation.object
    last = draw(st.sampled_from([r for r in of_subject(kind)])) if kind != "value" else None
    return tuple(chain) + ((last.name,) if last and len(chain) < 3 else ())


@settings(max_examples=200)
@given(NAMES, chains(), st.integers(0, 1))
def test_every_question_is_understood(subject, chain, form):
    assert understand(ask(subject, chain, form)) == (subject, chain)


def test_every_wording_of_a_fact_is_read():
    for relation in RELATIONS.values():
        for told in relation.told:
            text = "Something else. " + told.format(s="Anna Bell", o="Stone Bay") + " And more."
            assert read_fact(text, "Anna Bell", relation.name) == "Stone Bay"
            assert read_fact(text, "Tom Bell", relation.name) is None


def test_free_questions_are_not_understood():
    assert understand("What is the meaning of life?") is None
