"""Fuzzes what comes over the retriever's connection: requests at the server, responses at the client."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.search_qa.retrieval.records import MAX_TOPK
from paw_fast.envs.search_qa.retrieval.remote import parse_response
from paw_fast.envs.search_qa.retrieval.server import MAX_QUERIES, BadRequest, encode_response, parse_request
from paw_fast.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["queries", "query", "topk", "return_scores", "other"])
DOCUMENTS = st.dictionaries(st.sampled_from(["id", "contents", "text", "title", "document", "score"]), JSON)


def check_request(body):
    refused = None
    try:
        queries, topk, with_scores = parse_request(body)
    except BadRequest as error:
        refused = error
    if refused is not None:
        assert 400 <= refused.status < 500
        assert len(refused.reason) < 300
        return
    assert 1 <= len(queries) <= MAX_QUERIES
    assert all(query.encode("utf-8") for query in queries)
    assert 1 <= topk <= MAX_TOPK
    assert isinstance(with_scores, bool)


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused(body):
    check_request(body)


@settings(max_examples=100)
@given(st.dictionaries(KEYS, JSON), st.integers(0, 80))
def test_any_object_is_a_request_or_refused(request, cut):
    body = json.dumps(request).encode()
    check_request(body)
    check_request(body[:cut])


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"query":' * 50_000, b'{"query": "a", "topk": ' + b"9" * 5000 + b"}"]
)
def test_deep_and_long_requests_are_refused(body):
    with pytest.raises(BadRequest):
        parse_request(body)


def check_response(answer, count=1):
    with contextlib.suppress(UserError):
        hits = parse_response(answer, count, 3, "here")
        assert len(hits) == count
        json.loads(encode_response(hits, True))
        assert all(len(one) <= 3 and hit.passage.contents.encode("utf-8") is not None for one in hits for hit in one)


@settings(max_examples=100)
@given(
    JSON | st.fixed_dictionaries({"result": JSON | st.lists(st.lists(DOCUMENTS, max_size=4) | DOCUMENTS, max_size=3)})
)
def test_any_response_is_hits_or_a_user_error(answer):
    for count in (1, 2):
        check_response(answer, count)


@pytest.mark.parametrize("key", ["id", "title", "contents", "score"])
@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_deep_responses_are_hits_or_a_user_error(key, depth):
    value = []
    for _ in range(depth):
        value = [value]
    check_response({"result": [[{"contents": "a", key: value}]]})
    check_response({"result": value})


def test_long_numbers_in_a_response():
    check_response({"result": [[{"contents": "a", "id": 10**5000, "score": 10**400}]]})
