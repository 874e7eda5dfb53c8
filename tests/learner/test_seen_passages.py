"""Which passages a run has shown, and the world model's error on new and repeated ones told apart."""

import dataclasses

import numpy as np
import pytest
import torch
from make_records import update

from paw_fast.config import load_preset
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.learner.seen_passages import NEW, NO_PASSAGE, REPEATED, SeenPassages, shown_passages
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.types import EpisodeId, RolloutBatch, Task, Trajectory, Transition

VOCAB = 60


def turn(prompt, passages, observed=(7, 8, 9, 10, 11)):
    mask = tuple(i > 0 for i in range(len(observed)))  # the first is glue
    return Transition(prompt, (5, 6), (-1.0, -1.0), observed, mask, "c", "o", "s", 0.0, True, passages=passages)


def episode(*of_turns, group=0):
    """Turns with the given passages, in the trajectory layout."""
    prompt, turns = (3, 4), []
    for number, passages in enumerate(of_turns):
        turns.append(turn(prompt, passages, tuple(range(20 + 5 * number + group, 25 + 5 * number + group))))
        prompt = prompt + turns[-1].action_ids + turns[-1].observation_ids
    return Trajectory(Task("t"), EpisodeId(0, group, 0), tuple(turns), 0.0, 0.0, False)


def batch_of(trajectories, layout):
    return RolloutBatch(tuple(trajectories), tuple(build_sequences(trajectories, layout)))


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_labels_stand_on_the_passages_own_tokens(layout):
    memory = SeenPassages()
    memory.add(1, ["a"])
    trajectory = episode(((1, 3, "a"), (3, 5, "b")), ((2, 4, "c"),))
    batch = batch_of([trajectory], layout)
    labels = memory.label(batch)
    found = []
    for sequence, of_tokens in zip(batch.sequences, labels, strict=True):
        for span in sequence.spans:
            start = span.action[1]
            found.append(of_tokens[start : start + 5].tolist())
            assert not of_tokens[: span.action[0]].any() or layout == "trajectory"
            assert not of_tokens[span.action[0] : span.action[1]].any()
    none, old, new = NO_PASSAGE, REPEATED, NEW
    assert found == [[none, old, old, new, new], [none, none, new, new, none]]


def test_without_passages_there_is_nothing_to_tell_apart():
    trajectory = episode((), ())
    assert SeenPassages().label(batch_of([trajectory], "trajectory")) is None


def test_a_run_keeps_what_was_shown_and_a_resumed_one_reads_it(tmp_path):
    path = tmp_path / "passages.jsonl"
    memory = SeenPassages(path)
    memory.add(0, ["w"])
    memory.add(1, ["a", "b\nline", "a"])
    memory.add(2, ["b\nline", "c"])
    memory.add(3, ["c"])
    assert path.read_text().count("\n") == 3  # nothing new in step 3
    trajectory = episode(((1, 2, "w"), (2, 3, "a"), (3, 4, "b\nline"), (4, 5, "c")))
    batch = batch_of([trajectory], "trajectory")

    def known(memory):
        (of_tokens,) = memory.label(batch)
        return of_tokens[5:9].tolist()

    with open(path, "a") as handle:
        handle.write('{"step": 4, "ne')  # cut short by a kill
    assert known(SeenPassages(path, 1)) == [REPEATED, REPEATED, REPEATED, NEW]
    assert known(SeenPassages(path, 9)) == [REPEATED, REPEATED, REPEATED, NEW]  # later steps were dropped before
    assert known(SeenPassages(path)) == [NEW] * 4  # a new run starts without any
    assert path.read_text() == ""
    path.write_text("[]\n{}\n")
    with pytest.raises(UserError, match=r"passages\.jsonl:1: not a line of passages"):
        SeenPassages(path, 1)


def test_shown_passages_come_once_and_in_order():
    trajectories = [episode(((1, 2, "b"), (2, 3, "a"))), episode(((1, 2, "a"), (2, 3, "c")))]
    assert shown_passages(trajectories) == ["b", "a", "c"]


def test_stretches_of_a_text_become_stretches_of_its_tokens():
    text = "<information>Doc 1(Title: About a) All on a.\nDoc 2 other words</information>"
    chat = ChatFormat(tiny.train_tokenizer([text] * 20 + ["Doc 1 Doc 2 other", "All on a."], 300))
    first, second = text.index("Doc 1"), text.index("Doc 2")
    places = [(first, second - 1, "a"), (second, text.index("</info"), "b"), (len(text) + 5, len(text) + 9, "c")]
    found = chat.locate(text, places)
    ids = chat.encode(text)
    starts = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [name for *_, name in found] == ["a", "b"]
    for (start, end, _), (low, high, _) in zip(found, places, strict=False):
        assert all(low <= starts[i][0] < high for i in range(start, end))
        assert start == 0 or starts[start - 1][0] < low
        assert end == len(ids) or starts[end][0] >= high


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_the_errors_are_those_of_the_policy_before_the_step(layout):
    base = load_preset("tiny")
    config = dataclasses.replace(
        base, layout=layout, paw=dataclasses.replace(base.paw, alpha=1.0), token_budget=40,
        algo=dataclasses.replace(base.algo, minibatches=1, kl_coef=0.0),
    )  # fmt: skip
    model = tiny.build_model(VOCAB, hidden=32, layers=1, heads=4, kv_heads=2, ffn=48, seed=1)
    policy = Policy(model, None)
    learner = Learner(policy, None, config)
    learner.seen_passages.add(1, ["a"])
    trajectories = [
        episode(((1, 3, "a"), (3, 5, "b")), ((2, 4, "c"),)),
        episode(((1, 5, "b"),), group=1),
        episode((), ((1, 2, "a"),), group=1),
    ]
    errors = {REPEATED: [], NEW: []}
    for trajectory in trajectories:
        for t in trajectory.transitions:
            ids = t.prompt_ids + t.action_ids + t.observation_ids
            with torch.no_grad():
                hidden = policy.hidden(torch.tensor(ids), torch.arange(len(ids)), (len(ids),))
                p = torch.softmax(policy.lm_head(hidden).double(), -1)
            before = len(t.prompt_ids) + len(t.action_ids)
            for start, end, name in t.passages:
                for i in range(before + start, before + end):
                    errors[REPEATED if name == "a" else NEW].append(1 - float(p[i - 1, ids[i]]))
    metrics = update(learner, learner.make_batch(trajectories), step=1)
    assert metrics["wm/repeated_passage_error"] == pytest.approx(np.mean(errors[REPEATED]), rel=1e-4)
    assert metrics["wm/new_passage_error"] == pytest.approx(np.mean(errors[NEW]), rel=1e-4)
    assert metrics["wm/new_passage_share"] == pytest.approx(
        len(errors[NEW]) / (len(errors[NEW]) + len(errors[REPEATED]))
    )
    again = update(learner, learner.make_batch(trajectories), step=2)
    assert again["wm/new_passage_share"] == 0.0
    assert "wm/new_passage_error" not in again
