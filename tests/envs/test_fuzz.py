"""A short fuzz; `fuzzing.py` runs a long one."""

import contextlib

from fuzzing import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.pddl import PddlError, parse_problem, read_sexpr


def test_damaged_files_are_refused_or_played():
    report = fuzz(0, seed=11, num_files=250, num_commands=15)
    assert report.played > 20
    assert report.refused > 50
    assert report.slowest_load_s < 20
    assert report.longest_message < 600


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_problem_or_an_error(text):
    for read in (read_sexpr, parse_problem):
        with contextlib.suppress(PddlError):
            read(text)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_any_command_is_answered(small_env, commands):
    env = small_env
    env.reset(env.tasks("train")[2])
    state = env.state
    for command in commands:
        before = state.clone()
        known = command.strip() in engine.commands(state)
        text = engine.play(state, command)
        assert known or (text == "Nothing happens." and state == before)
