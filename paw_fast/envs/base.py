"""Defines what an environment is: `Env`, `Expert`, and the `EnvSpec` by which the rest of the package knows it.

An environment of your own is a class with `tasks`, `reset` and `step`: `BaseEnv` has the other members of `Env`, and
`user_class.as_spec` makes the spec of such a class. docs/howto/add_env.md shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from paw_fast.config.schema import EnvConfig
from paw_fast.types import Observation, Task


@dataclass(frozen=True)
class StepResult:
    """The answer to one command. Produced by `Env.step`, consumed by the agent loop.

    observation  what the environment shows now
    done         the episode is over
    won          the task is solved; the episode is over, and counts as a success
    reward       what the policy is rewarded with, as a share of --algo.success-reward; by default 1 if won, else 0
    score        the environment's own score of this step, for the metrics; by default the reward
    truncated    `done` only means that a limit was reached, as of steps
    admissible   whether the command was one that the environment accepts; None looks it up in the admissible commands
                 of the observation before, and takes any command where that lists none
    scores       further scores of an episode by name, each 0 to 1, given at its end
    verdict      what a person who plays is told when the episode is lost

    >>> StepResult(Observation("You have won."), done=True, won=True).reward
    1.0
    """

    observation: Observation
    done: bool = False
    won: bool = False
    reward: float = None  # type: ignore[assignment]  # set by __post_init__
    score: float = None  # type: ignore[assignment]  # set by __post_init__
    truncated: bool = False
    admissible: bool | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""

    def __post_init__(self) -> None:
        if self.reward is None:
            object.__setattr__(self, "reward", float(self.won))
        if self.score is None:
            object.__setattr__(self, "score", float(self.reward))

    def was_admissible(self, command: str, before: Observation) -> bool:
        """Whether `command`, given after the observation `before`, was one that the environment accepts.

        >>> StepResult(Observation("ok")).was_admissible("jump", Observation("start", ("walk",)))
        False
        """
        if self.admissible is not None:
            return self.admissible
        return not before.admissible or command in before.admissible


@runtime_checkable
class Env(Protocol):
    """One episode at a time. Not thread-safe; `spawn` gives another episode slot over the same data."""

    name: str

    @property
    def disjoint_splits(self) -> bool:
        """Whether the data was generated so that no two splits share a task; else that is looked up."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split (at least "train" and "unseen") in a fixed order. Raises `UserError` for others."""
        ...

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` naming file and place when the task cannot be loaded."""
        ...

    def begin_reset(self, task: Task) -> None:
        """The first half of `reset`: takes the task, so that several environments can load at the same time."""
        ...

    def finish_reset(self) -> Observation:
        """The second half of `reset`: the first observation."""
        ...

    def step(self, command: str) -> StepResult:
        """Carries out one command. Raises `RuntimeError` before the first reset or after `done`."""
        ...

    def begin_step(self, command: str) -> None:
        """The first half of `step`: takes the command, so that several environments can work at the same time."""
        ...

    def finish_step(self) -> StepResult:
        """The second half of `step`: the answer. All environments of a batch begin before the first finishes."""
        ...

    def accepts(self, command: str, observation: Observation) -> bool:
        """Whether a command would do something after this observation, for a person who plays."""
        ...

    def from_keyboard(self, typed: str, observation: Observation) -> str:
        """The command that a person's short form stands for (a button's name, say)."""
        ...

    def while_waiting(self, check: Callable[[], None]) -> None:
        """`check` is to be called again and again while the environment waits for a server; it may raise."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What all episode slots together have counted since the last call, by metric name."""
        ...

    def spawn(self) -> Env:
        """An independent environment that shares this one's read-only data."""
        ...

    def close(self) -> None:
        """Releases processes and files. Safe to call twice."""
        ...


class BaseEnv:
    """The members of `Env` that most environments need not write; `tasks`, `reset` and `step` are theirs."""

    name: str = ""
    _remake: Callable[[], Env] | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        raise NotImplementedError

    def reset(self, task: Task) -> Observation:
        raise NotImplementedError

    def step(self, command: str) -> StepResult:
        raise NotImplementedError

    @property
    def disjoint_splits(self) -> bool:
        return False

    def begin_reset(self, task: Task) -> None:
        self._begun_task = task

    def finish_reset(self) -> Observation:
        return self.reset(self._begun_task)

    def begin_step(self, command: str) -> None:
        self._begun_command = command

    def finish_step(self) -> StepResult:
        return self.step(self._begun_command)

    def accepts(self, command: str, observation: Observation) -> bool:
        return not observation.admissible or command in observation.admissible

    def from_keyboard(self, typed: str, observation: Observation) -> str:
        return typed

    def while_waiting(self, check: Callable[[], None]) -> None:
        pass

    def take_metrics(self) -> dict[str, float]:
        return {}

    def spawn(self) -> Env:
        """Another one with the same settings, where a spec made this one; environments with large data override it."""
        if self._remake is None:
            raise NotImplementedError(f"{type(self).__name__}.spawn")
        return self._remake()

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Extra:
    """An optional dependency of the package (`pip install 'paw-fast[name]'`) that an environment uses.

    purpose: what it is for, in a few words. distributions: what it installs, by their names on PyPI.
    """

    name: str
    purpose: str
    distributions: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Something that `paw-fast doctor` misses: what, why it matters, how to fix it, and whether it must be fixed.

    >>> Gap("ALFWorld data", "ALFWORLD_DATA is not set", "nothing to do: games are generated", needed=False).needed
    False
    """

    what: str
    why: str
    fix: str
    needed: bool = True


@dataclass(frozen=True)
class Finding:
    """What `paw-fast doctor` finds of an environment's data. Produced by `EnvSpec.doctor`.

    data: for `doctor --json`. text: the same in words, one line. gaps: what is missing.
    """

    data: Mapping[str, Any]
    text: str
    gaps: tuple[Gap, ...] = ()


class Expert(Protocol):
    """Chooses commands from what an episode has shown; its episodes are the demonstrations of a warm start.

    noop_command        a command that does nothing, for the habit of needless commands; None where there is none
    token_pattern       regular expression of what the tokenizer of the `tiny` model should keep whole; "" for nothing
    early_answer_share  share of the episodes, the last ones, in which the expert may answer too early; 0 for none
    answered_early      whether it has done so in this episode, which is then imitated though it may be lost
    """

    noop_command: str | None
    early_answer_share: float
    answered_early: bool

    @property
    def token_pattern(self) -> str: ...

    def reset(self, observation: Observation) -> None:
        """Starts an episode with its first observation. Raises `ValueError` for a task that it cannot do."""
        ...

    def act(self, observation: Observation) -> str:
        """The next command, given the answer to the last one (at first: the first observation)."""
        ...

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether a command would change nothing here; a warm start shows how to go on after such mistakes."""
        ...


class BaseExpert:
    """The parts of `Expert` that most experts need not write; `reset` and `act` are theirs."""

    noop_command: str | None = None
    early_answer_share: float = 0.0
    answered_early: bool = False

    @property
    def token_pattern(self) -> str:
        return ""

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Any command that is not listed as admissible."""
        return command not in observation.admissible


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


@dataclass(frozen=True)
class EnvSpec:
    """All that the package knows of an environment. `registry.find("environments", name)` gives it.

    name            what `--env` takes
    config          its settings: a subclass of `EnvConfig` with its own fields and defaults
    make            make(config, **more) -> Env; `more` are keywords of `envs.make` that are no settings (`cache_dir`)
    make_expert     make_expert(config, seed=0, careful=False) -> Expert, None where it has none; `careful`: without
                    the early answers of its settings
    data_variable   environment variable that names the data folder where `--env.data` does not; "" for none
    templates       folder of its own prompt templates; others are looked for in `rollout/templates`
    extras          optional dependencies
    check_installed check_installed(config) raises `UserError` if packages or data that the settings need are missing;
                    it is called before a run begins, and is quick
    doctor          what `paw-fast doctor` says of its data; never raises
    play            settings for `paw-fast play` that differ from the defaults
    read_task       the task in a file, for `paw-fast play --game FILE`; None where tasks have no files
    has_state_text  whether the text of a state comes again when the state does, as GiGPO's anchor groups need it
    keywords        other names that `envs.make` takes for settings
    """

    name: str
    config: type[EnvConfig]
    make: Callable[..., Env]
    make_expert: Callable[..., Expert] | None = None
    data_variable: str = ""
    templates: Path | None = None
    extras: tuple[Extra, ...] = ()
    check_installed: Callable[[Any], None] | None = None
    doctor: Callable[[], Finding] | None = None
    play: Mapping[str, Any] = field(default_factory=dict)
    read_task: Callable[[Path], Task] | None = None
    has_state_text: bool = True
    keywords: Mapping[str, str] = field(default_factory=dict)

    def make_config(self, **changes: Any) -> EnvConfig:
        """The environment's settings: its defaults with `changes`."""
        return self.config(**{"name": self.name, **changes})
