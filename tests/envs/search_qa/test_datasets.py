"""Tests the readers of question files: published formats, errors, and weighted mixtures."""

import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.envs.json_files import SURROGATE_REPLACED, DataIssues
from paw_fast.envs.search_qa.datasets import DROPPED_ANSWER, NO_ANSWER, load_mixture, load_questions, parse_source
from paw_fast.envs.search_qa.reward import normalize
from paw_fast.errors import UserError


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_flashrag_format(tmp_path):
    path = lines(tmp_path / "nq-test.v1.jsonl", [
        {"id": "test_0", "question": "who got the first nobel prize in physics", "golden_answers":
         ["Röntgen", "W. Röntgen"]},
        {"id": "test_1", "question": " two ", "golden_answers": ["x"], "metadata": {"a": 1}},
    ])  # fmt: skip
    one, two = load_questions(path)
    assert (one.question_id, one.golden, one.kind) == ("test_0", ("Röntgen", "W. Röntgen"), "nq-test_v1")
    assert two.text == "two"


def test_hotpotqa_format(test_data):
    questions = load_questions(test_data / "qa" / "hotpotqa_train.json")
    assert len(questions) == 100
    first = questions[0]
    assert first.text == "If Gallu is a demon Lilu is what?"
    assert first.golden == ("a spirit",)
    assert first.supporting == ("Alû", "Lilu (mythology)")
    assert {q.kind for q in questions} == {"hotpotqa_train"}


def test_2wiki_and_hub_hotpotqa_formats(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([
        {"_id": "a", "type": "comparison", "question": "q?", "answer": "no", "evidences": [["x", "y", "z"]],
         "supporting_facts": [["T2", 0], ["T1", 0], ["T2", 1]], "context": [["T1", ["s"]], ["T2", ["s"]]]},
        {"id": "b", "question": "r?", "answer": "n", "supporting_facts": {"title": ["U"], "sent_id": [0]}},
    ]))  # fmt: skip
    a, b = load_questions(path)
    assert (a.question_id, a.supporting, a.golden) == ("a", ("T2", "T1"), ("no",))
    assert (b.question_id, b.supporting) == ("b", ("U",))


