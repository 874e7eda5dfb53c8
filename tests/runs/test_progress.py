"""Tests of progress: the lines of a file with an injected clock, the bars of terminals, time left, the step's line."""

import io
import re

import pytest
from rich.console import Console

from paw_fast.runs import console, progress
from paw_fast.runs.time_left import TimeLeft, phase_left
from paw_fast.runs.training_progress import RunShape, StepProgress, wrap


class Watched:
    """A display with a clock that the test sets; `lines` are those it prints."""

    def __init__(self):
        self.time = 0.0
        self.lines = []
        self.display = progress.Display(lambda: self.time, self.lines.append)

    def at(self, time):
        self.time = time
        self.display.tick()
        return self.lines


def test_a_file_gets_a_line_after_silence_and_none_for_a_short_phase():
    watched = Watched()
    phase = watched.display.begin("rollout", 64, "episodes", "rollout of step 3")
    phase.counts, phase.done = "412 turns, 12/64 episodes", 16
    for time in range(14):
        assert watched.at(time) == []
    assert watched.at(14) == ["rollout of step 3: 412 turns, 12/64 episodes, about 0:42 left"]  # a quarter in 14 s
    assert len(watched.at(20)) == 1
    phase.done = 32
    assert watched.at(28)[1] == "rollout of step 3: 412 turns, 12/64 episodes, about 0:28 left"
    watched.display.end(phase, "rollout", True)
    assert len(watched.at(100)) == 2  # no phase runs
    short = watched.display.begin("saving", None, "", None)
    assert len(watched.at(101)) == 2
    watched.display.end(short, "saving", True)


def test_every_15_s_of_a_long_phase_have_a_line():
    watched = Watched()
    watched.display.begin("starting workers", None, "", None)
    times = []
    for half in range(1, 241):  # two minutes
        before = len(watched.lines)
        if len(watched.at(half * progress.TICK_S)) > before:
            times.append(watched.time)
    gaps = [b - a for a, b in zip([0.0, *times], [*times, 120.0], strict=True)]
    assert max(gaps) <= 15
    assert watched.lines[0] == "starting workers: 0:14 so far"


def test_other_output_ends_the_silence(said):
    watched = Watched()
    watched.display.begin("demonstrations", 10, "episodes", None)
    watched.at(10)
    console.say("something else")
    watched.at(11)
    assert watched.at(24) == []
    assert watched.at(25) == ["demonstrations: 0/10 episodes, 0:25 so far"]


def test_the_innermost_phase_is_told_and_earlier_durations_predict():
    watched = Watched()
    display = watched.display
    display.begin("training", 10, "steps", None)
    for duration in (20, 40, 30):
        phase = display.begin("evaluating", 100, "episodes", None)
        watched.time += duration
        display.end(phase, "evaluating", True)
    interrupted = display.begin("evaluating", 100, "episodes", None)
    watched.time += 1
    display.end(interrupted, "evaluating", False)  # says nothing of how long one takes
    display.begin("evaluating", 100, "episodes", None)
    assert watched.at(watched.time + 20)[-1] == "evaluating: 0/100 episodes, about 0:10 left"


@pytest.fixture
def said(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, width=200, highlight=False))
    return out


@pytest.mark.parametrize("width", [100, 60, 40])
def test_bars_fit_the_terminal(monkeypatch, width):
    out = io.StringIO()
    terminal = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    watched = Watched()
    training = watched.display.begin("training", 60, "steps", None)
    training.done, training.left_s = 3, 192.0
    rollout = watched.display.begin("rollout", 64, "episodes", "rollout of step 4")
    rollout.counts, rollout.done = "1,412 turns, 12/64 episodes, 52 in flight", 20
    watched.time = 5.0
    terminal.print(watched.display.render())
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "3/60 steps" in lines[0]
    assert "3:12 left" in lines[0]
    assert "rollout" in lines[1]
    if width == 100:
        assert "1,412 turns, 12/64 episodes" in lines[1]
        assert "0:11 left" in lines[1]  # 20 of 64 in 5 s


def test_phases_are_shown_and_end_where_the_block_raises(said):
    def fail():
        with progress.phase("a"), progress.phase("b") as b:
            b(1, "loss 0.5")
            assert (b.done, b.detail, len(progress._display.phases)) == (1, "loss 0.5", 2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert progress._display.phases == []
    assert said.getvalue() == ""


# ---------------------------------------------------------------------------------------------- time left


def test_an_evaluation_or_a_slow_step_does_not_move_the_time_left():
    left = TimeLeft(total=20, eval_every=5)
    left.add_evaluation(40.0)
    assert left.seconds(0) is None
    seen = []
    for step, seconds in enumerate((8.0, 3.0, 3.0, 3.0, 3.0, 3.0), 1):
        left.add_step(seconds)
        if step == 5:
            left.add_evaluation(60.0)
        seen.append(left.seconds(step))
    # steps left * median step + evaluations left (4; 3 after step 5) * median evaluation (40; 50 after step 5)
    assert seen == [19 * 8.0 + 160, 18 * 5.5 + 160, 17 * 3.0 + 160, 16 * 3.0 + 160, 15 * 3.0 + 150, 14 * 3.0 + 150]


@pytest.mark.parametrize(
    ("total", "every", "step", "count"), [(20, 5, 20, 0), (20, 5, 19, 1), (20, 5, 15, 1), (22, 5, 15, 2), (9, 0, 3, 1)]
)
def test_evaluations_left(total, every, step, count):
    assert TimeLeft(total, every).evaluations_left(step) == count
    by_hand = [s for s in range(step + 1, total + 1) if (every and s % every == 0) or s == total]
    assert len(by_hand) == count


def test_a_phase_that_outlasts_its_earlier_ones_is_predicted_by_its_share():
    assert phase_left(20.0, 0.5, 10.0) == 20.0
    assert phase_left(3.0, 1.0, 10.0) == 0.0


# ------------------------------------------------------------------------------------------- the step's line

ROW = {
    "success/rate": 0.45, "reward/mean": 4.31, "episode/invalid_action_rate": 0.03, "policy/group_spread_share": 0.75,
    "wm/next_observation_error": 0.31, "time/step_s": 5.14, "optim/skipped_steps": 0.0, "policy/entropy": 0.4,
}  # fmt: skip


def test_the_line_of_a_step(said):
    shown = StepProgress(RunShape(60, 10, "unseen"))
    with shown.running(11, 0.4):
        shown.step(12, ROW)
        shown.step(13, ROW | {"optim/skipped_steps": 2.0, "success/eval_rate": 0.5})
    first, second = said.getvalue().splitlines()
    parts = "step 12/60  success 45%  return 4.31  invalid 3%  no variance 25%  wm error 0.31  5.1 s  "
    assert re.fullmatch(re.escape(parts) + r"\d+:\d\d left", first)
    assert "success 45%  on unseen tasks 50%" in second
    assert "skipped 2" in second


def test_lines_break_between_parts():
    text = wrap(["step 12/60", "success 45%", "return 4.31", "invalid 3%"], 30)
    assert text.splitlines() == ["step 12/60  success 45%", "    return 4.31  invalid 3%"]
