"""The selection of transitions and the weights of their tokens stay on the device from the scoring to the loss."""

import dataclasses

import numpy as np
import pytest
import torch
from make_records import update
from selection_helpers import episodes, make_learner

from paw_fast import kernels
from paw_fast.algorithms import world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.kernels import native
from paw_fast.learner import join_groups
from paw_fast.types import EpisodeId, Task, TokenStats, Trajectory

READS = {"cpu", "numpy", "item", "tolist", "__array__", "__float__", "__int__", "__bool__", "__index__"}


class OnDevice(torch.Tensor):
    """A tensor that reports each read by the host, as do all results of operations on it."""

    reads: list[tuple[str, torch.dtype, int]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        found = super().__torch_function__(func, types, args, kwargs or {})
        if name in READS or (name == "to" and "cpu" in (*args[1:2], (kwargs or {}).get("device"))):
            cls.reads.append((name, args[0].dtype, args[0].numel()))
            return found.as_subclass(torch.Tensor) if isinstance(found, torch.Tensor) else found  # it is on the host
        return found


def spy_on_loss(monkeypatch):
    """The weights with which the loss is called. Its results may be read."""
    seen, loss = [], kernels.linear_paw_loss

    def run(hidden, weight, rows, *args, **more):
        seen.append(rows.weights)
        return kernels.LossOutput(*(x.as_subclass(torch.Tensor) for x in loss(hidden, weight, rows, *args, **more)))

    monkeypatch.setattr(kernels, "linear_paw_loss", run)
    return seen


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("mode", kernels.SELECTION_MODES)
def test_the_host_reads_the_mask_of_transitions_and_nothing_else(minibatches, mode, monkeypatch):
    learner = make_learner(minibatches, selection=mode)
    batch, stats = join_groups([
        (group, learner.compute_token_stats(group))
        for group in (learner.make_batch(part) for part in (episodes()[:4], episodes()[4:]))
    ])  # fmt: skip
    guarded = [part.as_subclass(OnDevice) for part in stats.token_entropies]
    seen = spy_on_loss(monkeypatch)
    OnDevice.reads.clear()
    credit = make_algorithm(learner.config).credit(batch, stats)
    weights = world_model.select(batch, dataclasses.replace(stats, token_entropies=guarded), learner.config, 0)
    learner.update(batch, stats, credit, weights, 0)
    assert OnDevice.reads == [("cpu", torch.bool, len(batch.transitions))]
    assert len(seen) == minibatches
    assert all(type(one) is OnDevice for one in seen)


def test_the_guard_sees_reads_by_the_host():
    values = torch.ones(3).as_subclass(OnDevice)
    OnDevice.reads.clear()
    (values * 2).cpu()
    float(values.sum())
    np.asarray(values)
    assert [name for name, *_ in OnDevice.reads][:1] == ["cpu"]
    assert len(OnDevice.reads) >= 3


def by_hand(batch, stats, learner, chosen):
    """For every token of the sequences `chosen`, lambda / N_WM in float64: which transitions by sorting in numpy."""
    paw = learner.config.paw
    spans = [span for q in batch.sequences for span in q.spans]
    among = np.array([len(span.observation) > 0 for span in spans])
    order = sorted(np.flatnonzero(among), key=lambda i: (-stats.entropies[i], i))
    selected = np.zeros(len(spans), dtype=bool)
    selected[order[: max(1, int(paw.alpha * among.sum()))]] = True
    returns = np.array([t.success_return for t in batch.trajectories])
    lambdas = [
        paw.lambda_0 * (1 - returns[batch.groups == group].mean() / learner.config.algo.success_reward)
        for group in batch.groups
    ]
    weights = [
        lambdas[batch.sequences[i].trajectory] * selected[span.transition]
        for i in chosen for span in batch.sequences[i].spans for _ in span.observation
    ]  # fmt: skip
    counted = sum(
        len(span.observation) for i in chosen for span in batch.sequences[i].spans if selected[span.transition]
    )
    return selected, np.array(weights) / counted


@pytest.mark.parametrize("layout", ["window", "trajectory"])
def test_weights_are_lambda_over_the_tokens_of_the_optimizer_batch(layout):
    learner = make_learner(layout=layout)
    batch = learner.make_batch(episodes(layout=layout))
    stats = learner.compute_token_stats(batch)
    found = world_model.select(batch, stats, learner.config, 0)
    cpu = torch.device("cpu")
    for chosen in (range(len(batch.sequences)), range(1, len(batch.sequences), 2)):
        selected, expected = by_hand(batch, stats, learner, chosen)
        assert (found.selected == selected).all()
        got = world_model.token_weights(found, [batch.sequences[i] for i in chosen], cpu)
        assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert world_model.token_weights(found, batch.sequences, cpu) is found.selection.wm_weights


def test_an_update_runs_the_kernel(monkeypatch):
    called, run = [], native.call
    monkeypatch.setattr(native, "call", lambda op, kernel, *args: (called.append(op), run(op, kernel, *args)))
    for name in ("sort", "argsort", "topk", "segment_reduce", "repeat_interleave"):
        monkeypatch.setattr(torch, name, lambda *_, name=name, **__: pytest.fail(f"torch.{name} was called"))
    learner = make_learner(minibatches=2)
    metrics = update(learner, learner.make_batch(episodes()))
    assert metrics["wm/selected_share"] == pytest.approx(0.5, abs=0.1)
    assert called.count("select_transitions") == 3  # the step's selection, and the weights of two optimizer batches


def test_without_the_kernel_there_is_no_update(monkeypatch):
    learner = make_learner()
    batch = learner.make_batch(episodes())
    stats = learner.compute_token_stats(batch)
    monkeypatch.setattr(native, "_native", None)
    with pytest.raises(RuntimeError, match=r"select_transitions cannot run: .*extension is missing"):
        world_model.select(batch, stats, learner.config, 0)


def test_a_step_without_transitions_selects_nothing():
    learner = make_learner()
    batch = learner.make_batch([Trajectory(Task("t"), EpisodeId(0, 0, 0), (), 0.0, 0.0, False)])
    found = world_model.select(batch, TokenStats([], None, None, []), learner.config, 0)
    assert (len(found.selected), found.lambdas.tolist()) == (0, [1.0])
    assert world_model.token_weights(found, batch.sequences, torch.device("cpu")).tolist() == []
