"""Defines what an environment is: `Env`, `Expert`, and the `EnvSpec` by which the rest of the package knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from paw_fast.config.schema import EnvConfig
from paw_fast.errors import UserError
from paw_fast.types import Env, Observation, Task


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
    doctor: Callable[[], Finding] | None = None
    play: Mapping[str, Any] = field(default_factory=dict)
    read_task: Callable[[Path], Task] | None = None
    has_state_text: bool = True
    keywords: Mapping[str, str] = field(default_factory=dict)

    def make_config(self, **changes: Any) -> EnvConfig:
        """The environment's settings: its defaults with `changes`."""
        return self.config(**{"name": self.name, **changes})


def as_spec(found: Any, name: str) -> EnvSpec:
    """The spec of what a name stands for. Raises `UserError` for what is no environment."""
    if isinstance(found, EnvSpec):
        return found
    raise UserError(f"--env {name}: it is {type(found).__name__}, expected an EnvSpec or a class")
