"""The oracle's plans against brute force, and the searcher's promises."""

import random

import pytest
from brute_force import TOO_MANY, check_game, check_room
from hypothesis import given, settings
from hypothesis import strategies as st

from paw_fast.envs.alfworld import SearcherExpert, engine
from paw_fast.envs.alfworld.expert import parse_goal
from paw_fast.envs.alfworld.games import distinct_games, load_world
from paw_fast.envs.alfworld.generate import _GOALS
from paw_fast.envs.alfworld.pddl import parse_problem
from paw_fast.envs.alfworld.planner import Planner
from paw_fast.envs.alfworld.tables import SENTENCES, TASK_TYPES
from paw_fast.envs.alfworld.text import OFFICIAL, WHEEL, Rules
from paw_fast.envs.alfworld.world import World
from paw_fast.types import Observation


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_plans_are_as_short_as_brute_force_finds(task_type):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.randoms(use_true_random=False))
    def check(rng):
        found.append(check_room(rng, task_type))

    found = []
    check()
    assert all(length != TOO_MANY for length, _ in found)
    assert sum(by_all for _, by_all in found) >= 10
    assert sum(isinstance(length, int) and length > 0 for length, _ in found) >= 5


@settings(max_examples=12, deadline=None, derandomize=True)
@given(which=st.integers(0, 5), rng=st.randoms(use_true_random=False))
def test_no_plan_of_a_generated_game_is_shorter(some_worlds, which, rng):
    assert check_game(some_worlds[which], rng) != TOO_MANY


@pytest.fixture(scope="module")
def some_worlds():
    games = distinct_games(0, "small", "train", 6)
    return [World(parse_problem(game.problem), Rules(WHEEL), game.sentence) for game in games]


def test_no_plan_of_an_official_game_is_shorter(official_games):
    lengths = [check_game(load_world(path), random.Random(0), 0) for path in official_games]
    assert len(lengths) == 12
    assert all(isinstance(length, int) and 4 <= length <= 9 for length in lengths)


def test_there_is_no_plan_without_the_appliance_or_a_place_to_lay_down():
    names = "agent1 - agent MugType - otype DeskType SinkBasinType - rtype Desk_bar_1 - receptacle "
    names += "Mug_bar_1 Mug_bar_2 - object l_bar_1 - location"
    facts = "(atLocation agent1 l_bar_1) (receptacleType Desk_bar_1 DeskType) (receptacleAtLocation Desk_bar_1 l_bar_1)"
    facts += " (objectType Mug_bar_1 MugType) (pickupable Mug_bar_1) (cleanable Mug_bar_1) (holds agent1 Mug_bar_1)"
    goal = _GOALS["pick_clean_then_place_in_recep"].format(o="Mug", r="Desk")
    for more in ("", "(canContain DeskType MugType)"):
        text = f"(define (:objects {names}) (:init {facts} (holdsAny agent1) {more}) (:goal (and {goal})))"
        state = World(parse_problem(text), Rules(WHEEL), "?").initial
        assert Planner().plan(state) is None
        assert Planner().act(state) is None


def test_goals_with_slices_are_not_planned():
    goal = "(exists (?o - object) (and (objectType ?o MugType) (isSliced ?o)))"
    text = (
        "(define (:objects agent1 - agent MugType - otype Mug_bar_1 - object l - location)"
        f"(:init (atLocation agent1 l) (objectType Mug_bar_1 MugType)) (:goal (and {goal})))"
    )
    with pytest.raises(NotImplementedError, match="issliced"):
        Planner().plan(World(parse_problem(text), Rules(WHEEL), "?").initial)


def test_the_oracle_plans_from_any_state_of_a_generated_game(small_env):
    env, rng = small_env.spawn(), random.Random(1)
    for task in small_env.tasks("train"):
        env.reset(task)
        state = env.state.clone()
        for _ in range(40):
            engine.play(state, rng.choice(list(engine.commands(state))))
        plan = Planner().plan(state)
        for command in plan:
            assert not state.won()
            engine.play(state, command)
        assert state.won()
        assert Planner().plan(state) == []


