"""The agent loop: many episodes at once, each asking for its next action the moment its environment answers.

task -> env.reset -> prompt -> engine.submit ... engine.step -> action -> env.step -> observation -> prompt -> ...
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count

from paw_fast.envs.base import Env, StepResult
from paw_fast.errors import UserError
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest, Completion, RolloutEngine
from paw_fast.rollout.prompts import ParsedAction, PromptTemplate, parse_action
from paw_fast.types import Observation, Task, Trajectory, Transition

EpisodeRequest = tuple[Task, int, tuple[int, ...]]
"""An episode to play: its task, the group it belongs to, and its seed, which no other episode in flight has."""


CHECKED_TASKS = 8
"""Tasks whose first prompts are looked at before a run begins."""


@dataclass(frozen=True)
class AgentSettings:
    """How an episode is played. Lengths in tokens, `max_steps` in actions.

    An episode that has lasted `max_episode_s` seconds or sampled `max_episode_tokens` tokens is cut and marked.
    `anchor` says what a transition's `anchor_obs` is: the text of the state, or that of the observation alone.
    """

    layout: str = "trajectory"
    history: int = 2
    max_steps: int = 50
    max_action_tokens: int = 512
    max_sequence_tokens: int = 8192
    temperature: float = 1.0
    success_reward: float = 10.0
    invalid_penalty: float = 0.1
    max_episode_s: float | None = None
    max_episode_tokens: int | None = None
    max_observation_chars: int = 0
    max_observation_tokens: int = 0
    anchor: str = "state"

    def has_room(self, prompt: Sequence[int]) -> bool:
        """Whether the longest action fits behind a prompt."""
        return len(prompt) + self.max_action_tokens <= self.max_sequence_tokens


def first_prompt(observation: Observation, chat: ChatFormat, template: PromptTemplate, layout: str) -> list[int]:
    """The ids of an episode's first prompt; `observation` as the policy reads it, `template` guarded."""
    if layout == "trajectory":
        return chat.first(template.first(observation))
    return chat.first(template.window(observation, observation.task, [], 0))


