"""The terminal game: what it shows, and how it ends."""

import io

import pytest
from rich.console import Console

from paw_fast.cli.play import play
from paw_fast.envs.alfworld import Planner


def run(env, task, lines):
    out = io.StringIO()
    won = play(
        env, task, Console(file=out, width=200, color_system=None), io.StringIO("".join(f"{x}\n" for x in lines))
    )
    return won, out.getvalue()


@pytest.fixture
def task(small_env):
    return small_env.tasks("train")[0]


@pytest.fixture
def plan(small_env, task):
    small_env.reset(task)
    return Planner().plan(small_env.state)


def test_a_plan_wins_from_a_pipe(small_env, task, plan):
    won, text = run(small_env, task, plan)
    assert won
    assert f"You won, in {len(plan)} steps." in text
    assert small_env.state.world.task in text


def test_questions_and_mistakes_cost_no_step(small_env, task, plan):
    won, text = run(small_env, task, ["?", "task", "", f"{plan[0]}x", plan[0].upper(), *plan[1:]])
    assert won
    assert f"You won, in {len(plan)} steps." in text
    assert f"did you mean: {plan[0]}" in text
    assert "  inventory\n" in text


def test_end_of_input_and_quit_leave_cleanly(small_env, task):
    won, text = run(small_env, task, ["look"])
    assert not won
    assert "End of input" in text
    won, text = run(small_env, task, ["look", "quit", "look"])
    assert not won
    assert "Left after 1 step." in text


def test_the_step_limit_loses(small_env, task):
    won, text = run(small_env, task, ["look"] * 60)
    assert not won
    assert "You lost: 50 steps" in text


def test_ctrl_c_leaves_cleanly(small_env, task):
    class Interrupted(io.StringIO):
        def readline(self, *args):
            raise KeyboardInterrupt

    out = io.StringIO()
    assert not play(small_env, task, Console(file=out, color_system=None), Interrupted())
    assert "Interrupted after 0 steps." in out.getvalue()


def test_square_brackets_are_not_markup(small_env, task):
    won, text = run(small_env, task, ["[bold]look[/bold]", "[/nonsense]", "quit"])
    assert not won
    assert "not possible" in text


def test_bytes_that_are_no_text_are_an_unknown_command(small_env, task):
    out, typed = io.StringIO(), io.TextIOWrapper(io.BytesIO(b"look\xff\nquit\n"), encoding="utf-8")
    assert not play(small_env, task, Console(file=out, width=200, color_system=None), typed)
    assert "Left after 0 steps." in out.getvalue()
