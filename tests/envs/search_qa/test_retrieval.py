"""Tests corpus readers, BM25 scores against the formula, dense search, and the handling of index folders."""

import gzip
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_extras import need

from paw_fast.envs.json_files import SURROGATE_REPLACED, DataIssues
from paw_fast.envs.search_qa.retrieval import bm25, index_issues, index_of, open_index, store
from paw_fast.envs.search_qa.retrieval.corpus import NO_TEXT, count_hint, read_corpus
from paw_fast.envs.search_qa.retrieval.records import Passage
from paw_fast.errors import UserError

need("bm25s", "Stemmer")


def passages(*texts):
    return [Passage(str(i), f"T{i}", text) for i, text in enumerate(texts)]


def index(folder, *texts):
    return open_index(bm25.build_from(passages(*texts), folder / "index"))


# ----------------------------------------------------------------------------------------------------- corpora


def test_wiki18_format(test_data):
    path = test_data / "qa" / "search_r1_example_corpus.jsonl"
    found = list(read_corpus(path))
    assert len(found) == count_hint(path) == 10
    assert (found[0].passage_id, found[0].title) == ("0", "Evan Morris")
    assert found[0].text.startswith("Evan Morris Evan L. Morris (January 26, 1977")
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert found[0].contents == first["contents"]  # written as it was read


def test_title_to_sentences_format(test_data):
    found = list(read_corpus(test_data / "qa" / "hotpotqa_train_corpus.json"))
    assert len(found) == 994
    assert found[0].title == "Demon Dice"
    assert "  " not in found[0].text


def test_passages_inside_question_files(test_data, tmp_path):
    """Passages that several questions contain are kept once."""
    found = list(read_corpus(test_data / "qa" / "hotpotqa_train.json"))
    assert len({p.contents for p in found}) == len(found) > 900
    path = tmp_path / "musique.jsonl.gz"
    record = {"paragraphs": [{"title": "A", "paragraph_text": "x"}, {"title": "A", "paragraph_text": "x"}]}
    path.write_bytes(gzip.compress((json.dumps(record) + "\n").encode() * 2))
    assert list(read_corpus(path)) == [Passage("0", "A", "x")]


def test_json_lists_of_passages_and_of_questions(tmp_path):
    """HippoRAG's files: 2wikimultihopqa_corpus.json, musique_corpus.json, and musique.json with the questions."""
    corpus = [{"title": "A", "text": "x"}, {"title": "B", "text": "y"}, {"title": "A", "text": "x"}]
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    assert list(read_corpus(tmp_path / "corpus.json")) == [Passage("0", "A", "x"), Passage("1", "B", "y")]
    paragraphs = [{"idx": 0, "title": "A", "paragraph_text": "x"}, {"idx": 1, "title": None, "paragraph_text": "z"}]
    (tmp_path / "musique.json").write_text(json.dumps([{"id": "q", "question": "?", "paragraphs": paragraphs}] * 2))
    assert list(read_corpus(tmp_path / "musique.json")) == [Passage("0", "A", "x"), Passage("1", "", "z")]
    (tmp_path / "hotpot.jsonl").write_text(json.dumps({"question": "?", "context": [["T", ["a. ", "b."]]]}))
    assert list(read_corpus(tmp_path / "hotpot.jsonl")) == [Passage("0", "T", "a. b.")]


def test_nulls_and_surrogates_in_a_corpus_are_counted(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        '\ufeff{"id": null, "title": null, "text": "half \\ud83d here"}\n{"id": "b", "text": null}\n'
        '{"_id": 9, "text": ["one.", "two."], "title": "T\\udfff"}\n', encoding="utf-8",
    )  # fmt: skip
    issues = DataIssues()
    assert list(read_corpus(path, issues)) == [
        Passage("0", "", "half \ufffd here"),
        Passage("9", "T\ufffd", "one. two."),
    ]
    assert dict(issues.counts) == {SURROGATE_REPLACED: 2, NO_TEXT: 1}
    (tmp_path / "c.json").write_text('{"A\\ud83d": ["x\\ud83d"], "B": null, "C": "y"}')
    issues = DataIssues()
    assert list(read_corpus(tmp_path / "c.json", issues)) == [
        Passage("0", "A\ufffd", "x\ufffd"),
        Passage("2", "C", "y"),
    ]
    assert dict(issues.counts) == {SURROGATE_REPLACED: 1, NO_TEXT: 1}


