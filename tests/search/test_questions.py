"""Question files as they are published, mistakes in them, and mixtures."""

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.envs.search.questions import load_mixture, load_questions, parse_source
from paw_fast.types import UserError


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_flashrag(tmp_path):
    path = lines(tmp_path / "nq-test.v1.jsonl", [
        {"id": "test_0", "question": "who got the first nobel prize in physics", "golden_answers":
         ["Röntgen", "W. Röntgen"]},
        {"id": "test_1", "question": " two ", "golden_answers": ["x"], "metadata": {"a": 1}},
    ])  # fmt: skip
    one, two = load_questions(path)
    assert (one.question_id, one.golden, one.kind) == ("test_0", ("Röntgen", "W. Röntgen"), "nq-test_v1")
    assert two.text == "two"


def test_hotpotqa_as_published(test_data):
    questions = load_questions(test_data / "qa" / "hotpotqa_train.json")
    assert len(questions) == 100
    first = questions[0]
    assert first.text == "If Gallu is a demon Lilu is what?"
    assert first.golden == ("a spirit",)
    assert first.supporting == ("Alû", "Lilu (mythology)")
    assert {q.kind for q in questions} == {"hotpotqa_train"}


def test_2wiki_and_the_hubs_hotpotqa(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([
        {"_id": "a", "type": "comparison", "question": "q?", "answer": "no", "evidences": [["x", "y", "z"]],
         "supporting_facts": [["T2", 0], ["T1", 0], ["T2", 1]], "context": [["T1", ["s"]], ["T2", ["s"]]]},
        {"id": "b", "question": "r?", "answer": "n", "supporting_facts": {"title": ["U"], "sent_id": [0]}},
    ]))  # fmt: skip
    a, b = load_questions(path)
    assert (a.question_id, a.supporting, a.golden) == ("a", ("T2", "T1"), ("no",))
    assert (b.question_id, b.supporting) == ("b", ("U",))


def test_musique_gzipped_without_the_unanswerable(tmp_path):
    records = [
        {"id": "2hop__1", "question": "q?", "answer": "Paris", "answer_aliases": ["City of Paris", "Paris"],
         "answerable": True, "paragraphs": [
             {"idx": 0, "title": "A", "paragraph_text": "t", "is_supporting": False},
             {"idx": 1, "title": "B", "paragraph_text": "t", "is_supporting": True}]},
        {"id": "2hop__2", "question": "q?", "answer": "Rome", "answer_aliases": [], "answerable": False,
         "paragraphs": []},
    ]  # fmt: skip
    path = tmp_path / "musique.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    (one,) = load_questions(path)
    assert (one.golden, one.supporting, one.kind) == (("Paris", "City of Paris"), ("B",), "musique")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"', "q.jsonl:2: not JSON"),
        ("q.jsonl", '{"answer": "a"}', "q.jsonl:1: no `question`"),
        ("q.jsonl", '{"question": "  ", "answer": "a"}', "q.jsonl:1: no `question`"),
        ("q.jsonl", '{"question": "q"}', "neither `golden_answers` nor `answer`"),
        ("q.jsonl", '{"question": "q", "golden_answers": []}', "expected a list of texts"),
        ("q.jsonl", '{"question": "q", "golden_answers": [3]}', "expected a list of texts"),
        ("q.jsonl", "[1]", "q.jsonl:1: expected a JSON object, got list"),
        ("q.jsonl", "\n", "holds no questions"),
        ("q.jsonl", '{"id":1,"question":"q","answer":"a"}\n{"id":1,"question":"q","answer":"a"}', "'1' comes twice"),
        ("q.json", '{"question": "q"}', "expected a list of questions, got dict"),
        ("q.json", "[3]", "record 0: expected an object, got int"),
        ("q.json", "[", "q.json: not JSON"),
        ("q.csv", "", "expected .jsonl or .json"),
        ("q.jsonl.gz", "not gzipped", "not JSON"),
    ],
)
def test_mistakes_name_the_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_a_missing_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "q", "answer": "a"}\n\xff\xfe\n')
    with pytest.raises(UserError, match="not JSON"):
        load_questions(path)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        load_questions(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("spec", "path", "weight"),
    [("a.jsonl", "a.jsonl", None), ("a.jsonl:2", "a.jsonl", 2.0), ("d:x/a.json:0.5", "d:x/a.json", 0.5),
     ("d:x/a.json", "d:x/a.json", None)],
)  # fmt: skip
def test_sources(spec, path, weight):
    found = parse_source(spec)
    assert (str(found[0]), found[1]) == (path, weight)


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_weights_that_cannot_be_meant(weight):
    with pytest.raises(UserError, match="expected a number above 0"):
        parse_source(f"a.jsonl:{weight}")


def write(folder, name, count):
    return lines(folder / name, [{"id": f"{name}{i}", "question": "q", "answer": "a"} for i in range(count)])


def test_without_weights_every_question_stands_once(tmp_path):
    a, b = write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 5)
    assert Counter(q.question_id for q in load_mixture([str(a), str(b)])).most_common(1)[0][1] == 1
    with pytest.raises(UserError, match="named twice"):
        load_mixture([str(a), f"{a}:2"])


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.5, 1.0, 2.0, 3.0])), min_size=1, max_size=3))
def test_weights_are_shares_and_no_question_is_lost(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("mix")
    files = [write(folder, f"{n}.jsonl", size) for n, (size, _) in enumerate(parts)]
    mixed = load_mixture([f"{f}:{w}" for f, (_, w) in zip(files, parts, strict=True)])
    kinds = Counter(q.kind for q in mixed)
    total = sum(weight for _, weight in parts)
    for number, (size, weight) in enumerate(parts):
        assert abs(kinds[str(number)] - weight / total * len(mixed)) <= 1.5  # each part is rounded
        times = Counter(q.question_id for q in mixed if q.kind == str(number))
        assert len(times) == size
        assert max(times.values()) - min(times.values()) <= 1
