"""Defines the interfaces `Env` and `Expert`, and `EnvSpec`, which describes an environment to the package.

A custom environment is a class with `tasks`, `reset` and `step`: `BaseEnv` provides the other members of `Env`, and
`user_class.as_spec` creates the spec of such a class. docs/howto/add_env.md shows an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from paw_fast.config.schema import EnvConfig
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task


@dataclass(frozen=True)
class StepResult:
    """The result of one command. Produced by `Env.step`, consumed by the agent loop.

    observation  what the environment shows now
    done         the episode is over
    won          the task is solved; the episode is over, and counts as a success
    reward       the reward for the policy, as a share of --algo.success-reward; by default 1 if won, else 0
    score        the environment's own score of this step, for the metrics; by default the reward
    truncated    the episode is over only because it reached a limit, such as the number of steps
    admissible   whether the environment accepts the command; None: look it up in the admissible commands of the
                 previous observation, or accept any command if that lists none
    scores       further scores of the episode by name, each 0 to 1, given at its end
    verdict      message to a person who plays when the episode is lost

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
        """Whether the environment accepts `command` after the observation `before`.

        >>> StepResult(Observation("ok")).was_admissible("jump", Observation("start", ("walk",)))
        False
        """
        if self.admissible is not None:
            return self.admissible
        return not before.admissible or command in before.admissible


class EpisodeLost(UserError):
    """The environment cannot go on with this episode, through no fault of the policy: the agent loop plays it again.

    Raised by `reset` and `step` (or their second halves) when a process has ended, a server is gone or a time limit is
    exceeded. `caused`: whether this episode may be the cause; if not, it does not count toward --env.max-retries.
    """

    def __init__(self, message: str, caused: bool = True) -> None:
        super().__init__(message)
        self.caused = caused


@runtime_checkable
class Env(Protocol):
    """Runs one episode at a time. Not thread-safe; `spawn` creates another episode slot over the same data."""

    name: str

    @property
    def disjoint_splits(self) -> bool:
        """Whether no two splits share a task by construction; if False, the tasks are compared."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split (at least "train" and "unseen") in a fixed order. Raises `UserError` for others."""
        ...

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` naming file and place when the task cannot be loaded."""
        ...

    def begin_reset(self, task: Task) -> None:
        """The first half of `reset`: accepts the task, so that several environments can load at the same time."""
        ...

    def finish_reset(self) -> Observation:
        """The second half of `reset`: returns the first observation."""
        ...

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        ...

    def begin_step(self, command: str) -> None:
        """The first half of `step`: accepts the command, so that several environments can run at the same time."""
        ...

    def finish_step(self) -> StepResult:
        """The second half of `step`: returns the result. In a batch, all begin before the first finishes."""
        ...

    def accepts(self, command: str, observation: Observation) -> bool:
        """Whether a command would have an effect after this observation; used when a person plays."""
        ...

    def from_keyboard(self, typed: str, observation: Observation) -> str:
        """Expands the short form of a command that a person typed (such as the name of a button)."""
        ...

    def while_waiting(self, check: Callable[[], None]) -> None:
        """Registers `check`, to be called repeatedly while the environment waits for a server; it may raise."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Returns the counters of all episode slots since the last call, by metric name."""
        ...

    def spawn(self) -> Env:
        """An independent environment that shares this one's read-only data."""
        ...

    def close(self) -> None:
        """Releases processes and files. Safe to call twice."""
        ...


class BaseEnv:
    """Default implementations of all members of `Env` except `tasks`, `reset` and `step`."""

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
        """Creates another environment with the same settings. Override it to share large data."""
        if self._remake is None:
            raise NotImplementedError(f"{type(self).__name__}.spawn")
        return self._remake()

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Extra:
    """An optional dependency of the package (`pip install '.[name]'`) that an environment uses.

    purpose: what it is used for, in a few words. distributions: the packages it installs, by their names on PyPI.
    """

    name: str
    purpose: str
    distributions: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Something that `paw-fast doctor` finds missing: what, why it matters, how to fix it, and whether it is required.

    >>> Gap("ALFWorld data", "ALFWORLD_DATA is not set", "nothing to do: games are generated", needed=False).needed
    False
    """

    what: str
    why: str
    fix: str
    needed: bool = True


@dataclass(frozen=True)
class Finding:
    """The state of an environment's data. Produced by `EnvSpec.doctor`, shown by `paw-fast doctor`.

    data: for `doctor --json`. text: the same as one line of text. gaps: what is missing.
    """

    data: Mapping[str, Any]
    text: str
    gaps: tuple[Gap, ...] = ()


class Expert(Protocol):
    """Chooses commands from the observations of an episode. Its episodes are the demonstrations of a warm start.

    noop_command        a command without effect, which a warm start can insert; None if there is none
    token_pattern       regular expression of texts that the tokenizer of the `tiny` model should not split; "" for none
    early_answer_share  share of the episodes, the last ones, in which the expert may answer too early; 0 for none
    answered_early      whether it did so in this episode, which is then imitated even if it is lost
    """

    noop_command: str | None
    early_answer_share: float
    answered_early: bool

    @property
    def token_pattern(self) -> str: ...

    def reset(self, observation: Observation) -> None:
        """Starts an episode with its first observation. Raises `ValueError` for an unsupported task."""
        ...

    def act(self, observation: Observation) -> str:
        """Returns the next command, given the result of the last one (initially the first observation)."""
        ...

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether a command would change nothing here. A warm start inserts such mistakes and shows the recovery."""
        ...


class BaseExpert:
    """Default implementations of all members of `Expert` except `reset` and `act`."""

    noop_command: str | None = None
    early_answer_share: float = 0.0
    answered_early: bool = False

    @property
    def token_pattern(self) -> str:
        return ""

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether the command is not listed as admissible."""
        return command not in observation.admissible


def one_line(error: BaseException) -> str:
    """Returns the message of an exception on one line, or its type if it has none."""
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


@dataclass(frozen=True)
class EnvSpec:
    """Describes an environment to the package. `registry.find("environments", name)` returns it.

    name            the name for `--env`
    config          the class of its settings: a subclass of `EnvConfig` with its own fields and defaults
    make            make(config, **more) -> Env; `more` are keywords of `envs.make` other than settings (`cache_dir`)
    make_expert     make_expert(config, seed=0, careful=False) -> Expert; None if it has none. `careful`: never answer
                    early, whatever the settings
    data_variable   environment variable with the data folder, used if `--env.data` is not set; "" for none
    templates       folder of its own prompt templates, searched before `rollout/templates`
    extras          optional dependencies
    check_installed check_installed(config) raises `UserError` if packages or data that the settings need are missing;
                    called before a run begins, so it must be quick
    doctor          checks its data for `paw-fast doctor`; never raises
    play            settings for `paw-fast play` that differ from the defaults
    read_task       reads the task in a file, for `paw-fast play --game FILE`; None if tasks have no files
    has_state_text  whether equal states have equal texts, which the anchor groups of GiGPO require
    own_limits      whether it keeps to `config.time_limit_s` itself, without `envs.isolated`
    caveats         what it cannot do, in a few words each; told when a run starts
    keywords        other names that `envs.make` accepts for settings
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
    own_limits: bool = False
    caveats: tuple[str, ...] = ()
    keywords: Mapping[str, str] = field(default_factory=dict)

    def make_config(self, **changes: Any) -> EnvConfig:
        """Returns the default settings of the environment with `changes` applied."""
        return self.config(**{"name": self.name, **changes})
