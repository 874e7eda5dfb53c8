"""Updates on several gloo processes are those of one process: statistics, gradients, weights, checkpoints."""

import numpy as np
import pytest
import rank_cases
import torch
from rank_cases import Case

TWO = {
    "window": Case(),
    "trajectory": Case(layout="trajectory", tied=False, kl=0.1),
    "replicated": Case(replicate=2),
    "checkpointing": Case(checkpointing=True, tied=False, minibatches=3),
    "one sequence": Case(layout="trajectory", num_episodes=2, budget=10**6, minibatches=2),
    "ppo": Case(algo="ppo", critic="own", tied=False, minibatches=2),
    "ppo shared": Case(algo="ppo", critic="shared", layout="trajectory", kl=0.1, tied=False),
    "ppo warm-up": Case(algo="ppo", critic="shared", warmup=1),
    "bfloat16": Case(dtype="bfloat16"),
}
FOUR = {
    "fsdp": Case(tied=False, kl=0.1),
    "hsdp": Case(replicate=2, layout="trajectory"),
    "hsdp ppo": Case(replicate=2, algo="ppo", critic="own"),
}
SAVED = {
    "grpo": Case(minibatches=2),
    "own": Case(algo="ppo", critic="own", tied=False),
    "shared": Case(algo="ppo", critic="shared", layout="trajectory"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(root):
    """What the saved cases give on one process, after writing its checkpoints."""
    return {name: rank_cases.save_and_go_on(case, root / f"{name}_1") for name, case in SAVED.items()}


@pytest.fixture(scope="module")
def two(root, alone):
    return on_ranks(2, TWO, root)


@pytest.fixture(scope="module")
def four(root, two):
    return on_ranks(4, FOUR, root)


def on_ranks(size, cases, root):
    rank_cases.spawn(size, rank_cases.run_cases, cases, root / f"{size}.pt", SAVED, root)
    return torch.load(root / f"{size}.pt", weights_only=False)


def compare(found, expected, where, first=True):
    """Compares statistics, selection, metrics and gradients: to 1e-6 before the first step of the optimizer, where
    `first`, and to 1e-5 after it. AdamW's first steps divide small gradients by themselves, rounding included."""
    seen, tolerance = set(), 1e-6 if first else 1e-5

    def close(a, b, scale=1.0):
        message = lambda text: f"{where}: {text}"  # noqa: E731
        torch.testing.assert_close(a, b, atol=scale * tolerance, rtol=10 * scale * tolerance, msg=message)

    for mine, theirs in zip(expected["steps"], found["steps"], strict=True):
        assert np.array_equal(mine["selected"], theirs["selected"]), where
        assert np.array_equal(mine["lambdas"], theirs["lambdas"]), where
        for name in ("old_logprobs", "ref_logprobs", "values"):
            columns = (getattr(one["stats"], name) or [np.zeros(0)] for one in (theirs, mine))
            a, b = (torch.from_numpy(np.concatenate(column)) for column in columns)
            close(a, b, 4.0)
        assert mine["metrics"].keys() == theirs["metrics"].keys(), where
        for key, value in mine["metrics"].items():
            assert theirs["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-5), (where, key)
        assert len(mine["gradients"]) == len(theirs["gradients"]) > 0, where
        for (i, a), (j, b) in zip(theirs["gradients"], mine["gradients"], strict=True):
            assert i == j, where
            tolerance = 1e-5 if i in seen else tolerance
            seen.add(i)
            close(a, b)
    assert expected["weights"].keys() == found["weights"].keys(), where


@pytest.mark.parametrize("name", [name for name, case in TWO.items() if case.dtype == "float32"])
def test_two_ranks_are_as_one(name, two):
    compare(two[name], rank_cases.run(TWO[name]), f"{name}, 2 ranks")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FOUR))
def test_four_ranks_are_as_one(name, four):
    compare(four[name], rank_cases.run(FOUR[name]), f"{name}, 4 ranks")


def test_bfloat16_is_near(two):
    """In bfloat16 the ranks keep float32 weights, and one process float32 copies beside bfloat16 ones."""
    expected, found = rank_cases.run(TWO["bfloat16"]), two["bfloat16"]
    for key in ("policy/loss", "wm/loss", "optim/grad_norm"):
        assert found["steps"][0]["metrics"][key] == pytest.approx(expected["steps"][0]["metrics"][key], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in found["weights"].values())


def check_resumed(name, size, found, alone, root):
    """The second step from checkpoints of one process, of two and of `size` ranks, and of one process from these."""
    case = SAVED[name]
    compare(found[name, size], alone[name], f"{name}, {size} ranks", False)
    for a, b in zip(found[name, size, size]["weights"].values(), found[name, size]["weights"].values(), strict=True):
        assert torch.equal(a, b), f"{name}: {size} ranks resume exactly"
    for before in {1, 2, size}:
        compare(found[name, before, size], alone[name], f"{name}, {before} to {size} ranks", False)
    folder = root / f"{name}_{size}" / "checkpoints" / "step_000001"
    compare(rank_cases.go_on(case, folder), alone[name], f"{name}, {size} ranks to one", False)


@pytest.mark.parametrize("name", list(SAVED))
def test_two_ranks_and_one_go_on_from_each_other(name, root, alone, two):
    check_resumed(name, 2, two, alone, root)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAVED))
def test_four_ranks_two_and_one_go_on_from_each_other(name, root, alone, four):
    check_resumed(name, 4, four, alone, root)
