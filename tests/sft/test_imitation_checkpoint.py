"""Imitation that is stopped goes on to bit for bit the weights of one that was not."""

import copy
import dataclasses
import signal

import numpy as np
import pytest
import torch

from paw_fast.config import load_preset
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.runs import stop_signals
from paw_fast.sft.imitation_checkpoint import ImitationCheckpoint
from paw_fast.sft.warm_start import imitate
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 60
STEPS = 8


class Killed(BaseException):
    """Stands for a kill: nothing is saved when it is raised."""


@pytest.fixture(scope="module")
def config():
    base = load_preset("tiny")
    settings = dataclasses.replace(base.warm_start, noop_share=0.25, epochs=1, batch_tokens=1)
    return dataclasses.replace(base, layout="window", warm_start=settings)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    draw = lambda n: tuple(int(i) for i in rng.integers(5, VOCAB, n))  # noqa: E731
    turns = [
        Transition(draw(4), draw(3), (0.0,) * 3, draw(3), (True,) * 3, "c", "o", "s", 0.0, True) for _ in range(STEPS)
    ]
    return build_sequences([Trajectory(Task("t"), EpisodeId(0, 0, 0), tuple(turns), 0.0, 0.0, True)], "window")


def run(sequences, config, checkpoint=None, stop_at=None, error=None):
    """Imitates with a fresh model; at step `stop_at` raises `error`. Returns the loss, weights and shown progress."""
    policy = Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)
    shown = []

    def progress(done, loss):
        shown.append(done)
        if sum(shown) == stop_at:
            raise error

    loss = imitate(policy, sequences, [True] * STEPS, config, progress, checkpoint=checkpoint)
    return loss, copy.deepcopy(policy.model.state_dict()), shown


def same(a, b):
    return a[0] == b[0] and all(torch.equal(v, b[1][k]) for k, v in a[1].items())


@pytest.mark.parametrize("stop_at", [1, 4, STEPS])
def test_a_stop_signal_loses_no_step(tmp_path, sequences, config, stop_at):
    whole = run(sequences, config)
    path = tmp_path / "progress.pt"
    with pytest.raises(stop_signals.Interrupted):
        run(sequences, config, ImitationCheckpoint(path, "k"), stop_at, stop_signals.Interrupted(signal.SIGINT))
    resumed = run(sequences, config, ImitationCheckpoint(path, "k"))
    assert same(resumed, whole)
    assert resumed[2] == [stop_at] + [1] * (STEPS - stop_at)


def test_a_kill_loses_what_was_done_since_the_last_save(tmp_path, sequences, config):
    """The clock ticks once whenever it is read, so that each third step is saved."""
    whole = run(sequences, config)
    path, ticks = tmp_path / "progress.pt", iter(range(1000))
    clock = lambda: float(next(ticks))  # noqa: E731
    with pytest.raises(Killed):
        run(sequences, config, ImitationCheckpoint(path, "k", every_s=3.0, clock=clock), 5, Killed())
    resumed = run(sequences, config, ImitationCheckpoint(path, "k"))
    assert same(resumed, whole)
    assert resumed[2] == [3] + [1] * (STEPS - 3)


def test_stopped_twice(tmp_path, sequences, config):
    whole, path = run(sequences, config), tmp_path / "progress.pt"
    for at in (2, 6):
        with pytest.raises(stop_signals.Interrupted):
            run(sequences, config, ImitationCheckpoint(path, "k"), at, stop_signals.Interrupted(signal.SIGTERM))
    assert same(run(sequences, config, ImitationCheckpoint(path, "k")), whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "is damaged: the imitation begins again"),
        (lambda p: p.write_bytes(b""), "is damaged: the imitation begins again"),
        (None, "is of other demonstrations or settings: the imitation begins again"),
    ],
)
def test_what_cannot_be_continued_begins_again(tmp_path, sequences, config, capsys, damage, message):
    whole, path = run(sequences, config), tmp_path / "progress.pt"
    with pytest.raises(stop_signals.Interrupted):
        run(sequences, config, ImitationCheckpoint(path, "k"), 4, stop_signals.Interrupted(signal.SIGINT))
    if damage:
        damage(path)
    again = run(sequences, config, ImitationCheckpoint(path, "k" if damage else "other"))
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert same(again, whole)
    assert again[2] == [1] * STEPS
