"""Runs a short fuzzing test of the ALFWorld engine; `fuzzing.py` runs longer ones."""

import contextlib
import os
import random

import pytest
from adversarial_files import adversarial_cases
from fuzzing import Report, fuzz, try_file
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import list_tasks, load_world
from paw_fast.envs.alfworld.pddl import PddlError, UnsupportedGame, parse_problem, read_sexpr
from paw_fast.errors import UserError


def test_damaged_files_are_rejected_or_playable():
    report = fuzz(0, seed=11, num_files=180, num_commands=15)
    assert report.played > 20
    assert report.refused > 50
    assert report.slowest_load_s < 20
    assert report.longest_message < 600


def test_adversarial_files_are_rejected_or_playable(tmp_path):
    path, played = tmp_path / "game.tw-pddl", []
    for name, content in adversarial_cases():
        path.write_bytes(content)
        report = Report()
        try_file(path, random.Random(0), 5, report)
        played += [name] * report.played
    assert played == [
        "as much as is played, at one place", "hands full of knives", "a goal of many facts", "a deep goal",
        "one fact, many times", "many distances", "containers in circles", "every object in every receptacle",
        "one endless line", "a byte order mark",
    ]  # fmt: skip


def test_named_pipe_does_not_block(tmp_path):
    path = tmp_path / "train" / "pick_and_place_simple-Mug-None-Desk-301" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert list_tasks(tmp_path, "train") == []
    with pytest.raises(UserError, match="it is not a file"):
        load_world(path)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_rejected(text):
    for read in (read_sexpr, parse_problem):
        with contextlib.suppress(PddlError, UnsupportedGame):
            read(text)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_any_command_has_an_observation(small_env, commands):
    env = small_env
    env.reset(env.tasks("train")[2])
    state = env.state
    for command in commands:
        before = state.clone()
        known = command.strip() in engine.commands(state)
        text = engine.play(state, command)
        assert known or (text == "Nothing happens." and state == before)
