"""The gap between generator and trainer against hand-computed numbers, and its two thresholds."""

import math

import numpy as np
import pytest

from paw_fast.algorithms.off_policy import check_gap, gap_metrics, truncated_importance
from paw_fast.config import PipelineConfig
from paw_fast.errors import UserError


def test_gap_by_hand():
    sampled = [np.array([-1.0, -2.0]), np.array([-0.5])]
    old = [np.array([-1.0, -1.5]), np.array([-1.0])]
    got = gap_metrics(sampled, old)
    assert got["rollout/logprob_gap_mean"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert got["rollout/logprob_gap_max"] == pytest.approx(0.5)
    expected = ((math.exp(0.5) - 1 - 0.5) + (math.exp(-0.5) - 1 + 0.5)) / 3
    assert got["rollout/mismatch_kl"] == pytest.approx(expected)


def test_the_kl_estimate_converges_to_the_kl():
    rng = np.random.default_rng(0)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    tokens = rng.choice(3, 200_000, p=p)
    got = gap_metrics([np.log(p)[tokens]], [np.log(q)[tokens]])["rollout/mismatch_kl"]
    assert got == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.03)


def test_thresholds():
    config = PipelineConfig(gap_warn=0.1, gap_stop=1.0)
    row = lambda gap: {"rollout/logprob_gap_mean": gap, "rollout/mismatch_kl": gap**2}  # noqa: E731
    assert check_gap(row(0.05), config, 0) is None
    warning = check_gap(row(0.5), config, 4)
    assert warning is not None
    assert "step 5" in warning
    assert "0.5 nats" in warning
    for gap in (1.5, math.nan):
        with pytest.raises(UserError, match="was not updated"):
            check_gap(row(gap), config, 0)


def test_importance_weights_by_hand():
    got = truncated_importance([np.array([-1.0, -1.0, -3.0])], [np.array([-1.0, -2.0, 700.0])], 2.0)
    assert got[0].dtype == np.float32
    assert got[0].tolist() == pytest.approx([1.0, math.exp(-1), 2.0])