def check_first_prompts(
    env: Env, tasks: Sequence[Task], chat: ChatFormat, template: PromptTemplate, settings: AgentSettings
) -> None:
    """Renders the first prompts of a few tasks. Raises `UserError` where most of them leave no room for an action,
    and where the template cannot be rendered."""
    count = min(CHECKED_TASKS, len(tasks))
    limits = (settings.max_observation_chars, settings.max_observation_tokens)
    template = template.with_escape(chat.escape)
    too_long: list[tuple[Task, int]] = []
    for number in range(count):
        task = tasks[number * len(tasks) // count]
        observation, _ = chat.policy_view(env.reset(task), *limits)
        if not settings.has_room(prompt := first_prompt(observation, chat, template, settings.layout)):
            too_long.append((task, len(prompt)))
    if 2 * len(too_long) > count:
        task, length = too_long[0]
        raise UserError(
            f"the first prompts of {len(too_long)} of {count} tasks do not fit: {task.task_id} has {length} tokens, "
            f"and {settings.max_action_tokens} for an action (--rollout.max-action-tokens) make more than the "
            f"{settings.max_sequence_tokens} of a sequence: raise --rollout.max-sequence-tokens (at most to what the "
            "model has positions for)"
        )


@dataclass
class _Episode:
    number: int
    task: Task
    group: int
    seed: tuple[int, ...]
    env: Env
    observation: Observation
    instruction: str
    intro: str
    prompt: list[int]
    anchor: str
    transitions: list[Transition] = field(default_factory=list)
    history: list[dict[str, str]] = field(default_factory=list)
    score: float = 0.0
    num_cut: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    started_s: float = 0.0


class AgentLoop:
    """Plays episodes with an engine. `envs` are the slots that run at the same time."""

    def __init__(
        self,
        engine: RolloutEngine,
        envs: Sequence[Env],
        chat: ChatFormat,
        template: PromptTemplate,
        settings: AgentSettings,
    ):
        self.engine, self.envs, self.chat, self.settings = engine, list(envs), chat, settings
        self.template = template.with_escape(chat.escape)
        self.stage: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        self.numbers = count()  # shared by loops on one engine, so that no two episodes have the same
        self._queue: deque[tuple[Task, int, tuple[int, ...], float | None]] = deque()
        self._free = list(self.envs)
        self._live: dict[int, _Episode] = {}

    def play(self, tasks: Sequence[EpisodeRequest], temperature: float | None = None) -> Iterator[Trajectory]:
        """Plays every (task, group, seed) once; yields each trajectory when it ends, in the order they end."""
        self.add(tasks, temperature)
        try:
            while self.busy:
                yield from self.step()
        finally:
            self.stop()

    @property
    def busy(self) -> bool:
        """Whether episodes are under way or wait for a slot."""
        return bool(self._queue or self._live)

    def add(self, tasks: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        """Lets more episodes wait for a slot; `temperature` None is that of the settings."""
        self._queue.extend((*planned, temperature) for planned in tasks)

    def stop(self) -> None:
        """Leaves every episode that is under way or waits."""
        for number in self._live:
            self.engine.release(number)
        self._live.clear()
        self._queue.clear()
        self._free = list(self.envs)

    def step(self) -> list[Trajectory]:
        """Starts what finds a slot, advances the engine once, plays the actions that ended; returns what is over.

        An episode whose first prompt leaves no room for an action is over at once, without a transition.
        """
        over = []
        while self._queue and self._free:
            episode = self._start(*self._queue.popleft(), self._free.pop())
            if not self.settings.has_room(episode.prompt):
                self._free.append(episode.env)
                over.append(self._trajectory(episode, won=False, truncated=True))
                continue
            self._live[episode.number] = episode
            self._ask(episode)
        with self.stage("generate"):
            completions = self.engine.step()
        with self.stage("prompt"):
            # All begin before the first ends, so that environments can work together (search: one request).
            actions = [self._begin(self._live[completion.episode], completion) for completion in completions]
        for completion, action in zip(completions, actions, strict=True):
            episode = self._live[completion.episode]
            with self.stage("prompt"):
                trajectory = self._act(episode, completion, action)
            if trajectory is None:
                self._ask(episode)
            else:
                over.append(self._leave(episode, trajectory))
        return over + self._cut_late()

    def _cut_late(self) -> list[Trajectory]:
        """Ends episodes that are past their time in the middle of an action; the action is dropped."""
        if self.settings.max_episode_s is None:
            return []
        late = [e for e in self._live.values() if e.transitions and self._overrun(e) == "time"]
        return [self._leave(e, self._trajectory(e, won=False, truncated=True, overrun="time")) for e in late]

    def _leave(self, episode: _Episode, trajectory: Trajectory) -> Trajectory:
        self.engine.release(episode.number)
        self._free.append(episode.env)
        del self._live[episode.number]
        return trajectory

    def _overrun(self, episode: _Episode) -> str:
        """Which budget the episode is past: `time`, `tokens` or none."""
        s = self.settings
        if s.max_episode_s is not None and time.monotonic() - episode.started_s > s.max_episode_s:
            return "time"
        spent = s.max_episode_tokens
        if spent is not None and sum(len(t.action_ids) for t in episode.transitions) >= spent:
            return "tokens"
        return ""

    def _start(
        self, task: Task, group: int, seed: tuple[int, ...], temperature: float | None, env: Env
    ) -> _Episode:  # fmt: skip
        with self.stage("environment"):
            first = env.reset(task)
            observation, cut = self._shown(first)
        return _Episode(
            next(self.numbers),
            task,
            group,
            seed,
            env,
            observation,
            observation.task,
            observation.text,
            first_prompt(observation, self.chat, self.template, self.settings.layout),
            anchor=self._anchor(first),
            num_cut=int(cut),
            temperature=self.settings.temperature if temperature is None else temperature,
            started_s=time.monotonic(),
        )

    def _ask(self, episode: _Episode) -> None:
        s = self.settings
        seed = (*episode.seed, len(episode.transitions))
        self.engine.submit(
            ActionRequest(
                episode.number, episode.prompt, seed, s.max_action_tokens, episode.temperature, self.template.stop
            )
        )  # fmt: skip

    def _shown(self, observation: Observation) -> tuple[Observation, bool]:
        """The observation as the policy reads it, within its budgets, and whether it was cut."""
        s = self.settings
        return self.chat.policy_view(observation, s.max_observation_chars, s.max_observation_tokens)

    def _anchor(self, observation: Observation) -> str:
        """What GiGPO compares of an environment's observation, which is whole: the policy may read less of it."""
        if self.settings.anchor == "observation":
            return observation.text
        return observation.text if observation.state_text is None else observation.state_text

    def _passages(self, observation: Observation, mask: list[bool]) -> tuple[tuple[int, int, str], ...]:
        """Where in the observation's tokens (of which `mask` marks the text's own) passages stand."""
        places = observation.passages
        if not places:
            return ()
        first, end = mask.index(True) if True in mask else len(mask), len(mask)
        found = ((first + a, min(first + b, end), name) for a, b, name in self.chat.locate(observation.text, places))
        return tuple((a, b, name) for a, b, name in found if a < b)

    def _begin(self, episode: _Episode, completion: Completion) -> ParsedAction:
        """Reads a sampled action, and gives it to an environment that takes it before it must answer."""
        text = self.chat.decode(completion.action_ids)
        parsed = parse_action(text, self.template.style, self.chat.thought_opened)
        with self.stage("environment"):
            episode.env.begin_step(parsed.command)
        return parsed

    def _act(self, episode: _Episode, completion: Completion, parsed: ParsedAction) -> Trajectory | None:
        """Plays a sampled action; returns the trajectory when the episode is over."""
        s, before = self.settings, episode.observation
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
                    f"the environment {episode.task.env} gave the reward {value} in the task {episode.task.task_id}: "
                    "expected a finite number; mend the environment, or leave the task out"
                )
        reward = s.success_reward * step.reward - (0.0 if valid else s.invalid_penalty)
        episode.transitions.append(
            Transition(
                prompt_ids=tuple(episode.prompt), action_ids=completion.action_ids,
                rollout_logprobs=completion.logprobs,
                observation_ids=tuple(ids[:kept]), observation_mask=tuple(mask[:kept]), command=parsed.command,
                observation_text=after.text, anchor_obs=episode.anchor, reward=reward,
                valid=valid, policy_versions=completion.policy_versions, passages=self._passages(after, mask[:kept]),
            )
        )  # fmt: skip
        episode.history.append({"observation": before.text, "command": parsed.command})
        episode.observation = after
        episode.anchor = self._anchor(step.observation)
        episode.score += step.score
        episode.scores = dict(step.scores)
        over = step.done or won or len(episode.transitions) >= s.max_steps
        if not over:
            if s.layout == "trajectory":
                episode.prompt = episode.prompt + list(completion.action_ids) + ids
            else:
                recent = episode.history[-s.history :] if s.history else []
                turn = len(episode.transitions)
                message, dropped = self.template.fit_window(after, episode.instruction, recent, turn)
                cut = cut or dropped
                episode.prompt = self.chat.first(message)
            episode.num_cut += cut or shortened
            overrun = self._overrun(episode)
            if s.has_room(episode.prompt) and not overrun:
                return None
            return self._trajectory(episode, won=False, truncated=True, overrun=overrun)
        episode.num_cut += shortened
        ended = step.done and not step.truncated
        return self._trajectory(episode, won=won, truncated=not (ended or won))

    def _trajectory(self, episode: _Episode, *, won: bool, truncated: bool, overrun: str = "") -> Trajectory:
        s = self.settings
        total = sum(t.reward for t in episode.transitions)
        penalties = s.invalid_penalty * sum(not t.valid for t in episode.transitions)
        return Trajectory(
            episode.task, episode.group, tuple(episode.transitions), episode_return=total,
            success_return=total + penalties, won=won, intro_text=episode.intro, truncated=truncated, seed=episode.seed,
            score=episode.score, num_cut=episode.num_cut, scores=episode.scores, overrun=overrun,
        )  # fmt: skip
