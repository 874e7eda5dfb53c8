"""Runs episodes on a server of OpenEnv with the package's client, as an `Env`."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from paw_fast.envs.base import BaseEnv, EpisodeLost, StepResult, one_line
from paw_fast.envs.openenv_server.fields import Fields, choose, success_of, text_of
from paw_fast.envs.seed_splits import seeds_of
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

CONNECT_S = 10.0
AGAIN_S = 1.0
MAX_SCHEMA_BYTES = 1 << 22


def read_schema(url: str, env_name: str) -> dict[str, Any]:
    """The server's schemas of actions and observations (`GET /schema`). Raises `UserError` if there is no server."""
    address = url.rstrip("/").replace("ws://", "http://", 1).replace("wss://", "https://", 1)
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--env {env_name}: expected openenv:URL, as in openenv:http://localhost:8000")
    try:
        with urllib.request.urlopen(f"{address}/schema", timeout=CONNECT_S) as response:
            found = json.loads(response.read(MAX_SCHEMA_BYTES))
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"--env {env_name}: no OpenEnv server answers at {address}/schema ({reason}): start it, or correct the URL"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"--env {env_name}: {address}/schema is no schema of OpenEnv")
    return found


class OpenEnvEnv(BaseEnv):
    """Runs one episode at a time, in a session of its own. A task is a seed of `reset`.

    An episode is won if the observation or the metadata say so (`won`, `success`, ...), else if its last reward is
    positive. A request that takes longer than `time_limit_s`, and a connection that ends, raise `EpisodeLost`; the next
    reset connects again, for up to `time_limit_s` seconds while the server is down.
    """

    def __init__(self, config: Any, fields: Fields | None = None) -> None:
        self._config, self.name = config, config.name
        self._url = config.name.partition(":")[2]
        schema = {} if fields is not None else read_schema(self._url, self.name)
        self._fields = fields or choose(schema, config.action_field, config.observation_field, self.name)
        self._client: Any = None
        self._socket: Any = None
        self._num_steps, self._done = 0, True
        self._check: list[Callable[[], None]] = []

    @property
    def disjoint_splits(self) -> bool:
        """True: the seeds of the splits differ. Whether equal episodes come from them, the environment decides."""
        return True

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train" or "unseen" (also "eval"). Raises `UserError` for other splits."""
        name, seeds = seeds_of(self._config, split, self.name)
        return tuple(Task(f"{name}-{i}", self.name, name, info={"seed": seed}) for i, seed in enumerate(seeds))

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `EpisodeLost` while the server does not answer, and `UserError`."""
        if not isinstance(task.info.get("seed"), int):
            raise UserError(f"the task {task.task_id!r} has no seed: take one of env.tasks(...)")
        self._done = True
        if self._client is None:
            self._connect()
        result = self._request("reset", lambda: self._client.reset(seed=task.info["seed"]))
        client: Any = self._client
        self._socket = client.async_client._ws
        self._num_steps, self._done = 0, False
        return self._observe(result, first=True)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `EpisodeLost`, and `RuntimeError` before the first reset or after `done`."""
        if self._done:
            raise RuntimeError("step without an episode: call reset first")
        result = self._request("step", lambda: self._client.step({self._fields.action: command}))
        if self._in_another_session():
            self._drop()
            raise EpisodeLost(f"--env {self.name}: the connection to the server was lost")
        self._num_steps += 1
        seen = self._observe(result)
        reward = float(result.reward or 0.0)
        ended = bool(result.done)
        said = success_of(result.observation, result.metadata or {}, self._fields)
        won = ended and (said if said is not None else reward > 0)
        over = self._num_steps >= self._config.max_steps
        self._done = ended or over
        accepted = result.observation.get("admissible")
        return StepResult(
            seen, self._done, won, reward=reward if self._config.reward == "server" else float(won), score=reward,
            truncated=(over and not ended) or bool(result.observation.get("truncated") and not won),
            admissible=accepted if isinstance(accepted, bool) else None,
        )  # fmt: skip

    def _observe(self, result: Any, first: bool = False) -> Observation:
        shown = result.observation
        if not isinstance(shown, dict):
            raise UserError(f"--env {self.name}: its observation is {type(shown).__name__}, expected an object")
        commands = shown.get(self._fields.commands) if self._fields.commands else ()
        task = str(shown.get(self._fields.task) or "") if first and self._fields.task else ""
        return Observation(text_of(shown, self._fields), tuple(map(str, commands or ())), task)

    def _connect(self) -> None:
        from openenv.core.generic_client import GenericEnvClient

        limit_s = self._config.time_limit_s
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            client = GenericEnvClient(
                base_url=self._url, connect_timeout_s=CONNECT_S, message_timeout_s=limit_s or 1e6
            ).sync()
            try:
                client.connect()
            except (OSError, TimeoutError) as error:  # ConnectionError included
                client.close()
                for check in self._check:
                    check()
                if deadline is not None and time.monotonic() + AGAIN_S > deadline:
                    raise EpisodeLost(f"--env {self.name}: no server for {limit_s:g} s: {one_line(error)}") from error
                time.sleep(AGAIN_S)
                continue
            self._client = client
            return

    def _request(self, what: str, function: Callable[[], Any]) -> Any:
        from websockets.exceptions import WebSocketException

        try:
            return function()
        except TimeoutError as error:
            self._drop()
            limit_s = self._config.time_limit_s
            raise EpisodeLost(f"--env {self.name}: the server did not answer a {what} within {limit_s:g} s") from error
        except (OSError, WebSocketException) as error:
            self._drop()
            raise EpisodeLost(f"--env {self.name}: the connection was lost in a {what}: {one_line(error)}") from error
        except RuntimeError as error:  # the server's own error, with a code
            other = what == "step" and self._in_another_session()
            self._drop()
            if other:
                raise EpisodeLost(f"--env {self.name}: the connection to the server was lost") from error
            hint = ": give the server more sessions, or take fewer --rollout.slots" if "CAPACITY" in str(error) else ""
            raise UserError(f"--env {self.name}: its {what} failed: {one_line(error)[:400]}{hint}") from error

    def _in_another_session(self) -> bool:
        """Whether the client has connected again by itself, to a session in which no episode was started."""
        return self._client.async_client._ws is not self._socket

    def _drop(self) -> None:
        client, self._client, self._done = self._client, None, True
        if client is not None:
            try:
                client.close()
            except Exception:  # the connection is gone
                return

    def while_waiting(self, check: Callable[[], None]) -> None:
        """Registers `check`, which is called while a slot waits for a server that is down."""
        self._check[:] = [check]

    def spawn(self) -> OpenEnvEnv:
        """Creates another episode slot: a session of its own."""
        other = OpenEnvEnv(self._config, self._fields)
        other._check = self._check
        return other

    def close(self) -> None:
        """Ends the session. Safe to call twice."""
        self._drop()