TEXTS = st.text(st.characters(exclude_categories=()), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PARAGRAPHS = st.lists(st.dictionaries(st.sampled_from(["title", "paragraph_text"]), TEXTS | JSON, max_size=2) | JSON)
RECORDS = st.fixed_dictionaries(
    {}, optional={"id": JSON, "title": JSON, "contents": TEXTS | JSON, "text": TEXTS | JSON, "context": JSON,
                  "paragraphs": PARAGRAPHS | JSON},
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(RECORDS | JSON, max_size=3) | JSON, st.booleans())
def test_any_json_gives_passages_or_a_one_line_error(tmp_path_factory, value, as_lines):
    path = tmp_path_factory.getbasetemp() / f"any-corpus.json{'l' if as_lines else ''}"
    records = value if isinstance(value, list) else [value]
    path.write_text("\n".join(map(json.dumps, records)) if as_lines else json.dumps(value))
    try:
        found = list(read_corpus(path))
    except UserError as error:
        if "any-corpus.json" not in str(error):
            raise
        return
    assert len({passage.passage_id for passage in found}) == len(found)
    for passage in found:
        "".join((passage.passage_id, passage.title, passage.text)).encode()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.jsonl", '{"id": "1", "contents": "x"}\n{"id": "1", "contents": "y"}', "duplicate id '1'"),
        ("c.jsonl", '{"id": "1"}', "c.jsonl:1: no passage: expected `contents`, `text` (and `title`), `paragraphs` or"),
        ("c.jsonl", '{"id": "1", "contents": 3}', "c.jsonl:1: the text is neither a string nor"),
        ("c.jsonl", '{"paragraphs": [{"title": "A"}]}', "c.jsonl:1: a paragraph without"),
        ("c.json", '{"A": [1]}', "neither a string nor a list of sentences"),
        ("c.json", "3", "expected a JSON object of titles"),
        ("c.jsonl", '{"paragraphs": [3]}', "c.jsonl:1: a paragraph without"),
        ("c.json", '[{"question": "q"}]', "record 0: no passage: expected"),
        ("c.json", "[3]", "record 0: expected an object with `contents`"),
        ("c.json", '[{"context": [["A"]]}]', "record 0: `context` is not a list"),
        ("c.json", '[{"context": 3}]', "record 0: `context` is not a list"),
        (
            "c.jsonl",
            '{"id": "1", "contents": ""}\n{"id": "2", "contents": "x"}',
            "c.jsonl: none of its 2 passages contains a word",
        ),
        ("c.jsonl", '{"id": "1", "contents": null}', "c.jsonl has no passages"),
        ("c.txt", "x", "expected .jsonl or .json"),
        ("c.jsonl", "", "has no passages: nothing to index"),
        ("c.json", "{}", "has no passages: nothing to index"),
    ],
)
def test_invalid_corpus_names_the_record_and_leaves_no_index(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        bm25.build(path, tmp_path / "out" / "index")
    assert message in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


@given(st.text(max_size=30), st.text(max_size=30))
def test_contents_round_trip(title, text):
    if "\n" in title or not title:
        return
    assert Passage.from_contents("1", Passage("1", title, text).contents) == Passage("1", title, text)


# -------------------------------------------------------------------------------------------------------- BM25

DOCUMENTS = [
    "red apples and green pears",
    "green green apples",
    "the pears of the north were never red",
    "nothing of interest",
    "apples apples apples pears",
]


def reference(documents, query):
    """Lucene's BM25 from its formula: idf ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b dl / avgdl))."""
    stem = {"apples": "appl", "pears": "pear", "north": "north", "never": "never", "were": "were", "red": "red",
            "green": "green", "nothing": "noth", "interest": "interest"}  # fmt: skip
    texts = [
        [stem.get(w, w) for w in re.findall(r"\w\w+", f"t{i} {text}".lower()) if w not in bm25.STOP_WORDS]
        for i, text in enumerate(documents)
    ]
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for words in texts:
        total = 0.0
        for word in [stem.get(w, w) for w in query.split()]:
            n, tf = sum(word in t for t in texts), words.count(word)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(words) / average))
        scores.append(total)
    return sorted(((i, s) for i, s in enumerate(scores) if s > 0), key=lambda pair: (-pair[1], pair[0]))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["red", "green", "apples", "pears", "north", "interest"]), min_size=1, max_size=5))
