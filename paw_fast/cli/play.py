"""Lets a person play an episode in the terminal; `play_policy` lets a trained policy play."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import tyro
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from paw_fast.config.ranges import SEED, TEMPERATURE, Range
from paw_fast.envs.base import Env
from paw_fast.types import Observation, Task


@dataclass(frozen=True)
class PlayRunOptions:
    """The trained policy plays: its actions with their entropy and reward, and the observations beside those that it
    expected. Without a run, a person plays (`paw-fast play --env NAME`)."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run directory (its newest checkpoint), a checkpoint, or a Hugging Face model folder."""
    split: str = "unseen"
    """`train`, `unseen`, or another split of the environment."""
    task: Annotated[int, Range(0, 1 << 30)] = 0
    """Number of the first task, in the order in which an evaluation draws the tasks of the split."""
    episodes: Annotated[int, Range(1, 1 << 24)] = 1
    """Number of episodes, on consecutive tasks."""
    temperature: Annotated[float | None, TEMPERATURE] = None
    """Sampling temperature; `None` is the run's evaluation temperature."""
    step: bool = False
    """Wait for Enter after each move."""
    seed: Annotated[int, SEED] = 0
    """Seed of the sampling; the same seed, task and checkpoint give the same episode."""
    env: Annotated[str | None, tyro.conf.arg(name="env")] = None
    """The environment, for a model folder that belongs to no run; `None` is ALFWorld."""
    preset: str | None = None
    """Settings for a model folder that belongs to no run."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    trust_env_code: bool = False
    """Run code from the environment's data files where the run's config or the data ask for it."""


SWITCHES = ("--step", "--trust-remote-code", "--trust-env-code")


def names_a_run(args: Sequence[str]) -> bool:
    """Whether the arguments of `paw-fast play` name a run or model: anything that is no option and no option's value.

    >>> names_a_run(["--split", "train", "runs/a"]), names_a_run(["--env", "webshop", "--task=2"])
    (True, False)
    """
    i = 0
    while i < len(args):
        arg = args[i].replace("_", "-")
        if not arg.startswith("-"):
            return True
        i += 1 if "=" in arg or arg in SWITCHES or arg in ("-h", "--help") else 2
    return False


HINT = "Type a command, ? for the commands that are possible now, task for the task, quit to stop."


def play(env: Env, task: Task, console: Console | None = None, stdin: TextIO | None = None) -> bool:
    """Lets a person play `task` and returns whether it was won.

    Ends at a win, at the step limit, at "quit", at the end of the input and at Ctrl-C. Works on a pipe, one command a
    line. An empty line and an unknown command cost no step: what the environment would only answer with
    "Nothing happens" is met with the nearest possible command. Raises what `env.reset` raises.
    """
    console = console or Console(highlight=False)
    source: TextIO = stdin or sys.stdin
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="replace")  # bytes that are no text are an unknown command, and no end
    prompt = "> " if source.isatty() else ""
    observation = env.reset(task)
    sentence = observation.task
    console.print(Panel(escape(sentence) or "(no task text)", title=f"task: {task.task_type}", expand=False))
    console.print(escape(observation.text.strip()))
    console.print(HINT, style="dim")
    num_steps = 0
    try:
        while True:
            console.print(prompt, end="", style="bold")
            line = source.readline()
            if not line:
                console.print("\nEnd of input: the episode is left unfinished.", style="yellow")
                return False
            command = " ".join(line.lower().split())
            if command in ("quit", "exit", "q"):
                console.print(f"Left after {_steps(num_steps)}.", style="yellow")
                return False
            command = env.from_keyboard(command, observation)
            possible = env.accepts(command, observation)
            if _answer_locally(command, sentence, observation, possible, console.print):
                continue
            step = env.step(command)
            observation, num_steps = step.observation, num_steps + 1
            console.print(escape(observation.text))
            if step.done:
                if step.won:
                    console.print(f"You won, in {_steps(num_steps)}.", style="bold green")
                    return True
                limit = f"You lost: {num_steps} steps are all an episode has." if step.truncated else "You lost."
                console.print(escape(step.verdict or limit), style="bold red")
                return False
    except KeyboardInterrupt:
        console.print(f"\nInterrupted after {_steps(num_steps)}.", style="yellow")
        return False


def _steps(num: int) -> str:
    return f"{num} step" if num == 1 else f"{num} steps"


def _answer_locally(
    command: str, sentence: str, observation: Observation, possible: bool, say: Callable[..., None]
) -> bool:
    """Answers what is not for the environment: ?, task, an empty line, a command that is not possible."""
    if command in ("?", "commands"):
        for one in observation.admissible:
            say(f"  {escape(one)}")
    elif command == "task":
        say(escape(sentence))
    elif not command:
        say(HINT, style="dim")
    elif not possible:
        close = difflib.get_close_matches(command, observation.admissible, n=1)
        hint = f"did you mean: {close[0]}" if close else "type ? to see what is"
        say(escape(f"That is not possible here; {hint}"), style="yellow")
    else:
        return False
    return True
