"""Defines the records that pass between the stages. Imports no torch.

A *task* is one initial state of an environment. A *group* is G episodes of one task. A *trajectory* is one finished
episode. A *transition* is the prompt of the policy (`prompt_ids`), the tokens it sampled (`action_ids`) and the
observation that followed (`observation_ids`).

    EpisodeRequest -> Trajectory (Transition, ...) -> RolloutBatch (TokenSequence, Span) -> TokenStats

Shapes: B trajectories, M transitions (trajectory after trajectory), S sequences; a transition has P prompt tokens, A_m
action tokens and O observation tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One initial state of an environment. Produced by `Env.tasks`, consumed by `Env.reset`.

    `task_type` groups tasks in the metrics: letters, digits, `_` and `-`.
    `key` describes the content of the task as a text: two tasks with equal keys are the same task, whatever their
    ids. Without a key, tasks are compared by the contents of their files, else by their ids.

    >>> Task(task_id="pick_and_place_simple-Mug-None-Desk-308/trial_1", env="alfworld", split="unseen",
    ...      task_type="pick_and_place_simple", path=Path("game.tw-pddl"))  # doctest: +ELLIPSIS
    Task(task_id='pick_and_place_simple-Mug-None-Desk-308/trial_1', env='alfworld', ...)
    """

    task_id: str
    env: str = ""
    split: str = ""
    task_type: str = "any"
    path: Path | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True)