def test_bm25_scores_match_the_formula(tmp_path_factory, words):
    folder = tmp_path_factory.getbasetemp() / "formula"
    found = open_index(folder) if folder.exists() else open_index(bm25.build_from(passages(*DOCUMENTS), folder))
    query = " ".join(words)
    expected = reference(DOCUMENTS, query)
    got = found.rank(query, 10)
    assert [i for i, _ in got] == [i for i, _ in expected]
    assert [s for _, s in got] == pytest.approx([s for _, s in expected], rel=1e-5)
    found.close()


def test_scripts_without_spaces_match_by_pairs_and_single_characters(tmp_path):
    found = index(
        tmp_path, "東京は日本の首都です。", "京都には寺が多い", "北京是中华人民共和国的首都",
        "서울은 대한민국의 수도이다", "นิวยอร์ก กรุงเทพมหานคร", "हिन्दी भारत की भाषा है", "the capital of Japan",
        "iPhone手機",
    )  # fmt: skip
    first = {"東京": "0", "京都": "1", "寺": "1", "北京 首都": "2", "서울": "3", "กรุงเทพ": "4", "हिन्दी": "5",
             "भाषा": "5", "capital": "6", "手機": "7", "iphone": "7"}  # fmt: skip
    assert {query: found.search([query], 1)[0][0].passage.passage_id for query in first} == first
    # The pair 東京 occurs in the first passage only; the character 京 also in 京都 and 北京.
    assert [i for i, _ in found.rank("京", 9)] == [1, 0, 2]
    assert found.rank("龍", 9) == []


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_text_is_split_into_words(text):
    assert bm25.split_words(text) == re.findall(r"\w\w+", text)


