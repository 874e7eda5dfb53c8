"""Tests the words of BabyAI against the grid of the real package, in episodes of random commands."""

import random
import re

import pytest

from paw_fast import envs
from paw_fast.envs.babyai import levels, text

SENTENCE = re.compile(r"You see an? (?:(open|closed|locked) )?(?:(\w+) )?(\w+) (?:(\d+) steps? (left|right))?(?: and )?"
                      r"(?:(\d+) steps? forward)?")  # fmt: skip
LEVELS = ["GoToLocal", "PickupLoc", "PutNextLocal", "UnlockLocal", "BossLevel", "PutNextS5N2Carrying", "OneRoomS20"]


def facts(shown):
    """What a text says: {(steps to the right, steps forward): (state, color, kind)}, and what is carried in words."""
    seen, carried = {}, None
    for line in shown.split("\n"):
        if line.startswith("You carry"):
            carried = line.removeprefix("You carry ")
        elif line != text.NOTHING:
            state, color, kind, side, way, ahead = SENTENCE.fullmatch(line).groups()
            place = (int(side or 0) * (1 if way == "right" else -1), int(ahead or 0))
            assert place not in seen
            seen[place] = (state, color, kind)
    return seen, carried


def in_view(env):
    """(steps to the right, steps forward) and object of every cell in the agent's view that it sees, from the world's
    coordinates: the agent looks along v, and its right hand points to (-v_y, v_x)."""
    size, (x, y) = env.agent_view_size, env.agent_pos
    ahead = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}[env.agent_dir]
    right = (-ahead[1], ahead[0])
    _, visible = env.gen_obs_grid()
    for forward in range(size):
        for side in range(-(size // 2), size // 2 + 1):
            px, py = x + forward * ahead[0] + side * right[0], y + forward * ahead[1] + side * right[1]
            inside = 0 <= px < env.grid.width and 0 <= py < env.grid.height
            if inside and (side, forward) != (0, 0) and visible[side + size // 2, size - 1 - forward]:
                yield (side, forward), env.grid.get(px, py)


def check(observation, env):
    seen, carried = facts(observation.text)
    visible = {place: cell for place, cell in in_view(env) if cell is not None}
    things = {
        place: (
            None if cell.type != "door" else "open" if cell.is_open else "locked" if cell.is_locked else "closed",
            cell.color, cell.type,
        )
        for place, cell in visible.items() if cell.type != "wall"
    }  # fmt: skip
    assert {place: one for place, one in seen.items() if one[2] != "wall"} == things
    walls = [place for place, cell in visible.items() if cell.type == "wall"]
    nearest = [
        min((one for one in walls if line(one)), key=lambda one: sum(map(abs, one)), default=None)
        for line in (lambda p: p[0] == 0, lambda p: p[1] == 0 and p[0] < 0, lambda p: p[1] == 0 and p[0] > 0)
    ]
    assert {place for place, one in seen.items() if one[2] == "wall"} == {one for one in nearest if one is not None}
    assert (carried is None) == (env.carrying is None)
    if carried is not None:
        assert carried == f"a {env.carrying.color} {env.carrying.type}"


@pytest.mark.parametrize("level", LEVELS)
def test_text_and_grid_agree_in_random_episodes(level):
    env = envs.make("babyai", levels=[level], max_steps=60, num_unseen=3)
    rng = random.Random(level)
    for task in (*env.tasks("train")[:4], env.tasks("unseen")[0]):
        observation = env.reset(task)
        assert observation.task == env.level_env.mission
        done = False
        while not done:
            check(observation, env.level_env)
            before = levels.layout_of(env.level_env)
            # Mostly commands that do something: objects are picked up, doors are opened.
            command = rng.choice(observation.admissible if rng.random() < 0.8 else text.COMMANDS)
            result = env.step(command)
            changed = levels.layout_of(env.level_env) != before
            assert changed == (command in observation.admissible) == result.admissible
            observation, done = result.observation, result.done


def test_what_the_commands_do():
    env = envs.make("babyai", levels=["PickupLoc"], num_unseen=3)
    level_env = None
    for task in env.tasks("train")[:3]:
        env.reset(task)
        level_env = env.level_env
        x, y, way = *level_env.agent_pos, level_env.agent_dir
        env.step("turn left")
        assert level_env.agent_dir == (way - 1) % 4
        env.step("turn right")
        assert (*level_env.agent_pos, level_env.agent_dir) == (x, y, way)
        before = levels.layout_of(level_env)
        result = env.step("sing a song")
        assert levels.layout_of(level_env) == before
        assert not result.admissible


def test_words_of_a_view_made_by_hand():
    """The view of an agent that carries a yellow key: a wall three steps ahead and two steps to the left, a closed red
    door in front on the right, a blue ball two steps ahead."""
    import numpy as np

    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[3, 6] = (5, 4, 0)
    image[3, 3] = image[1, 6] = image[0, 6] = (2, 5, 0)
    image[4, 5] = (4, 0, 1)
    image[3, 4] = (6, 2, 0)
    image[5, 2] = (4, 5, 0)
    assert text.describe(image).split("\n") == [
        "You carry a yellow key", "You see a wall 3 steps forward", "You see a wall 2 steps left",
        "You see a blue ball 2 steps forward", "You see a closed red door 1 step right and 1 step forward",
        "You see an open grey door 2 steps right and 4 steps forward",
    ]  # fmt: skip
    assert text.describe(np.zeros((7, 7, 3), dtype=np.uint8)) == text.NOTHING
