"""Runs the agent loop: many episodes at once, each requesting its next action as soon as its environment answers.

task -> env.reset -> prompt -> engine.submit ... engine.step -> action -> env.step -> observation -> prompt -> ...
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from paw_fast.envs.base import Env, EpisodeLost, StepResult
from paw_fast.errors import UserError
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest, Completion, RolloutEngine
from paw_fast.rollout.episode_retries import Retries
from paw_fast.rollout.prompts import ParsedAction, PromptTemplate, parse_action
from paw_fast.types import EpisodeRequest, Observation, Task, Trajectory, Transition

Stage = Callable[[str], AbstractContextManager[Any]]
"""Times a named part of the work; called where the work can be interrupted, it may raise to interrupt it."""

InFlight = dict[int, tuple[int, int]]
"""For each training step, how many of its episodes are in flight, and how many turns these have played."""

CHECKED_TASKS = 8
"""Number of tasks whose first prompts are checked before a run starts."""


def untimed(name: str) -> AbstractContextManager[Any]:
    """The `Stage` that does nothing."""
    return nullcontext()


@dataclass(frozen=True)
class AgentSettings:
    """How an episode is played; `factory.agent_settings` makes it of a run's config, which documents the fields.

    max_action_tokens, max_sequence_tokens: lengths in tokens, where the model has positions for them. max_steps: in
    actions. An episode that has lasted `max_episode_s` seconds or sampled `max_episode_tokens` tokens is cut and
    marked; None is no limit. max_retries: how often an episode is played again when its environment fails.
    """

    layout: str
    history: int
    max_steps: int
    max_action_tokens: int
    max_sequence_tokens: int
    temperature: float
    success_reward: float
    invalid_penalty: float
    max_episode_s: float | None
    max_episode_tokens: int | None
    max_observation_chars: int
    max_observation_tokens: int
    max_retries: int = 2

    def has_room(self, prompt: Sequence[int]) -> bool:
        """Whether the longest action fits after a prompt."""
        return len(prompt) + self.max_action_tokens <= self.max_sequence_tokens


def first_prompt(observation: Observation, chat: ChatFormat, template: PromptTemplate, layout: str) -> list[int]:
    """Token ids of an episode's first prompt. `observation`: as the policy reads it. `template`: with_escape."""
    return chat.first(first_message(observation, template, layout))


def first_message(observation: Observation, template: PromptTemplate, layout: str) -> str:
    """Text of an episode's first message to the policy. `observation`: as the policy reads it."""
    if layout == "trajectory":
        return template.first(observation)
    return template.window(observation, observation.task, [], 0)