def test_gzipped_musique_skips_unanswerable_questions(tmp_path):
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
        ("q.jsonl", '{"question": "q", "answer": "x"}\n{"question": "q"', "q.jsonl:2: not JSON"),
        ("q.jsonl", '{"answer": "x"}', "q.jsonl:1: no question: expected the key `question` or `query`, got answer"),
        ("q.jsonl", '{"question": "  ", "answer": "x"}', "q.jsonl:1: no question: expected"),
        ("q.jsonl", '{"question": null, "answer": "x"}', "q.jsonl:1: no question: expected"),
        (
            "q.jsonl",
            '{"question": "q", "label": 1}',
            "no answer: expected the key `golden_answers` or `answers` or `answer`",
        ),
        (
            "q.jsonl",
            '{"question": "q", "golden_answers": []}',
            "contains no questions: 1 record with no answer (skipped)",
        ),
        ("q.jsonl", '{"question": "q", "golden_answers": [3]}', "expected a string or a list of strings"),
        ("q.jsonl", '{"question": "q", "answer": {"text": "x"}}', "expected a string or a list of strings"),
        ("q.jsonl", "[" * 100_000, "not JSON: nested too deeply"),
        ("q.json", "[" * 100_000, "not JSON: nested too deeply"),
        ("q.json", '{"question": "q", "answer": "x"}\n{}', "with one JSON value on each line must be named .jsonl"),
        ("q.jsonl", "", "contains no questions"),
        ("q.jsonl", "[1]", "q.jsonl:1: expected a JSON object, got list: a file that is one JSON array must be"),
        ("q.jsonl", "\n", "contains no questions"),
        ("q.jsonl", '{"id":1,"question":"q","answer":"x"}\n{"id":1,"question":"q","answer":"x"}', "duplicate id '1'"),
        ("q.json", '{"question": "q"}', "expected a list of questions, got dict"),
        ("q.json", "[3]", "record 0: expected an object, got int"),
        ("q.json", "[", "q.json: not JSON"),
        ("q.csv", "", "expected .jsonl or .json"),
        ("q.jsonl.gz", "not gzipped", "not JSON"),
    ],
)
def test_errors_name_the_record(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_alternative_key_names(tmp_path):
    """SimpleDeepSearcher's `Question` with a list of answers; `query` and `answers`; with a byte-order mark."""
    records = [
        {"id": 7, "Question": "one?", "answer": ["x", "y"], "source": "s"},
        {"query": "two?", "answers": "z", "_id": None},
        {"question_id": "q3", "question": "three?", "golden_answers": None, "answer": "w", "answer_aliases": ["v"]},
    ]  # fmt: skip
    expected = [("7", "one?", ("x", "y")), ("1", "two?", ("z",)), ("q3", "three?", ("w", "v"))]
    (tmp_path / "q.json").write_text(json.dumps(records), encoding="utf-8-sig")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8-sig")
    for name in ("q.json", "q.jsonl"):
        assert [(q.question_id, q.text, q.golden) for q in load_questions(tmp_path / name)] == expected


def test_answers_empty_after_normalization_are_dropped_and_counted(tmp_path):
    golden = [["the"], ["The ...", "Nile"], ["", "Nile"], [None], "", "Rome", ["a", "!"]]
    path = lines(tmp_path / "q.jsonl", [{"question": f"q{i}", "golden_answers": one} for i, one in enumerate(golden)])
    issues = DataIssues()
    found = {q.text: q.golden for q in load_questions(path, issues)}
    assert found == {"q1": ("Nile",), "q2": ("Nile",), "q5": ("Rome",)}
    assert dict(issues.counts) == {DROPPED_ANSWER: 3, NO_ANSWER: 4}
    assert issues.lines()[1] == f"4 records with no answer (skipped) (first: {path}:1)"


def test_surrogates_are_replaced_and_counted(tmp_path):
    text = '{"question": "half \\ud83d?", "answer": "\\ud83d\\ude00"}\n{"question": "q", "answer": "x\\udc00"}'
    (tmp_path / "q.jsonl").write_text(text)
    issues = DataIssues()
    one, two = load_questions(tmp_path / "q.jsonl", issues)
    assert (one.text, one.golden, two.golden) == ("half \ufffd?", ("\U0001f600",), ("x\ufffd",))
    assert issues.counts[SURROGATE_REPLACED] == 2
    (tmp_path / "q.json").write_text("[" + text.replace("\n", ", ") + "]")
    assert load_questions(tmp_path / "q.json", issues)[0].text == "half \ufffd?"
    assert issues.counts[SURROGATE_REPLACED] == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(exclude_categories=()), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["id", "question", "Question", "query", "golden_answers", "answers", "answer", "answer_aliases",
                        "paragraphs", "supporting_facts", "answerable", "other"])  # fmt: skip
RECORDS = st.dictionaries(KEYS, JSON, max_size=6) | JSON


@given(st.lists(RECORDS, max_size=4) | JSON, st.booleans())
def test_any_json_gives_questions_or_a_one_line_error(tmp_path_factory, value, as_lines):
    path = tmp_path_factory.getbasetemp() / f"any.json{'l' if as_lines else ''}"
    records = value if isinstance(value, list) else [value]
    path.write_text("\n".join(map(json.dumps, records)) if as_lines else json.dumps(value))
    try:
        questions = load_questions(path)
    except UserError as error:
        if "any.json" not in str(error):
            raise
        return
    for question in questions:
        assert question.golden
        assert all(normalize(one) for one in question.golden)
        "".join((question.text, question.question_id, *question.golden, *question.supporting)).encode()


def test_invalid_utf8_and_missing_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "q", "answer": "x"}\n\xff\xfe\n')
    with pytest.raises(UserError, match="not JSON"):
        load_questions(path)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        load_questions(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("spec", "path", "weight"),
    [("a.jsonl", "a.jsonl", None), ("a.jsonl:2", "a.jsonl", 2.0), ("d:x/a.json:0.5", "d:x/a.json", 0.5),
     ("d:x/a.json", "d:x/a.json", None)],
)  # fmt: skip
def test_parse_source(spec, path, weight):
    found = parse_source(spec)
    assert (str(found[0]), found[1]) == (path, weight)


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_invalid_weights_are_rejected(weight):
    with pytest.raises(UserError, match="expected a number above 0"):
        parse_source(f"a.jsonl:{weight}")


def write(folder, name, count):
    return lines(folder / name, [{"id": f"{name}{i}", "question": "q", "answer": "x"} for i in range(count)])


def test_without_weights_every_question_occurs_once(tmp_path):
    a, b = write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 5)
    assert Counter(q.question_id for q in load_mixture([str(a), str(b)])).most_common(1)[0][1] == 1
    with pytest.raises(UserError, match="listed twice"):
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
