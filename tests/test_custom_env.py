"""The example environment, used from a folder outside the checkout, and what classes of users may look like."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paw_fast import envs
from paw_fast.config import env_config, load_preset, validate, with_algo
from paw_fast.envs import Observation, StepResult, Task
from paw_fast.envs.user_class import as_spec
from paw_fast.errors import UserError
from paw_fast.rollout.prompts import PromptTemplate

ROOT = Path(__file__).resolve().parents[1]
NAME = "custom_env:Corridor"
SMALL = {
    "--steps": 1, "--eval-tasks": 3, "--warm-start.episodes": 3, "--warm-start.vocab-size": 300,
    "--warm-start.layers": 1, "--rollout.groups": 2, "--rollout.group-size": 2, "--rollout.slots": 4,
    "--algo.minibatches": 1, "--env.length": 3, "--rollout.placement": "process", "--algo": "gigpo",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with nothing but the example in it."""
    path = tmp_path_factory.mktemp("mine")
    shutil.copy(ROOT / "examples" / "custom_env.py", path)
    return path


@pytest.fixture
def spec(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return envs.find(NAME)


def run(folder, *args, typed=None):
    variables = {**os.environ, "PAW_FAST_CUDA": "off"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", "from paw_fast.cli.main import main; main()", *map(str, args)],
        cwd=folder, env=variables, input=typed, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_short():
    assert len((ROOT / "examples" / "custom_env.py").read_text().splitlines()) < 60
    assert '--8<-- "examples/custom_env.py"' in (ROOT / "docs" / "howto" / "add_env.md").read_text()


def test_it_is_trained_and_evaluated_from_its_folder(folder):
    """With GiGPO, in worker processes, which must find the file too."""
    options = [word for pair in SMALL.items() for word in pair]
    run(folder, "train", "--env", NAME, "--preset", "tiny", *options, "--run-dir", "run")
    assert (folder / "run" / "report.html").is_file()
    assert "3" in run(folder, "eval", "run", "--tasks", 3, "--json")


def test_it_is_played_from_its_folder(folder):
    shown = run(folder, "play", "--env", NAME, typed="?\ntake lamp\nright\ntake lamp\nleft\n")
    assert "You won, in 4 steps." in shown
    assert "bring the lamp to room 0" in shown


def test_its_options_are_its_own(folder):
    text = run(folder, "train", "--env", NAME, "--help")
    assert "--env.length N" in text
    assert "--env.size" not in text


def test_the_expert_wins_and_settings_are_checked(spec):
    env, expert = envs.make(NAME, length=5), envs.make_expert(NAME)
    for task in env.tasks("train"):
        observation = env.reset(task)
        expert.reset(observation)
        done = False
        while not done:
            step = env.step(expert.act(observation))
            observation, done = step.observation, step.done
        assert (step.won, step.reward, step.score, step.truncated) == (True, 1.0, 1.0, False)
    assert env.spawn() is not env
    with pytest.raises(UserError, match=r"--env\.length is 1, expected 2 or more"):
        envs.make(NAME, length=1)
    with pytest.raises(UserError, match=r"custom_env:Corridor has no setting 'lenght'"):
        envs.make(NAME, lenght=3)


@pytest.mark.parametrize("template", ["compact", "verl"])
def test_the_shipped_templates_show_task_and_observation(spec, template):
    env = envs.make(NAME)
    first = env.reset(env.tasks("train")[0])
    loaded = PromptTemplate.load(template, NAME)
    for text in (loaded.first(first), loaded.window(first, first.task, [], 0)):
        assert "bring the lamp to room 0" in text
        assert "You are in room 0." in text


def test_presets_and_gigpo_take_it(spec):
    config = with_algo(load_preset("tiny", NAME), "gigpo")
    validate(config)
    assert config.env == env_config(NAME, template="compact")
    assert config.rollout == load_preset("tiny").rollout


class Plain:
    """The least that an environment can be."""

    def tasks(self, split):
        return [Task(f"{split}-1")]

    def reset(self, task):
        return Observation("Guess.", task="guess")

    def step(self, command):
        return StepResult(Observation(""), done=True, won=command == "7")


def test_a_plain_class_is_enough():
    spec = as_spec(Plain, "mine:Plain")
    env = spec.make(spec.make_config())
    assert isinstance(env, envs.Env)
    assert (env.name, spec.make_expert, spec.make_config().max_steps) == ("mine:Plain", None, 50)
    batch = envs.make_batch(env, 2)
    batch.reset(env.tasks("train") * 2)
    assert [(step.won, step.was_admissible("7", Observation("Guess."))) for step in batch.step(["7", "8"])] == [
        (True, True), (False, True),
    ]  # fmt: skip


def test_a_class_without_an_expert_needs_a_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "no_expert.py").write_text(
        "from custom_env import Corridor\n\n\nclass Alone(Corridor):\n    Expert = None\n"
    )
    with pytest.raises(
        UserError, match="--env no_expert:Alone has no expert: give its class an Expert, or take another"
    ):
        validate(load_preset("tiny", "no_expert:Alone"))
    validate(load_preset("smollm2", "no_expert:Alone"))


def without(*names):
    return type("Half", (), {key: value for key, value in vars(Plain).items() if key not in names})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "it is int, expected an EnvSpec or a class"),
        (without("step"), "Half lacks the method step; see BaseEnv"),
        (without("reset", "step"), "Half lacks the method reset and step"),
        (type("E", (envs.BaseEnv,), {}), "E lacks the method tasks and reset and step"),
        (type("C", (Plain,), {"Config": dict}), "its Config is not a frozen dataclass that inherits"),
        (type("X", (Plain,), {"Expert": type("Expert", (), {})}), "Expert lacks the method reset and act"),
    ],
)
def test_what_a_class_lacks_is_said(found, message):
    with pytest.raises(UserError) as error:
        as_spec(found, "mine:Class")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("members", "call", "message"),
    [
        ({"reset": lambda self, task: "text"}, lambda env: env.reset(None), "reset returned str, expected Observation"),
        ({"step": lambda self, command: ("text", 1.0, True)}, lambda env: env.step("x"), "expected StepResult"),
        ({"tasks": lambda self, split: [1]}, lambda env: None, "tasks returned int, expected Tasks"),
        ({"tasks": lambda self, split: [Task("a", task_type="two words")]}, lambda env: None, "the type 'two words'"),
    ],
)
def test_what_a_class_returns_is_checked(members, call, message):
    spec = as_spec(type("Mine", (Plain,), members), "mine:Class")
    with pytest.raises(UserError) as error:
        call(spec.make(spec.make_config()))
    assert message in str(error.value)
