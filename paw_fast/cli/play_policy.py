"""Runs `paw-fast play RUN`: the trained policy plays, and each move is shown with what the policy expected to see.

prompt -> action (and thought)        entropy of its tokens, reward
       -> next observation            probability that the policy gave it, beside its own greedy prediction
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from paw_fast.cli.eval import find_model, with_consent
from paw_fast.cli.play import PlayRunOptions
from paw_fast.config import TrainConfig, with_chat_date
from paw_fast.errors import UserError
from paw_fast.evaluation.episode_view import Expectation, measure_expectation
from paw_fast.evaluation.success import EVAL_SEED, eval_tasks
from paw_fast.models.policy import Policy, load_policy
from paw_fast.rollout.agent_loop import AgentLoop
from paw_fast.rollout.engines.base import ActionRequest
from paw_fast.rollout.factory import make_env, make_evaluation_engine, make_loop
from paw_fast.runs import stop_signals
from paw_fast.types import EVALUATION, EpisodeId, EpisodeRequest, Task, Trajectory, Transition

_PREDICTION = 1 << 30
"""The engine's number of the request that predicts an observation; the agent loop counts its own from 0."""
GREEDY = 1e-3
"""Sampling temperature of predictions: the most likely token, but for ties."""


@dataclass(frozen=True)
class Move:
    """One action of the policy as it is shown. Produced by `PolicyPlayer.moves`.

    thought, command  what the policy sampled
    valid             whether the environment accepts the command, in the required form
    entropy           mean full-vocabulary entropy over the tokens of the action, at the training temperature, nats
    reward            reward of the transition, penalties included
    observation       the observation that followed
    probability       mean probability that the policy gave to the tokens of that observation, at temperature 1; None
                      if it is empty
    prediction        the observation that the policy itself generates after the action, greedily, cut to the number of
                      tokens of the true one
    """

    thought: str
    command: str
    valid: bool
    entropy: float
    reward: float
    observation: str
    probability: float | None
    prediction: str


class PolicyPlayer:
    """Plays episodes with a policy, one after the other.

    >>> for move in PolicyPlayer(policy, loop, config, 0.4).moves(request):                   # doctest: +SKIP
    ...     print(move.command, move.probability)
    """

    def __init__(self, policy: Policy, loop: AgentLoop, config: TrainConfig, temperature: float):
        self.policy, self.loop, self.config, self.temperature = policy, loop, config, temperature
        # Each transition is measured as a sequence of its own, which its prompt makes whole in both layouts.
        self._measured = dataclasses.replace(config, layout="window")
        self.trajectory: Trajectory | None = None

    def moves(self, request: EpisodeRequest) -> Iterator[Move]:
        """Plays an episode, then yields each of its actions; `trajectory` is the whole episode.

        The episode is over before the first prediction: the engine that predicts must have no action of it in flight.
        """
        self.trajectory = None
        self.loop.add([request], self.temperature)
        try:
            while self.trajectory is None:
                over = self.loop.step()
                self.trajectory = over[0] if over else None
        finally:
            self.loop.stop()
        for transition in self.trajectory.transitions:
            yield self._describe(request, transition)

    def _describe(self, request: EpisodeRequest, t: Transition) -> Move:
        episode = Trajectory(request.task, request.episode_id, (t,), t.reward, t.reward, won=False)
        expected: Expectation = measure_expectation(self.policy, [episode], self._measured)
        seen = expected.probabilities[0]
        thought, command = split_thought(self.loop.chat.decode(t.action_ids), t.command, self.loop.chat.thought_opened)
        return Move(
            thought, command, t.valid, float(expected.entropies[0]), t.reward, t.observation_text,
            float(seen.mean()) if len(seen) else None, self._predict(t),
        )  # fmt: skip

    def _predict(self, t: Transition) -> str:
        """The observation that the policy generates after the action."""
        if True not in t.observation_mask:
            return ""
        size, first = sum(t.observation_mask), t.observation_mask.index(True)
        prompt = [*t.prompt_ids, *t.action_ids, *t.observation_ids[:first]]
        engine = self.loop.engine
        engine.submit(ActionRequest(_PREDICTION, prompt, (0,), size, GREEDY))
        try:
            while True:
                for completion in engine.step():
                    if completion.episode == _PREDICTION:
                        return self.loop.chat.decode(completion.action_ids).strip()
        finally:
            engine.release(_PREDICTION)


def split_thought(text: str, command: str, opened: bool) -> tuple[str, str]:
    """Splits a sampled action into its thought and its command. `opened`: the prompt ends with `<think>`.

    >>> split_thought("<think>the mug is here</think><action>take mug 1</action>", "take mug 1", False)
    ('the mug is here', 'take mug 1')
    >>> split_thought("go to desk 1", "go to desk 1", False)
    ('', 'go to desk 1')
    """
    text = f"<think>{text}" if opened else text
    found = re.search(r"<think>(.*?)(?:</think>|<action>|\Z)", text, re.S)
    return (found[1].strip() if found else ""), command or text.strip()