class Observation:
    """An observation of an environment. Produced by `Env.reset` and in `StepResult`, consumed by the agent loop.

    text        the environment's own text
    admissible  the commands that it would accept now, in its order; empty if they cannot be listed
    task        the instruction; required in the first observation of an episode only
    state_text  text that is equal for indistinguishable states, for GiGPO's anchor groups; None: `text`
    shown       the form of the text in the prompts; None: `text`
    passages    (first, end, id) of the parts of the text that come from a corpus, in characters
    notes       information for an expert that no prompt contains

    >>> Observation("You arrive at cabinet 1. The cabinet 1 is closed.", ("open cabinet 1",)).text
    'You arrive at cabinet 1. The cabinet 1 is closed.'
    """

    text: str
    admissible: tuple[str, ...] = ()
    task: str = ""
    state_text: str | None = None
    shown: str | None = None
    passages: tuple[tuple[int, int, str], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


EVALUATION = -1
"""`EpisodeId.step` of an evaluation's episodes: they belong to no training step."""


@dataclass(frozen=True, order=True)
class EpisodeId:
    """Identifies an episode. Produced by the orchestrator and by `evaluate`; every stage after them keeps it.

    step   training step that learns from the episode, counted from 0, or `EVALUATION`
    group  number of the group in the step (in an evaluation: of the task)
    index  number of the episode in its group

    >>> sorted([EpisodeId(0, 1, 0), EpisodeId(0, 0, 1)])
    [EpisodeId(step=0, group=0, index=1), EpisodeId(step=0, group=1, index=0)]
    """

    step: int
    group: int
    index: int


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to play. Produced by the orchestrator and by `evaluate`, consumed by rollout workers.

    `seed` determines what the episode samples, independently of other episodes in flight.

    >>> EpisodeRequest(EpisodeId(step=3, group=0, index=1), Task("t"), seed=(0, 3, 0, 1)).episode_id.index
    1
    """

    episode_id: EpisodeId
    task: Task
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Transition:
    """One step of an episode, as token ids. Produced by the agent loop, consumed by every training stage.

    prompt_ids       [P]  the prompt. In the `trajectory` layout it is the whole episode so far, and the prompt of
                          the next transition continues it exactly.
    action_ids       [A]  the sampled tokens, including the end token if it was sampled
    rollout_logprobs [A]  their log-probs, as reported by the engine
    observation_ids  [O]  the tokens that follow the action: chat markup and the next observation's text
    observation_mask [O]  True on the tokens of the observation's text itself (markup is not predicted)
    anchor_obs            text of the state before the action, equal for indistinguishable states
    previous_text         the full observation before the action; the prompt may contain less of it
    passages              (first, end, id) of the tokens of `observation_ids` that come from a passage of a corpus
    policy_versions  [A]  number of weight updates before each action token was sampled

    >>> t = Transition((1, 2), (3,), (-0.1,), (4, 5), (False, True), command="look", observation_text="a room",
    ...                anchor_obs="s0", reward=0.0, valid=True)
    >>> t.action_ids
    (3,)
    """

    prompt_ids: tuple[int, ...]
    action_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    observation_ids: tuple[int, ...]
    observation_mask: tuple[bool, ...]
    command: str
    observation_text: str
    anchor_obs: str
    reward: float
    valid: bool
    policy_versions: tuple[int, ...] = ()
    passages: tuple[tuple[int, int, str], ...] = ()
    previous_text: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One finished episode. Produced by the agent loop, consumed by credit, selection, packing and the metrics.

    episode_return  sum of the transitions' rewards, penalties included
    success_return  the same without penalties; the world-model weight compares it with R_max, the largest return
    score           sum of the environment's own rewards
    scores          further scores of the environment by name, each 0 to 1
    num_cut         number of steps whose observation or history was cut to fit the prompt
    truncated       whether the episode ended because of a limit on steps, tokens or time
    overrun         the limit that was exceeded, `time` or `tokens`; else empty
    no_room         whether it ended because no action fits after its next prompt

    An episode whose first prompt does not fit is truncated and has no transitions.

    >>> Trajectory(Task("t"), EpisodeId(0, 2, 0), (), episode_return=10.0, success_return=10.0, won=True).group
    2
    """

    task: Task
    episode_id: EpisodeId
    transitions: tuple[Transition, ...]
    episode_return: float
    success_return: float
    won: bool
    intro_text: str = ""
    truncated: bool = False
    score: float = 0.0
    num_cut: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    overrun: str = ""
    no_room: bool = False

    @property
    def group(self) -> int:
        """Number of the episode's group in its step."""
        return self.episode_id.group


@dataclass(frozen=True)
class Span:
    """One transition's place in a sequence. Positions are those of the tokens themselves.

    transition        index over all transitions of the batch, trajectory by trajectory
    action            positions [start, end) of the sampled tokens
    observation       positions of the next observation's own tokens
    rollout_logprobs  one for each action token

    >>> Span(0, (3, 5), (6, 7, 8), (-0.1, -0.2)).action
    (3, 5)
    """

    transition: int
    action: tuple[int, int]
    observation: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class TokenSequence:
    """Token ids and the transitions in them. Produced by `learner.sequences`, consumed by packing.

    >>> TokenSequence(0, (1, 2, 3), ()).ids
    (1, 2, 3)
    """

    trajectory: int
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class RolloutBatch:
    """Trajectories and the training sequences built from them, of one group or of a whole step.

    trajectories [B] and sequences [S] number transitions in the same way: trajectory after trajectory, from 0. Produced
    by the learner from the orchestrator's trajectories; consumed by credit assignment, selection and the update.

    >>> RolloutBatch((Trajectory(Task("t"), EpisodeId(0, 3, 0), (), 0.0, 0.0, False),), ()).groups
    array([3])
    """

    trajectories: tuple[Trajectory, ...]
    sequences: tuple[TokenSequence, ...]

    @property
    def transitions(self) -> list[Transition]:
        """The M transitions in order."""
        return [t for trajectory in self.trajectories for t in trajectory.transitions]

    @property
    def groups(self) -> np.ndarray:
        """Group [B] of each trajectory."""
        return np.array([t.group for t in self.trajectories], dtype=np.int64)

    @property
    def owners(self) -> np.ndarray:
        """Index [M] of the trajectory that each transition belongs to."""
        return np.repeat(np.arange(len(self.trajectories)), [len(t.transitions) for t in self.trajectories])

    @staticmethod
    def join(parts: Sequence[RolloutBatch]) -> RolloutBatch:
        """Concatenates batches, and renumbers trajectories and transitions."""
        sequences: list[TokenSequence] = []
        trajectories = transitions = 0
        for part in parts:
            for q in part.sequences:
                spans = tuple(replace(span, transition=span.transition + transitions) for span in q.spans)
                sequences.append(TokenSequence(q.trajectory + trajectories, q.ids, spans))
            trajectories += len(part.trajectories)
            transitions += sum(len(t.transitions) for t in part.trajectories)
        return RolloutBatch(tuple(t for part in parts for t in part.trajectories), tuple(sequences))


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the action tokens of a batch before the update. Produced by `Learner.compute_token_stats`, consumed
    by credit assignment, selection and the loss rows.

    old_logprobs   M arrays [A_m]: log-probs under the policy before the update, at the sampling temperature
    ref_logprobs   the same under the reference policy, None without a KL term
    values         the critic's values of the states before each token, None without a critic
    token_entropies  full-vocabulary entropies of the action tokens, nats: tensors on the device that computed them,
                   which hold all tokens, transition after transition, when they are concatenated
    importance     M arrays [A_m]: truncated importance weights of the rollouts, None if they are on-policy

    >>> TokenStats([np.zeros(2)], None, None, []).num_action_tokens
    [2]
    """

    old_logprobs: list[np.ndarray]
    ref_logprobs: list[np.ndarray] | None
    values: list[np.ndarray] | None
    token_entropies: Sequence[Tensor]
    importance: list[np.ndarray] | None = None

    @property
    def num_action_tokens(self) -> list[int]:
        """A_m of each of the M transitions."""
        return [len(logprobs) for logprobs in self.old_logprobs]

    @property
    def entropies(self) -> np.ndarray:
        """[M] float64: mean of each action's entropies. Copies them to the host, which waits for the device."""
        if not self.old_logprobs:
            return np.zeros(0)
        flat = np.concatenate([part.cpu().numpy() for part in self.token_entropies])
        parts = np.split(flat, np.cumsum(self.num_action_tokens)[:-1])
        return np.array([float(part.mean()) if len(part) else 0.0 for part in parts])

    @staticmethod
    def join(parts: Sequence[TokenStats]) -> TokenStats:
        """Concatenates the statistics of several batches."""

        def column(name: str) -> list[np.ndarray] | None:
            lists = [getattr(p, name) for p in parts]
            return None if any(x is None for x in lists) else [row for rows in lists for row in rows]

        return TokenStats(
            column("old_logprobs") or [], column("ref_logprobs"), column("values"),
            [entropies for p in parts for entropies in p.token_entropies],
            column("importance") if parts else None,
        )  # fmt: skip