def check_first_prompts(
    env: Env, tasks: Sequence[Task], chat: ChatFormat, template: PromptTemplate, settings: AgentSettings
) -> str:
    """Renders the first prompts of a few tasks, and returns the message of the first that fits. Raises `UserError` when
    most of them leave no room for an action, and when the template cannot be rendered."""
    count = min(CHECKED_TASKS, len(tasks))
    limits = (settings.max_observation_chars, settings.max_observation_tokens)
    plain, template = template, template.with_escape(chat.escape)
    too_long: list[tuple[Task, int]] = []
    example = ""
    for number in range(count):
        task = tasks[number * len(tasks) // count]
        observation, _ = chat.policy_view(env.reset(task), *limits)
        if not settings.has_room(prompt := first_prompt(observation, chat, template, settings.layout)):
            too_long.append((task, len(prompt)))
        elif not example:
            example = first_message(observation, plain, settings.layout)
    if 2 * len(too_long) > count:
        task, length = too_long[0]
        raise UserError(
            f"the first prompts of {len(too_long)} of {count} tasks do not fit: {task.task_id} has {length} tokens, "
            f"and {settings.max_action_tokens} for an action (--rollout.max-action-tokens) make more than the "
            f"{settings.max_sequence_tokens} of a sequence: raise --rollout.max-sequence-tokens (at most to what the "
            "model has positions for)"
        )
    return example


@dataclass
class _Episode:
    request: EpisodeRequest
    number: int
    temperature: float
    env: Env
    observation: Observation
    """As the policy reads it."""
    anchor: str
    previous_text: str
    prompt: list[int]
    num_cut: int
    instruction: str
    intro: str
    started_s: float
    transitions: list[Transition] = field(default_factory=list)
    history: list[dict[str, str]] = field(default_factory=list)
    score: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


class AgentLoop:
    """Plays episodes with an engine.

    envs: one slot for each episode that runs at the same time. stage: called around the parts of a step; it may raise
    to interrupt them.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        envs: Sequence[Env],
        chat: ChatFormat,
        template: PromptTemplate,
        settings: AgentSettings,
        stage: Stage = untimed,
    ):
        self.engine, self.envs, self.chat, self.settings = engine, list(envs), chat, settings
        self.template, self.stage = template.with_escape(chat.escape), stage
        self._started = 0
        self._queue: deque[tuple[EpisodeRequest, float | None]] = deque()
        self._free = list(self.envs)
        self._live: dict[int, _Episode] = {}
        self._retries = Retries(settings.max_retries)

    def play(self, requests: Sequence[EpisodeRequest], temperature: float | None = None) -> Iterator[Trajectory]:
        """Plays every episode once; yields each trajectory when it ends, in the order they end."""
        self.add(requests, temperature)
        try:
            while self.busy:
                yield from self.step()
        finally:
            self.stop()

    @property
    def busy(self) -> bool:
        """Whether episodes are in flight or wait for a slot."""
        return bool(self._queue or self._live)

    def in_flight(self) -> InFlight:
        """Episodes in flight and the turns that they have played, for each training step (`EVALUATION` included)."""
        out: InFlight = {}
        for episode in self._live.values():
            episodes, turns = out.get(step := episode.request.episode_id.step, (0, 0))
            out[step] = episodes + 1, turns + len(episode.transitions)
        return out

    def take_metrics(self) -> dict[str, float]:
        """What the environments have counted since the last call, and the episodes that were played again."""
        return {**self.envs[0].take_metrics(), **self._retries.take_metrics()}  # the first counts for all slots

    def add(self, requests: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        """Queues more episodes; `temperature` None is that of the settings."""
        self._queue.extend((request, temperature) for request in requests)

    def stop(self) -> None:
        """Abandons every episode that is in flight or waits."""
        for number in self._live:
            self.engine.release(number)
        self._live.clear()
        self._queue.clear()
        self._retries.forget()
        self._free = list(self.envs)

    def step(self) -> list[Trajectory]:
        """Starts episodes in free slots, advances the engine once, plays the actions that are complete; returns the
        episodes that ended.

        An episode whose first prompt leaves no room for an action ends at once, without a transition.
        """
        over = []
        while self._queue and self._free:
            request, temperature = self._queue.popleft()
            try:
                episode = self._start(request, temperature, self._free[-1])
            except EpisodeLost as error:
                self._retries.add(request, error)
                self._queue.append((request, temperature))
                continue
            self._free.pop()
            if not self.settings.has_room(episode.prompt):
                self._free.append(episode.env)
                over.append(self._trajectory(episode, won=False, truncated=True))
                continue
            self._live[episode.number] = episode
            self._ask(episode)
        with self.stage("generate"):
            completions = self.engine.step()
        with self.stage("prompt"):
            # All begin before the first ends, so that environments can share work (search: one request for all).
            actions = [self._begin(self._live[completion.episode], completion) for completion in completions]
        for completion, action in zip(completions, actions, strict=True):
            episode = self._live[completion.episode]
            try:
                with self.stage("prompt"):
                    trajectory = self._act(episode, completion, action)
            except EpisodeLost as error:
                self._retries.add(episode.request, error)
                self._queue.append((episode.request, episode.temperature))
                self._abandon(episode)
                continue
            if trajectory is None:
                self._ask(episode)
            else:
                over.append(self._leave(episode, trajectory))
        return over + self._cut_late()

    def _cut_late(self) -> list[Trajectory]:
        """Ends episodes whose time is spent in the middle of an action; the action is dropped."""
        if self.settings.max_episode_s is None:
            return []
        late = [e for e in self._live.values() if e.transitions and self._overrun(e) == "time"]
        return [self._leave(e, self._trajectory(e, won=False, truncated=True, overrun="time")) for e in late]

    def _leave(self, episode: _Episode, trajectory: Trajectory) -> Trajectory:
        self._abandon(episode)
        self._retries.ended(episode.request)
        return trajectory

    def _abandon(self, episode: _Episode) -> None:
        self.engine.release(episode.number)
        self._free.append(episode.env)
        del self._live[episode.number]

    def _overrun(self, episode: _Episode) -> str:
        """The budget that the episode has spent: `time`, `tokens` or empty."""
        s = self.settings
        if s.max_episode_s is not None and time.monotonic() - episode.started_s > s.max_episode_s:
            return "time"
        spent = s.max_episode_tokens
        if spent is not None and sum(len(t.action_ids) for t in episode.transitions) >= spent:
            return "tokens"
        return ""

    def _start(self, request: EpisodeRequest, temperature: float | None, env: Env) -> _Episode:
        s = self.settings
        with self.stage("environment"):
            first = env.reset(request.task)
            observation, cut = self._shown(first)
        self._started += 1
        return _Episode(
            request, self._started - 1, s.temperature if temperature is None else temperature, env, observation,
            anchor=_anchor(first), previous_text=first.text,
            prompt=first_prompt(observation, self.chat, self.template, s.layout), num_cut=int(cut),
            instruction=observation.task, intro=observation.text, started_s=time.monotonic(),
        )  # fmt: skip

    def _ask(self, episode: _Episode) -> None:
        s = self.settings
        seed = (*episode.request.seed, len(episode.transitions))
        self.engine.submit(
            ActionRequest(
                episode.number, episode.prompt, seed, s.max_action_tokens, episode.temperature, self.template.stop
            )
        )  # fmt: skip

    def _shown(self, observation: Observation) -> tuple[Observation, bool]:
        """The observation as the policy reads it, cut to its limits, and whether it was cut."""
        s = self.settings
        return self.chat.policy_view(observation, s.max_observation_chars, s.max_observation_tokens)

    def _passages(self, observation: Observation, mask: list[bool]) -> tuple[tuple[int, int, str], ...]:
        """Places of passages in the observation's tokens, of which `mask` marks those of the text."""
        places = observation.passages
        if not places:
            return ()
        first, end = mask.index(True) if True in mask else len(mask), len(mask)
        found = ((first + a, min(first + b, end), name) for a, b, name in self.chat.locate(observation.text, places))
        return tuple((a, b, name) for a, b, name in found if a < b)

    def _begin(self, episode: _Episode, completion: Completion) -> ParsedAction:
        """Parses a sampled action, and hands it to an environment that can start on it before it must answer."""
        text = self.chat.decode(completion.action_ids)
        parsed = parse_action(text, self.template.style, self.chat.thought_opened)
        with self.stage("environment"):
            episode.env.begin_step(parsed.command)
        return parsed

    def _act(self, episode: _Episode, completion: Completion, parsed: ParsedAction) -> Trajectory | None:
        """Plays a sampled action; returns the trajectory when the episode has ended."""
        s, before, task = self.settings, episode.observation, episode.request.task
        with self.stage("environment"):
            step: StepResult = episode.env.finish_step()
        valid = parsed.well_formed
        if self.template.invalid == "admissible":
            valid = valid and step.was_admissible(parsed.command, before)
        after, cut = self._shown(step.observation)
        won = step.won
        head, tail = ("", "") if s.layout == "window" else self.template.split_next(after)
        ids, mask = self.chat.follow(completion.action_ids, head, after.text, tail)
        # What follows may be too long to be learned from in one sequence, though nothing is sampled after it.
        kept = s.max_sequence_tokens - len(episode.prompt) - len(completion.action_ids)
        shortened = len(ids) > kept
        for value in (step.reward, step.score):
            if not math.isfinite(value):
                raise UserError(
                    f"the environment {task.env} gave the reward {value} in the task {task.task_id}: expected a finite "
                    "number; fix the environment, or leave the task out"
                )
        reward = s.success_reward * step.reward - (0.0 if valid else s.invalid_penalty)
        episode.transitions.append(
            Transition(
                prompt_ids=tuple(episode.prompt), action_ids=completion.action_ids,
                rollout_logprobs=completion.logprobs,
                observation_ids=tuple(ids[:kept]), observation_mask=tuple(mask[:kept]), command=parsed.command,
                observation_text=after.text, anchor_obs=episode.anchor, reward=reward,
                valid=valid, policy_versions=completion.policy_versions, passages=self._passages(after, mask[:kept]),
                previous_text=episode.previous_text,
            )
        )  # fmt: skip
        episode.history.append({"observation": before.text, "command": parsed.command})
        episode.observation = after
        episode.anchor, episode.previous_text = _anchor(step.observation), step.observation.text
        episode.score += step.score
        episode.scores = dict(step.scores)
        over = step.done or won or len(episode.transitions) >= s.max_steps
        if not over:
            if s.layout == "trajectory":
                episode.prompt = episode.prompt + list(completion.action_ids) + ids
            else:
                recent = episode.history[-s.history :] if s.history else []
                played = len(episode.transitions)
                message, dropped = self.template.fit_window(after, episode.instruction, recent, played)
                cut = cut or dropped
                episode.prompt = self.chat.first(message)
            episode.num_cut += cut or shortened
            overrun = self._overrun(episode)
            if s.has_room(episode.prompt) and not overrun:
                return None
            no_room = not s.has_room(episode.prompt)
            return self._trajectory(episode, won=False, truncated=True, overrun=overrun, no_room=no_room)
        episode.num_cut += shortened
        ended = step.done and not step.truncated
        return self._trajectory(episode, won=won, truncated=not (ended or won))

    def _trajectory(
        self, episode: _Episode, *, won: bool, truncated: bool, overrun: str = "", no_room: bool = False
    ) -> Trajectory:
        s = self.settings
        total = sum(t.reward for t in episode.transitions)
        penalties = s.invalid_penalty * sum(not t.valid for t in episode.transitions)
        return Trajectory(
            episode.request.task, episode.request.episode_id, tuple(episode.transitions), episode_return=total,
            success_return=total + penalties, won=won, intro_text=episode.intro, truncated=truncated,
            score=episode.score, num_cut=episode.num_cut, scores=episode.scores, overrun=overrun,
            no_room=no_room,
        )  # fmt: skip


def _anchor(observation: Observation) -> str:
    """The text of an environment's state, uncut: the policy may read less of it."""
    return observation.text if observation.state_text is None else observation.state_text
