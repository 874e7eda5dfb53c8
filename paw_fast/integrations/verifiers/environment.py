"""Defines the taskset, the environment and the harness by which verifiers plays the environments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import verifiers.v1 as vf
from pydantic import Field
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import MODEL_TRANSPORT_ERROR_EXIT_CODE

from paw_fast import envs
from paw_fast.envs.base import Env, StepResult
from paw_fast.errors import UserError
from paw_fast.integrations.text_env import OneAtATime, find_task, make_slot
from paw_fast.rollout.prompts import ParsedAction, PromptTemplate, parse_action, policy_view
from paw_fast.types import Observation

PLUGIN = "paw-fast-verifiers"


class TextGameData(vf.TaskData):
    """A task: the environment opens the conversation, so there is no prompt."""

    env: str
    split: str
    index: int
    """Number of the task in its split."""


class TextGameTask(vf.Task[TextGameData, vf.State, vf.TaskConfig]):
    pass


class TextGameTasksetConfig(vf.TasksetConfig):
    env: str = "alfworld"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, or `module:Class`."""
    split: str = "train"
    """`train`, `unseen`, or another split of the environment."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of `paw_fast.envs.make`, among them `template`, the prompt template (`verl`, `compact`, or the path of
    a TOML file), and `max_steps`."""
    step_timeout_s: float = Field(60.0, gt=0)
    """Seconds that a reset or a command of the environment may take."""


class TextGameTaskset(vf.Taskset[TextGameTask, TextGameTasksetConfig]):
    """The tasks of a split, in the environment's order."""

    def __init__(self, config: TextGameTasksetConfig) -> None:
        super().__init__(config)
        self.game = make_slot(config.env, config.settings)
        self.game_config = envs.configure(config.env, config.settings)[0]
        self.template = PromptTemplate.load(self.game_config.template, config.env)

    def load(self) -> Iterator[TextGameTask]:
        config = self.config
        for index, task in enumerate(self.game.tasks(config.split)):
            data = TextGameData(
                id=task.task_id, name=f"{config.env}/{config.split}/{index}", env=config.env, split=config.split,
                index=index,
            )  # fmt: skip
            yield TextGameTask(data, config.task)


class TextGameEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig.model_validate({"runtime": {"type": "subprocess"}})
    """The policy. Its harness is `ChatHarness`, which starts no program, so that the runtime is a folder only."""


class TextGameEnv(vf.Env[TextGameEnvConfig]):
    """Plays one episode of a task: observations are the user's turns, commands are parsed from the replies.

    Reward of an episode: the sum of the environment's rewards, 1 for a solved task. Metrics: `won`, `score` (sum of the
    environment's own scores), `num_steps`, `invalid_actions` (share of replies in the wrong format or with a command
    that was not accepted), and the environment's further scores at the end.
    """

    taskset: TextGameTaskset

    def __init__(self, config: TextGameEnvConfig) -> None:
        super().__init__(config)
        self._turns = OneAtATime(self.taskset.config.step_timeout_s)

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        data, template = task.data, self.taskset.template
        assert isinstance(data, TextGameData)
        slot: Env = self.taskset.game.spawn()
        results: list[StepResult] = []
        num_invalid = 0
        try:
            _, chosen = find_task(slot.tasks(data.split), data.index, data.split)
            before = await self._turns.call(lambda: slot.reset(chosen))
            async with agents.player.interaction(task) as interaction:
                segment = await interaction.turn(template.first(self._view(before)))
                while not segment.terminated:
                    action = parse_action(segment.last_reply, template.style)
                    result = await self._turns.call(lambda command=action.command: slot.step(command))
                    results.append(result)
                    num_invalid += not self._is_valid(action, result, before)
                    before = result.observation
                    if result.done:
                        break
                    segment = await interaction.turn(self._next_message(before))
            trace = interaction.trace
            trace.record_reward("reward", float(sum(result.reward for result in results)))
            trace.record_metrics(_metrics(results, num_invalid))
        finally:
            with contextlib.suppress(Exception):  # what failed before is what matters
                slot.close()

    def _view(self, observation: Observation) -> Observation:
        return policy_view(observation, self.taskset.game_config.max_observation_chars)[0]

    def _next_message(self, observation: Observation) -> str:
        shown = self._view(observation)
        head, tail = self.taskset.template.split_next(shown)
        return f"{head}{shown.text}{tail}"

    def _is_valid(self, action: ParsedAction, result: StepResult, before: Observation) -> bool:
        if self.taskset.template.invalid == "admissible":
            return result.was_admissible(action.command, before)
        return action.well_formed


def _metrics(results: list[StepResult], num_invalid: int) -> dict[str, float]:
    last = results[-1] if results else None
    return {
        "won": float(bool(last and last.won)), "num_steps": float(len(results)),
        "score": float(sum(result.score for result in results)), "invalid_actions": num_invalid / max(1, len(results)),
        **({name: float(value) for name, value in last.scores.items()} if last else {}),
    }  # fmt: skip


class ChatHarnessConfig(vf.HarnessConfig):
    pass


class ChatHarness(vf.Harness[ChatHarnessConfig]):
    """Asks the model for one chat completion a turn, in this process, through the interception of verifiers.

    The built-in `null` harness starts a Python program for each turn, which takes longer than a command of a game.
    """

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: vf.ModelContext, trace: vf.Trace, runtime: vf.Runtime, endpoint: str, secret: str,
        mcp_urls: dict[str, str], data: vf.TaskData, tool_interception_url: str | None = None,
    ) -> vf.ProgramResult:  # fmt: skip
        if mcp_urls:
            raise UserError(f"the harness {PLUGIN} has no tools, got the tool servers {', '.join(sorted(mcp_urls))}")
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        try:
            async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
                response = await client.post(
                    f"{endpoint.rstrip('/')}/chat/completions", json={"model": ctx.model, "messages": messages},
                    headers={"Authorization": f"Bearer {secret}"},
                )  # fmt: skip
        except httpx.HTTPError as error:
            return vf.ProgramResult(
                exit_code=MODEL_TRANSPORT_ERROR_EXIT_CODE, stdout="", stderr=f"{type(error).__name__}: {error}"
            )
        failed = response.status_code >= 400
        return vf.ProgramResult(exit_code=int(failed), stdout="", stderr=response.text[-2000:] if failed else "")


def load_environment(
    env: str = "alfworld", split: str = "train", step_timeout_s: float = 60.0, **settings: Any
) -> TextGameEnv:
    """Returns an environment of verifiers. Raises `UserError` for names and settings that do not exist.

    env, split      the environment and the split of its tasks
    step_timeout_s  seconds that a reset or a command of the environment may take
    settings        those of `paw_fast.envs.make`, such as `template` and `max_steps`
    """
    make_slot(env, settings).close()  # a mistake is told before verifiers reads the config
    config = TextGameEnvConfig.model_validate(
        {"taskset": {"id": PLUGIN, "env": env, "split": split, "settings": settings, "step_timeout_s": step_timeout_s}}
    )
    loaded = vf.load_environment(config)
    assert isinstance(loaded, TextGameEnv)
    return loaded
