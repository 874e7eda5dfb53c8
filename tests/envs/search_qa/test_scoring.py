"""Normalisation and scoring against hand-made cases, and F1 against another way of computing it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.envs.search_qa.reward import AnswerScores, exact_match, last_answer, normalize, score, sub_match, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles", "beatles"),
        ("a an the", ""),
        ("An apple a day, the doctor away", "apple day doctor away"),
        ("Theatre and Anatomy", "theatre and anatomy"),  # articles are whole words
        ("  many \t spaces \n here ", "many spaces here"),
        ("U.S.A.", "usa"),
        ("rock-'n'-roll", "rocknroll"),  # punctuation goes before the words are split
        ("A.I.", "ai"),  # and before articles: this "A" is none
        ("$1,000.50", "100050"),
        ("1990–2000", "1990–2000"),  # a dash that is not ASCII stays
        ("“Emma”", "“emma”"),  # so do curly quotation marks
        ("Beyoncé", "beyoncé"),
        ("ÉMILE ZOLA", "émile zola"),
        ("İstanbul", "i̇stanbul"),  # str.lower gives a dot of its own
        ("北京", "北京"),
        ("Yes!", "yes"),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("the Eiffel Tower.", ["Eiffel Tower"], True),
        ("Eiffel", ["Eiffel Tower"], False),
        ("UK", ["United Kingdom", "UK", "Britain"], True),  # any of several
        ("Britain", ["United Kingdom", "UK", "Britain"], True),
        ("France", ["United Kingdom", "UK", "Britain"], False),
        ("yes", ["Yes"], True),
        ("Yes, it is", ["yes"], False),
        ("no", ["yes"], False),
        ("Beyonce", ["Beyoncé"], False),  # accents are kept apart, as in the reference
        ("The", ["a"], False),  # both normalise to nothing, which is no answer
        ("the", ["...", ""], False),
        ("", ["x"], False),
        ("x", [], False),
    ],
)
def test_exact_match(answer, golden, expected):
    assert exact_match(answer, golden) is expected


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("It was Jane Austen.", ["Jane Austen"], True),
        ("Austen", ["Jane Austen"], False),
        ("yesterday", ["yes"], True),  # sub-strings, not words: the reference's rule
        ("in the U.S. of A", ["us"], True),
        ("anything", ["The"], False),  # a golden answer of articles alone is inside nothing
        ("Paris or London", ["Rome", "London"], True),
    ],
)
def test_sub_match(answer, golden, expected):
    assert sub_match(answer, golden) is expected


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("Barack Obama", ["President Barack Hussein Obama"], 2 * (1.0 * 0.5) / 1.5),  # 2 of 2, 2 of 4
        ("the cat sat", ["a cat sat down"], 2 * (1.0 * 2 / 3) / (1 + 2 / 3)),
        ("cat cat", ["cat"], 2 * (0.5 * 1.0) / 1.5),  # repeated words count once
        ("dog", ["cat"], 0.0),
        ("London", ["Paris", "London town"], 2 * (1.0 * 0.5) / 1.5),  # the best golden answer counts
        ("yes", ["yes"], 1.0),
        ("yes he did", ["yes"], 0.0),  # yes and no count only alone
        ("yes", ["yes he did"], 0.0),
        ("no", ["yes"], 0.0),
        ("noanswer", ["no answer"], 0.0),
        ("yes he did", ["yes", "he did"], 0.8),  # 2 of 3, 2 of 2, from the second
        ("", ["the"], 0.0),
        ("x", [], 0.0),
    ],
)
def test_f1(answer, golden, expected):
    assert token_f1(answer, golden) == pytest.approx(expected)


SOME = ["red", "green", "blue", "the", "a", "Blue,", "yes", "no", "x1", "é"]
WORDS = st.lists(st.sampled_from(SOME), max_size=7).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_f1_is_that_of_sets_of_numbered_words(answer, golden):
    """Multisets as sets: the n-th occurrence of a word is an element of its own."""

    def numbered(text):
        seen = Counter()
        out = set()
        for word in normalize(text).split():
            seen[word] += 1
            out.add((word, seen[word]))
        return out

    best = 0.0
    for one in golden:
        a, b = normalize(answer), normalize(one)
        if a != b and {a, b} & {"yes", "no", "noanswer"}:
            continue
        said, wanted = numbered(answer), numbered(one)
        if said & wanted:
            best = max(best, 2 * len(said & wanted) / (len(said) + len(wanted)))
    assert token_f1(answer, golden) == pytest.approx(best)


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_agree_with_each_other(answer, golden):
    got = score(answer, [golden])
    assert 0 <= got.f1 <= 1
    if got.exact_match and normalize(golden):
        assert got.sub_match == got.f1 == 1.0
    assert normalize(normalize(answer)) == normalize(answer)
    assert score(None, [golden]) == AnswerScores(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> Beijing </answer>", "Beijing"),
        ("<answer>a</answer> wait <answer>b</answer>", "b"),  # the last one counts
        ("<answer> one <answer> two </answer>", "two"),
        ("<answer>line\nbreak</answer>", "line\nbreak"),
        ("<answer>never closed", None),
        ("closed</answer>", None),
        ("<answer></answer>", ""),
        ("", None),
    ],
)
def test_the_last_answer(text, expected):
    assert last_answer(text) == expected


def test_the_prompts_example_is_never_an_answer(search_env):
    """The template shows `<answer> Beijing </answer>`; only what the policy wrote is read."""
    from paw_fast.rollout.prompts import PromptTemplate, parse_action
    from paw_fast.types import Observation

    template = PromptTemplate.load("verl", "search")
    prompt = template.first(Observation("Where is Beijing?", (), "What is the capital of China?"))
    assert "<answer> Beijing </answer>" in prompt
    parsed = parse_action("I will not answer this.", template.style)
    assert not parsed.well_formed
    task = search_env.tasks("train")[0]
    search_env.reset(task)
    step = search_env.step(parsed.command)
    assert not step.done
    assert step.admissible is False