def run_searcher(env, task, expert):
    observation, commands = env.reset(task), []
    expert.reset(observation)
    for _ in range(50):
        commands.append(expert.act(observation))
        step = env.step(commands[-1])
        observation = step.observation
        if step.done:
            break
    return step.score == 1.0, commands


def test_the_searcher_wins_small_games_and_repeats_itself(small_env):
    env = small_env.spawn()
    for task in small_env.tasks("unseen"):
        won, commands = run_searcher(env, task, SearcherExpert())
        assert won, (task.task_id, commands)
        assert run_searcher(env, task, SearcherExpert(random.Random(5))) == (True, commands)


def test_the_searcher_sees_text_alone(small_env):
    class Blind:
        """Passes on an observation's text and nothing else."""

        def __init__(self):
            self.expert = SearcherExpert()

        def reset(self, observation):
            self.expert.reset(Observation(observation.text))

        def act(self, observation):
            return self.expert.act(Observation(observation.text))

    env = small_env.spawn()
    for task in small_env.tasks("train")[:6]:
        assert run_searcher(env, task, Blind()) == run_searcher(env, task, SearcherExpert())


def test_noise_varies_the_search_and_still_wins(small_env):
    env, different = small_env.spawn(), 0
    for task in small_env.tasks("train"):
        won, commands = run_searcher(env, task, SearcherExpert(random.Random(3), noise=0.5))
        assert won
        different += commands != run_searcher(env, task, SearcherExpert())[1]
    assert different >= 5


def test_the_searcher_lays_down_what_it_should_not_hold(small_env):
    env = small_env.spawn()
    for task in small_env.tasks("train"):
        observation = env.reset(task)
        expert = SearcherExpert()
        expert.reset(observation)
        target = expert.goal.target
        env_state = env.state
        start = [r for r, group in enumerate(env_state.inside) if group and r not in env_state.world.openable]
        if not start:
            continue
        name = env_state.world.receptacles[start[0]]
        step = env.step(f"go to {name}")
        expert.act(step.observation)
        takes = [c for c in step.observation.admissible if c.startswith("take") and not c.startswith(f"take {target} ")]
        if not takes:
            continue
        observation = env.step(takes[0]).observation
        for _ in range(45):
            step = env.step(expert.act(observation))
            observation = step.observation
            if step.done:
                break
        assert step.score == 1.0, task.task_id


def test_both_wordings_are_understood(small_env):
    task = small_env.tasks("unseen")[0]
    world = small_env._games.world(task)
    for dialect in (WHEEL, OFFICIAL):
        twin = object.__new__(World)
        twin.__dict__.update(world.__dict__)
        twin.rules = Rules(dialect, has_help=dialect is WHEEL)
        state = world.initial.clone()
        state.world, state.commands = twin, None
        expert, text = SearcherExpert(), engine.introduction(state)
        expert.reset(Observation(text))
        for _ in range(50):
            text = engine.play(state, expert.act(Observation(text)))
            if state.won():
                break
        assert state.won(), dialect.name


def test_every_sentence_is_read():
    kinds = {"pick_and_place_simple": "place", "look_at_obj_in_light": "look", "pick_two_obj_and_place": "two"}
    kinds |= {f"pick_{kind}_then_place_in_recep": kind for kind in ("clean", "heat", "cool")}
    for task_type, sentences in SENTENCES.items():
        for sentence in sentences:
            errand = parse_goal(sentence.format(o="mug", r="desk"))
            assert (errand.kind, errand.target, errand.goal) == (kinds[task_type], "mug", "desk")
    assert parse_goal("tidy up") is None
    with pytest.raises(ValueError, match="not a task this expert knows"):
        SearcherExpert().reset(Observation("Your task is to: tidy up."))