def test_unsearchable_passages_are_reported(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a whale"}\n{"text": "the"}\n{"text": "x"}\n{"text": null}\n')
    folder = index_of(path, tmp_path)
    issues = index_issues(open_index(folder))
    assert issues == [
        f"1 record with no text (null, skipped) (first: {path}:4)",
        "2 of 3 passages have no indexed word: no query matches them",
    ]  # fmt: skip


def test_index_of_an_older_analyzer_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a whale"}\n')
    monkeypatch.setattr(bm25, "ANALYZER_VERSION", 1)
    old = index_of(path, tmp_path)
    monkeypatch.undo()
    assert index_of(path, tmp_path) != old


def test_surrogates_in_an_older_index_are_replaced(tmp_path):
    found = open_index(bm25.build_from([Passage("1", "T", "whale \ud83d")], tmp_path / "index"))
    assert found.search(["whale"], 1)[0][0].passage.text == "whale \ufffd"


def test_ties_are_in_corpus_order_and_topk_truncates(tmp_path):
    found = index(tmp_path, *["blue whale"] * 5, "blue whale whale")
    everything = [hit.passage.passage_id for hit in found.search(["whale"], 10)[0]]
    assert everything == ["5", "0", "1", "2", "3", "4"]
    for topk in range(1, 7):
        assert [hit.passage.passage_id for hit in found.search(["whale"], topk)[0]] == everything[:topk]


def test_queries_without_match_return_no_hits(tmp_path):
    found = index(tmp_path, *DOCUMENTS)
    assert found.search(["zebra", "", "the of", "?!", "apples"], 1)[:4] == [[], [], [], []]
    assert found.search([], 3) == []


def test_index_is_reused_until_the_corpus_changes(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "x", "contents": "\\"Ümlaut\\"\\nHöhe 北京"}\n', encoding="utf-8")
    folder = index_of(corpus, tmp_path / "cache")
    made = (folder / "meta.json").stat().st_mtime_ns
    assert index_of(corpus, tmp_path / "cache") == folder
    assert (folder / "meta.json").stat().st_mtime_ns == made
    (hit,) = open_index(folder).search(["höhe"], 3)[0]
    assert hit.passage == Passage("x", "Ümlaut", "Höhe 北京")
    corpus.write_text('{"id": "x", "contents": "other"}\n', encoding="utf-8")
    assert index_of(corpus, tmp_path / "cache") != folder
    assert index_of(folder) == folder


def test_folders_that_are_not_an_index(tmp_path):
    with pytest.raises(UserError, match="is not an index"):
        open_index(tmp_path)
    with pytest.raises(UserError, match="no corpus at"):
        index_of(tmp_path / "none.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is not an index"):
        bm25.build_from(passages("x"), tmp_path / "mine")
    folder = bm25.build_from(passages("words"), tmp_path / "i")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": store.VERSION + 1}))
    with pytest.raises(UserError, match="rebuild it"):
        open_index(folder)
    bm25.build_from(passages("other"), folder)  # an old index is replaced
    assert open_index(folder).search(["other"], 1)[0]


def test_progress_counts_every_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(bm25._ProgressList, "CHUNK", 1)
    corpus = tmp_path / "c.json"
    corpus.write_text(json.dumps({f"t{i}": "word" for i in range(7)}))
    seen = []
    bm25.build(corpus, tmp_path / "i", seen.append)
    assert sum(seen) == 7 * bm25.PASSES


# ------------------------------------------------------------------------------------------------------- dense


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small encoder with random weights and a word-level tokenizer."""
    need("faiss")
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "query", "passage", "red", "green", "blue", "whale", "tree", "stone"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def test_a_dense_index_finds_the_nearest_vectors(encoder, tmp_path):
    import numpy as np
    import torch
    import transformers

    from paw_fast.envs.search_qa.retrieval import dense

    texts = ["red whale", "green tree", "blue stone", "red red tree", "stone"]
    corpus = tmp_path / "c.json"
    corpus.write_text(json.dumps({f"t{i}": text for i, text in enumerate(texts)}))
    settings = dense.EncoderSettings(encoder, batch_size=2)
    found = open_index(dense.build(corpus, tmp_path / "dense", settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder).eval()

    def vector(text):
        """Encodes one text without padding."""
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0).double().numpy()
        return mean / np.linalg.norm(mean)

    matrix = np.stack([vector(f"passage: t{i} {text}") for i, text in enumerate(texts)])
    queries = ["whale", "green stone tree"]
    for query, hits in zip(queries, found.search(queries, 3), strict=True):
        scores = matrix @ vector("query: " + query)
        assert [int(hit.passage.passage_id) for hit in hits] == list(np.argsort(-scores)[:3])
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)
    assert found.search([], 3) == []
    assert len(found.search(["red"], 50)[0]) == len(texts)
    found.close()


def test_encoder_that_cannot_be_loaded(tmp_path):
    need("faiss")
    from paw_fast.envs.search_qa.retrieval import dense

    with pytest.raises(UserError, match="--encoder /no/such/encoder"):
        dense.Encoder(dense.EncoderSettings("/no/such/encoder"))
