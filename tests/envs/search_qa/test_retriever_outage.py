"""Tests a retriever outage in a rollout worker process: it waits, reports to the trainer, counts, and resumes."""

import dataclasses
import http.server
import json
import os
import socket
import threading
import time

import pytest
import torch
from make_records import request_for
from search_extras import need

from paw_fast.config import load_preset
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.factory import make_env
from paw_fast.rollout.worker_pool import RolloutWorkerPool, merged

need("httpx")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="weights travel through memfd, which is Linux's"
)
ACTION = "<search>mug</search>"


class Passages(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        one = [{"document": {"id": "1", "contents": '"Mugs"\nA mug holds tea.'}, "score": 1.0}]
        data = json.dumps({"result": [one] * len(body["queries"])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def policy():
    """A policy that always searches: all tokens have the same embedding, and one token always follows."""
    tokenizer = tiny.train_tokenizer(["what holds tea?"] * 20, 300)
    tokenizer.add_tokens([ACTION])
    model = tiny.build_model(len(tokenizer), hidden=16, layers=1, heads=2, kv_heads=1, ffn=16)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(ACTION)] = 10.0
    return Policy(model, tokenizer)


@pytest.fixture
def config(tmp_path):
    questions = tmp_path / "questions.jsonl"
    lines = [{"id": str(i), "question": f"what holds tea? {i}", "golden_answers": ["a mug"]} for i in range(3)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base, replace = load_preset("tiny", "search"), dataclasses.replace
    return replace(
        base,
        env=replace(
            base.env, train=(str(questions),), eval=(str(questions),), max_steps=2, retriever_retries=0,
            retriever=f"http://127.0.0.1:{port}",
        ),
        rollout=replace(
            base.rollout, placement="process", slots=2, max_action_tokens=1, hang_timeout_s=3.0, sync_timeout_s=1.0,
        ),
        model=replace(base.model, device="cpu"),
    )  # fmt: skip


def test_worker_waits_for_the_retriever_and_is_not_restarted(config, policy, tmp_path, capfd):
    pool = RolloutWorkerPool(config, policy, tmp_path / "workers")
    server = None
    try:
        process = pool._workers[0].process.pid
        tasks = make_env(config.env).tasks("train")
        pool.submit([request_for(tasks[0], 0, i) for i in range(2)])
        end = time.monotonic() + 5.0  # nearly twice the hang timeout of a worker
        while time.monotonic() < end:
            assert pool.poll() == []
        stderr = " ".join(capfd.readouterr().err.split())
        assert f"worker 0: paused: the retriever at {config.env.retriever}/retrieve does not answer" in stderr

        def come_up():
            nonlocal server
            time.sleep(2.0)
            port = int(config.env.retriever.rsplit(":", 1)[1])
            server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Passages)
            server.serve_forever()

        threading.Thread(target=come_up, daemon=True).start()
        pool.update_weights(1)  # the worker handles this only once the server is back, after twice the timeout
        ended, deadline = [], time.monotonic() + 60
        while len(ended) < 2:
            assert time.monotonic() < deadline
            ended += pool.poll()
        assert pool._workers[0].process.pid == process
        assert all("A mug holds tea" in t.transitions[0].observation_text for t in ended)
        counts = pool.take_metrics()
        assert counts["retrieval/queries"] == 2  # the last step of an episode does not search
        assert counts["retrieval/known_share"] == 1 / 2
        assert counts["retrieval/failures"] >= 1
        assert counts["retrieval/paused_s"] > 5
        stderr = " ".join(capfd.readouterr().err.split())
        assert "worker 0: the retriever" in stderr
        assert "restarting it" not in stderr
        assert pool.take_metrics() == {}
    finally:
        pool.close()
        if server is not None:
            server.shutdown()
            server.server_close()


def test_metrics_of_several_workers_are_merged():
    """Computed by hand: 3 + 1 queries of which 1 + 1 were cached; failures and seconds add up."""
    one = {"retrieval/queries": 3.0, "retrieval/known_share": 1 / 3, "retrieval/failures": 2.0}
    two = {"retrieval/queries": 1.0, "retrieval/known_share": 1.0, "retrieval/paused_s": 4.0}
    idle = {"retrieval/queries": 0.0}
    assert merged([one, two, idle]) == {
        "retrieval/queries": 4.0, "retrieval/known_share": 0.5, "retrieval/failures": 2.0, "retrieval/paused_s": 4.0,
    }  # fmt: skip
    assert merged([]) == {}
