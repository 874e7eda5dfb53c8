"""Tests of the problems that a step's metrics show, and of a run's last lines."""

from pathlib import Path

import pytest

from paw_fast.runs.outcome import outcome_lines
from paw_fast.runs.statistics import newcombe_interval, paired_interval
from paw_fast.runs.trouble import QUIET_STEPS, TroubleWatch


@pytest.mark.parametrize(
    ("fine", "bad", "words"),
    [
        (
            {"episode/invalid_action_rate": 0.5}, {"episode/invalid_action_rate": 0.98},
            "98% of actions are invalid: see episodes/step_000002.txt",
        ),
        (
            {"policy/group_spread_share": 0.0, "policy/advantage_abs_mean": 0.1},
            {"policy/group_spread_share": 0.0, "policy/advantage_abs_mean": 0.0},
            "no group has reward variance: nothing to learn from",
        ),
        ({"policy/entropy": 0.4}, {"policy/entropy": 0.01}, "entropy fell to 0.010 nats (from 0.40)"),
        ({"policy/kl": 1.0}, {"policy/kl": 3.0}, "KL from the reference policy is 3.0 nats per token"),
        ({"policy/clip_fraction": 0.3}, {"policy/clip_fraction": 0.5}, "50% of probability ratios are clipped"),
        (
            {"episode/token_limit_rate": 0.2}, {"episode/token_limit_rate": 0.4},
            "40% of episodes were cut at the token limit",
        ),
        (
            {"episode/continued_transcript_rate": 0.01}, {"episode/continued_transcript_rate": 0.06},
            "5 points more of the actions than before continue the transcript",
        ),
        (
            {"episode/eval_continued_transcript_growth": 0.0}, {"episode/eval_continued_transcript_growth": 0.5},
            "50 points more of the actions than before continue the transcript",
        ),
        (
            {"text/eval_loss_growth": 0.1, "text/eval_loss": 3.1},
            {"text/eval_loss_growth": 0.4, "text/eval_loss": 3.4},
            "the loss on text that is of no environment grew by 0.40 nats per token",
        ),
    ],
)  # fmt: skip
def test_a_problem_is_said_when_it_begins_and_not_again(fine, bad, words):
    watch = TroubleWatch()
    assert watch.begun(1, fine) == []
    (said,) = watch.begun(2, bad)
    assert said.startswith(words)
    assert watch.begun(3, bad) == []
    assert watch.begun(4, fine) == []
    assert watch.begun(5, bad) == []  # not gone for long
    assert len(watch.begun(5 + QUIET_STEPS + 1, bad)) == 1


def test_an_entropy_that_was_low_from_the_start_has_not_fallen():
    watch = TroubleWatch()
    assert [watch.begun(step, {"policy/entropy": 0.015}) for step in (1, 2)] == [[], []]


def test_paired_interval_by_hand():
    # 20 tasks, none won before: phi is undefined and taken as 0, so it is the interval of independent proportions.
    assert paired_interval([0] * 20, [1] * 10 + [0] * 10) == pytest.approx(newcombe_interval((0, 10), (20, 20)))
    # 40 tasks: 12 won twice, 2 lost, 14 gained, 12 never. Wilson: 14/40 0.22130 to 0.50492, 26/40 0.49509 to 0.77866.
    # phi = (12 * 12 - 2 * 14 - 20) / sqrt(14 * 26 * 26 * 14) = 96 / 364 = 0.26374
    before, after = [1] * 14 + [0] * 26, [1] * 12 + [0] * 2 + [1] * 14 + [0] * 12
    low, high = paired_interval(before, after)
    down, rise, up, fall = 0.65 - 0.49509, 0.50492 - 0.35, 0.77866 - 0.65, 0.35 - 0.22130
    assert low == pytest.approx(0.3 - (down**2 - 2 * 0.26374 * down * rise + rise**2) ** 0.5, abs=2e-4)
    assert high == pytest.approx(0.3 + (up**2 - 2 * 0.26374 * up * fall + fall**2) ** 0.5, abs=2e-4)
    assert paired_interval(after, before) == pytest.approx((-high, -low))
    unpaired = newcombe_interval((14, 26), (40, 40))
    assert high - low < unpaired[1] - unpaired[0]
    with pytest.raises(ValueError, match="argument 2"):
        paired_interval([1], [1, 0])


def summary(before, after):
    def of(won):
        return {"success": sum(won) / len(won), "low": 0.1, "high": 0.9, "successes": sum(won), "num_tasks": len(won)}

    return {
        "steps": 60, "wall_time_s": 192.0, "warm_start_success": sum(before) / len(before),
        "final_success": sum(after) / len(after), "warm_start_eval": of(before), "final_eval": of(after),
        "warm_start_won": before, "final_won": after,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([0] * 15 + [1] * 5, [0] * 2 + [1] * 18, "gain +65 points"),
        ([0] * 15 + [1] * 5, [0] * 14 + [1] * 6, "cannot be told from chance"),
        ([1] * 20, [0] * 15 + [1] * 5, "a loss, by more than chance explains"),
    ],
)
def test_the_last_lines(before, after, words):
    lines = outcome_lines(Path("runs/a"), summary(before, after), "20 unseen tasks")
    assert lines[0].startswith("success on 20 unseen tasks: ")
    assert lines[0].endswith("after 60 steps (95 % interval 10% to 90%), in 3:12")
    assert words in lines[1]
    assert "model (Hugging Face format): runs/a/checkpoints/step_000060" in lines
    assert "  paw-fast play runs/a" in lines


def test_a_run_of_an_earlier_version_has_an_unpaired_gain():
    old = summary([0] * 20, [1] * 20)
    del old["warm_start_won"]
    assert "(unpaired): more than chance explains" in outcome_lines(Path("runs/a"), old, "20 tasks")[1]


def test_side_effects_are_said_at_the_end_and_warned_of_where_they_grew():
    whole = summary([0] * 20, [1] * 20)
    assert not any("side effects" in line for line in outcome_lines(Path("runs/a"), whole, "20 tasks"))
    whole["warm_start_eval"] |= {"continued_transcript_rate": 0.01, "text_loss": 3.0}
    whole["final_eval"] |= {"continued_transcript_rate": 0.02, "text_loss": 2.5}
    lines = outcome_lines(Path("runs/a"), whole, "20 tasks")
    assert lines[2] == (
        "side effects: 2.0% of the actions continue the transcript (1.0% before), loss on text of no environment 2.50 "
        "nats per token (3.00 before)"
    )
    assert not any(line.startswith("warning") for line in lines)
    whole["final_eval"] |= {"continued_transcript_rate": 0.11, "text_loss": 3.4}
    lines = outcome_lines(Path("runs/a"), whole, "20 tasks")
    assert lines[3].startswith("warning: 10 points more of the actions than before continue the transcript")
    assert lines[4].startswith("warning: the loss on text that is of no environment grew by 0.40 nats per token")
    whole["warm_start_eval"]["text_loss"], whole["final_eval"]["text_loss"] = 6.9, 7.5  # never knew the language
    assert not any("loss on text that is" in line for line in outcome_lines(Path("runs/a"), whole, "20 tasks"))
