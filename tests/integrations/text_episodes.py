"""Plays episodes with `envs.make` and an expert, as the text that clients of other libraries must see."""

import importlib.util
import random
import string

import pytest

from paw_fast import envs
from paw_fast.integrations.text_env import shown_text

NUM_EPISODES = 100
_PACKAGES = {
    "webshop": ("bm25s", "Stemmer", "rapidfuzz", "spacy"), "search": ("bm25s", "Stemmer"), "babyai": ("minigrid",)
}  # fmt: skip
SETTINGS = {
    "alfworld": {"size": "mini", "num_train": 100, "num_unseen": 4, "max_steps": 12},
    "webshop": {"num_products": 400},
    "search": {"num_train": 100, "num_unseen": 4},
    "babyai": {"num_train": 100, "num_unseen": 4, "max_steps": 20},
}


def env_param(name):
    """The name of an environment as a test's parameter, skipped where a package of it is missing."""
    absent = [one for one in _PACKAGES.get(name, ()) if importlib.util.find_spec(one) is None]
    return pytest.param(name, marks=[pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")])


ENVS = [env_param(name) for name in SETTINGS]


class Player:
    """An expert, which in every third episode plays random admissible commands and text that is no command."""

    def __init__(self, name, number, garbage=True):
        self.garbage = garbage
        self.expert = envs.make_expert(envs.find(name).make_config(), careful=True)
        self.random = random.Random(number) if number % 3 == 2 else None

    def reset(self, observation):
        self.expert.reset(observation)

    def act(self, observation):
        if self.random is None:
            return self.expert.act(observation)
        if observation.admissible and (not self.garbage or self.random.random() < 0.8):
            return self.random.choice(observation.admissible)
        if not self.garbage:
            return f"search[{self.random.randrange(1000)}]"
        return "".join(self.random.choices(string.ascii_letters + " äß[]<>|/", k=12))


def play(env, name, number, garbage=True):
    """Plays task `number` of the training tasks. Returns (task, first observation, [(command, StepResult), ...])."""
    task = env.tasks("train")[number]
    player = Player(name, number, garbage)
    first = observation = env.reset(task)
    player.reset(first)
    turns = []
    while not turns or not turns[-1][1].done:
        command = player.act(observation)
        turns.append((command, env.step(command)))
        observation = turns[-1][1].observation
    return task, first, turns


def transcript(first, turns):
    """Everything of an episode that a client can see."""
    rows = [("", shown_text(first), list(first.admissible), 0.0, False, False, False)]
    for command, result in turns:
        seen = result.observation
        rows.append((command, shown_text(seen), list(seen.admissible), float(result.reward), result.won,
                     result.done and not result.truncated, result.truncated))  # fmt: skip
    return rows