def world_model_note(path: Any, config: TrainConfig, of_run: bool) -> str:
    """What the predictions shown mean for this model; empty where the world-model loss trained them."""
    if not of_run:
        return f"{path} belongs to no run here: what it expects to see may not have been trained."
    if not config.paw.enabled:
        return (
            "The run's world-model loss was off (--paw.no-enabled): what the policy expects to see comes from before "
            "training, by imitation or pretraining."
        )
    return ""


def play_run(options: PlayRunOptions, console: Console | None = None, stdin: TextIO | None = None) -> int:
    """Runs the command; returns the exit status. Raises `UserError` for runs without a usable checkpoint."""
    console = console or Console(highlight=False)
    path, config = find_model(options.checkpoint, options.preset, options.env)
    config = with_chat_date(with_consent(config, options))
    if options.env not in (None, config.env.name):
        raise UserError(f"{options.checkpoint} was trained on {config.env.name}, not on --env {options.env}")
    temperature = config.rollout.eval_temperature if options.temperature is None else options.temperature
    env = make_env(config.env)
    env.while_waiting(stop_signals.check)
    try:
        tasks = _choose(eval_tasks(env.tasks(options.split), sys.maxsize), options)
        policy = load_policy(path, config.model, trainable=False)
        # One slot for the episode and one for predictions.
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, slots=2))
        loop = make_loop(policy.tokenizer, policy.model.config, make_evaluation_engine(policy, config), env, config)
        try:
            player = PolicyPlayer(policy, loop, config, temperature)
            of_run = not isinstance(path, str) and _has_run(path)
            console.print(
                escape(f"{path} on {config.env.name}, split {options.split}, temperature {temperature:g}"),
                soft_wrap=True,
            )
            if note := world_model_note(path, config, of_run):
                console.print(escape(note), style="yellow")
            won = sum(_play_one(player, number, task, options, console, stdin or sys.stdin) for number, task in tasks)
            if len(tasks) > 1:
                console.print(f"won {won} of {len(tasks)} episodes")
        finally:
            loop.engine.close()
    finally:
        env.close()
    return 0


def _choose(tasks: list[Task], options: PlayRunOptions) -> list[tuple[int, Task]]:
    """The tasks to play with their numbers: as an evaluation of the split draws them, from --task on."""
    if not 0 <= options.task < len(tasks):
        raise UserError(f"--task is {options.task}: the split {options.split} has tasks 0 to {len(tasks) - 1}")
    return [(n % len(tasks), tasks[n % len(tasks)]) for n in range(options.task, options.task + options.episodes)]


def _has_run(path: Any) -> bool:
    from paw_fast.runs.run_dir import find_run_dir

    try:
        find_run_dir(path)
    except UserError:
        return False
    return True


def _play_one(
    player: PolicyPlayer, number: int, task: Task, options: PlayRunOptions, console: Console, stdin: TextIO
) -> bool:
    """Plays and shows one episode; returns whether it was won."""
    request = EpisodeRequest(EpisodeId(EVALUATION, number, 0), task, (options.seed, EVAL_SEED, number))
    first = player.loop.envs[0].reset(task)
    console.print()
    console.print(Panel(escape(first.task) or "(no task text)", title=f"task {number}: {task.task_type}", expand=False))
    console.print(escape(first.text.strip()))
    count = 0
    for count, move in enumerate(player.moves(request), 1):
        show_move(console, count, move)
        if options.step:
            console.print("Enter for the next move", style="dim")
            if not stdin.readline():
                options = dataclasses.replace(options, step=False)
        stop_signals.check()
    end = player.trajectory
    assert end is not None
    if not end.transitions:
        console.print("Lost: the first prompt does not fit --rollout.max-sequence-tokens.", style="bold red")
        return False
    steps = f"{count} step" if count == 1 else f"{count} steps"
    outcome = "Won" if end.won else "Ended by a limit" if end.truncated else "Lost"
    colour = "bold green" if end.won else "bold red"
    console.print(f"{outcome} after {steps}, return {end.episode_return:.2f}", style=colour)
    return end.won


def show_move(console: Console, number: int, move: Move) -> None:
    """Prints a move: thought, action, numbers, observation, prediction."""
    console.print()
    if move.thought:
        console.print(escape(f"thought: {move.thought}"), style="italic")
    invalid = "" if move.valid else "   (invalid)"
    console.print(escape(f"[{number}] > {move.command}{invalid}"), style="bold")
    console.print(
        f"    entropy of the action {move.entropy:.3f} nats per token, reward {move.reward:+.2f}", style="dim"
    )
    console.print(escape(move.observation.strip()))
    if move.probability is not None:
        same = " ".join(move.prediction.split()) == " ".join(move.observation.split())
        told = "the same" if same else move.prediction or "(nothing)"
        console.print(
            escape(f"    expected with probability {move.probability:.2f} per token; predicted: {told}"), style="dim"
        )
