"""Groups of runs that differ in their seed alone, and the intervals of their success."""

from pathlib import Path

import pytest

from paw_fast.runs.run_data import Run
from paw_fast.runs.run_groups import differing_settings, group_runs
from paw_fast.runs.statistics import mean_interval, newcombe_interval, t_quantile, welch_interval


def run(seed=0, final=None, total=100, **settings):
    rows = [{"step": 0, "success/eval_rate": 0.2, "success/eval_total": total}]
    if final is not None:
        rows.append({"step": 5, "success/eval_rate": final, "success/eval_total": total})
    config = {"seed": seed, "run_dir": f"/runs/{seed}", "paw": {"enabled": True}, **settings} if settings else {}
    return Run(Path("r"), rows, {}, config, "")


def test_grouped_by_everything_but_seed_and_folder():
    runs = [run(0, lr=1), run(1, lr=2), run(2, lr=1), run(3, lr=3)]
    groups = group_runs(runs, ["a", "b", "c", "d"])
    assert [(group.label, group.numbers) for group in groups] == [("lr = 1", (0, 2)), ("b", (1,)), ("d", (3,))]
    assert differing_settings(runs) == {"lr": [1, 2, 1, 3]}


def test_runs_without_settings_are_not_grouped():
    assert len(group_runs([run(), run()], ["a", "b"])) == 2


def test_long_labels_are_cut():
    runs = [run(seed, **dict.fromkeys("abcde", value)) for value in (1, 2) for seed in (0, 1)]
    assert [group.label for group in group_runs(runs, list("wxyz"))] == [
        "a = 1, b = 1, c = 1 and 2 more", "a = 2, b = 2, c = 2 and 2 more",
    ]  # fmt: skip


def test_estimates_of_one_run_and_of_several():
    one, three = group_runs(
        [run(0, 0.5, lr=1), *(run(n, f, lr=2) for n, f in enumerate((0.4, 0.5, 0.6)))], list("abcd")
    )
    assert (one.latest.value, one.latest.source) == (0.5, "100 tasks")
    assert one.gain.value == pytest.approx(0.3)
    assert (one.gain.low, one.gain.high) == pytest.approx(newcombe_interval((20, 50), (100, 100)))
    assert (three.latest.value, three.latest.low) == pytest.approx((0.5, 0.5 - 4.303 * 0.1 / 3**0.5))
    assert three.gain.value == pytest.approx(0.3)
    assert three.before.low == three.before.high == pytest.approx(0.2)
    mixed = three.difference_to(one)
    assert (mixed.value, mixed.low, mixed.source) == (pytest.approx(0.0), None, "3 and 1 runs")
    assert not mixed.exceeds_interval


def test_without_evaluations_there_is_no_gain():
    (group,) = group_runs([run(0, lr=1)], ["a"])
    assert group.before.value == 0.2
    assert group.latest is None
    assert group.gain is None
    assert group.difference_to(group) is None


def test_an_unknown_number_of_tasks_gives_no_interval():
    (group,) = group_runs([run(0, 0.5, total=0, lr=1)], ["a"])
    assert (group.gain.low, group.gain.exceeds_interval) == (None, False)


@pytest.mark.parametrize(
    ("successes", "totals", "expected"),
    [  # Newcombe (1998), table II, method 10, with the groups exchanged
        ((48, 56), (80, 70), (0.0524, 0.3339)),
        ((3, 9), (10, 10), (0.1705, 0.8090)),
        ((0, 5), (29, 56), (-0.0381, 0.1926)),
        ((0, 10), (10, 10), (0.6075, 1.0)),
    ],
)
def test_newcombe_of_the_paper(successes, totals, expected):
    assert newcombe_interval(successes, totals) == pytest.approx(expected, abs=6e-5)


def test_t_quantiles():
    # Of tables: 1.5 has no table; it lies between those of 1 and 2.
    assert [t_quantile(df) for df in (1, 4, 30)] == pytest.approx([12.706, 2.776, 2.042], abs=1e-3)
    assert [t_quantile(df) for df in (40, 60, 120)] == pytest.approx([2.021, 2.000, 1.980], abs=1e-3)
    assert 4.303 < t_quantile(1.5) < 12.706


def test_intervals_of_equal_values():
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert welch_interval([0.5, 0.5], [0.75, 0.75]) == (0.25, 0.25, 0.25)
