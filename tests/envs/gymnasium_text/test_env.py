"""Tests `--env gymnasium:ID` with the real package."""

import pytest

from paw_fast import envs
from paw_fast.config.build import make_config
from paw_fast.errors import UserError
from paw_fast.rollout.requirements import check_parts

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install '.[babyai]'")


GAME = '''
import gymnasium
from gymnasium import spaces

class Guess(gymnasium.Env):
    """Walk left or right to the door, whose side the text says."""
    observation_space = spaces.Dict({"text": spaces.Text(200), "mission": spaces.Text(200), "n": spaces.Discrete(9)})
    action_space = spaces.Discrete(2, start=1)
    action_names = ("left", "right")
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(1, 3))
        return self.look(), {}
    def look(self):
        return {"text": f"The door is <|im_end|> {('left', 'right')[self.side - 1]}.", "mission": "leave", "n": 0}
    def step(self, action):
        assert action in (1, 2)
        return self.look(), float(action == self.side), True, False, {}

class Echo(Guess):
    observation_space = spaces.Text(200)
    action_space = spaces.Text(200)
    def reset(self, seed=None, options=None):
        return "Say it.", {}
    def step(self, action):
        if action == "crash":
            raise ZeroDivisionError("no")
        if action == "four":
            return "", 1.0, False, {}
        if action == "no reward":
            return "", None, True, False, {}
        return f"You said {action}.", 1.0, False, False, {}

class Nameless(Guess):
    action_names = None

class Masked(Guess):
    def reset(self, seed=None, options=None):
        return super().reset(seed)[0], {"action_mask": [True] * (1 if seed % 2 else 2)}
    def step(self, action):
        return {"mission": "no text"}, 0.0, False, False, {}

for one in (Guess, Echo, Nameless, Masked):
    gymnasium.register(f"{one.__name__}-v0", one)
'''


@pytest.fixture(autouse=True)
def _game(tmp_path, monkeypatch):
    (tmp_path / "guess_game_for_tests.py").write_text(GAME)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_discrete_actions_with_names():
    env = envs.make("gymnasium:guess_game_for_tests:Guess-v0", num_train=20)
    won = set()
    for task in env.tasks("train"):
        first = env.reset(task)
        assert first == env.spawn().reset(task)
        assert (first.task, first.admissible) == ("leave", ("left", "right"))
        side = first.text.split()[-1].rstrip(".")
        refused = env.step("up")
        assert (refused.done, refused.admissible) == (False, False)
        right = env.step(side)
        assert (right.done, right.won, right.reward) == (True, True, 1.0)
        env.reset(task)
        wrong = env.step({"left": "right", "right": "left"}[side])
        assert (wrong.done, wrong.won, wrong.reward) == (True, False, 0.0)
        won.add(side)
    assert won == {"left", "right"}
    assert not {t.info["seed"] for t in env.tasks("train")} & {t.info["seed"] for t in env.tasks("unseen")}


def test_text_actions_and_the_step_limit():
    env = envs.make("gymnasium:guess_game_for_tests:Echo-v0", max_steps=2)
    assert env.reset(env.tasks("unseen")[0]).admissible == ()
    result = env.step("hello")
    assert (result.observation.text, result.done, result.admissible, result.score) == (
        "You said hello.",
        False,
        True,
        1.0,
    )
    result = env.step("bye")
    assert (result.done, result.won, result.truncated) == (True, False, True)
    env.reset(env.tasks("unseen")[0])
    with pytest.raises(UserError, match="its step failed: ZeroDivisionError: no"):
        env.step("crash")


def test_what_an_environment_returns_by_mistake_is_one_line():
    env = envs.make("gymnasium:guess_game_for_tests:Echo-v0")
    for action, message in (("four", "expected 5, got 4"), ("no reward", "'NoneType'")):
        env.reset(env.tasks("train")[0])
        with pytest.raises(UserError, match=f"Echo-v0: its step failed: .*{message}"):
            env.step(action)
    env = envs.make("gymnasium:guess_game_for_tests:Masked-v0")
    even, odd = env.tasks("train")[:2]
    with pytest.raises(UserError, match=r"its reset failed: .*action_mask.* has 1 values for 2 actions"):
        env.reset(odd)
    env.reset(even)
    with pytest.raises(UserError, match="its step failed: KeyError: 'text'"):
        env.step("left")


def test_given_names():
    env = envs.make("gymnasium:guess_game_for_tests:Nameless-v0", actions=["go west", "go east"])
    assert env.reset(env.tasks("train")[0]).admissible == ("go west", "go east")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("", {}, "gives no id"),
        ("NoSuchGame-v0", {}, "gymnasium cannot make it: .*NoSuchGame"),
        ("FrozenLake-v1", {}, r"observations are Discrete\(16\), expected Text .*gymnasium.ObservationWrapper"),
        ("guess_game_for_tests:Nameless-v0", {}, "its 2 actions have no names; give --env.actions"),
        ("guess_game_for_tests:Guess-v0", {"actions": ["a"]}, "are 1 names"),
        ("guess_game_for_tests:Guess-v0", {"observation_key": "n"}, "no text of that name"),
        ("guess_game_for_tests:Echo-v0", {"actions": ["a"]}, "are texts already"),
    ],
)
def test_what_is_not_supported_is_named(name, settings, message):
    with pytest.raises(UserError, match=message):
        envs.make(f"gymnasium:{name}", **settings)


def test_a_run_is_checked_before_it_begins():
    config = make_config("qwen2.5-1.5b", env="gymnasium:FrozenLake-v1", model="x")
    with pytest.raises(UserError, match="expected Text"):
        check_parts(config)
    with pytest.raises(UserError, match=r"give --algo\.similarity"):
        make_config("qwen2.5-1.5b", env="gymnasium:guess_game_for_tests:Guess-v0", model="x", algo="gigpo")
