"""Defines the settings that every environment has."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from paw_fast.config.ranges import SECONDS, Range

TopLevel = lambda name: tyro.conf.arg(name=name, prefix_name=False)  # noqa: E731


EnvName = Annotated[str, TopLevel("env")]


@dataclass(frozen=True)
class EnvConfig:
    """Settings that every environment has. An environment's own settings are the fields of a subclass."""

    name: EnvName = ""
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 50
    """An episode ends after this many actions."""
    template: str = "verl"
    """Prompt template: `verl` (thinks, then acts), `compact` (action only), or the path of a TOML file."""
    history: Annotated[int, Range(0, 1 << 16)] = 2
    """Earlier turns shown in the prompt, in the `window` layout (default from the verl-agent recipe)."""
    max_observation_chars: Annotated[int, Range(0, 1 << 30)] = 0
    """Longer observations are cut to this many characters in the prompt; 0 cuts none."""
    max_observation_tokens: Annotated[int, Range(0, 1 << 24)] = 0
    """The same in tokens of the policy's tokenizer; a closing tag at the end is kept."""
    time_limit_s: Annotated[float | None, SECONDS] = None
    """Seconds that a reset or a step may take. With a limit, the environment runs in processes of its own: one that
    exceeds it, or ends, is restarted, and its episodes are played again. `None`: no limit, and no other process."""
    processes: Annotated[int, Range(0, 1 << 10)] = 0
    """With --env.time-limit-s: number of processes that the episodes share; 0 is one per CPU core, at most 8."""
    max_retries: Annotated[int, Range(0, 1 << 10)] = 2
    """An episode whose environment fails more often than this stops the run."""

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = ()
    """Fields that a resumed run may change, because they do not change what the run learns from."""
    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Own settings that `paw-fast train --help` shows; empty shows the first."""
    CONSENT_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Fields by which a command line allows code from data files to run (see `code_in_data`)."""

    def check(self) -> None:
        """Raises `UserError` for fields that contradict each other; ranges of single fields are checked before."""

    def with_full_paths(self) -> EnvConfig:
        """The same with absolute paths, so that they mean the same in another folder."""
        paths = {f.name: getattr(self, f.name) for f in fields(self)}
        full = {name: path.expanduser().absolute() for name, path in paths.items() if isinstance(path, Path)}
        template = str(Path(self.template).absolute()) if self.template.endswith(".toml") else self.template
        return replace(self, template=template, **full)

    def code_in_data(self) -> str:
        """What code from data files these settings run, as the start of a sentence; empty where they run none."""
        return ""

    def with_consent(self, given: bool) -> EnvConfig:
        """The same with or without permission to run code from data files."""
        return self
