"""`paw-fast serve-env`: serves an environment to other programs, with OpenEnv's protocol."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Annotated

from paw_fast import envs
from paw_fast.cli.options import parse, take
from paw_fast.config.ranges import SECONDS, Range
from paw_fast.config.schema import EnvConfig
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import console


@dataclass(frozen=True)
class ServeEnvOptions:
    """Serves an environment with OpenEnv's protocol, until Ctrl-C or SIGTERM (needs the extra `openenv`)."""

    env: EnvConfig
    split: str = "train"
    """The set of tasks for a client that names none: `train`, `unseen`, or another split of the environment."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines play too. There is no password."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port; 0 takes a free one."""
    max_sessions: Annotated[int, Range(1, 1 << 10)] = 64
    """Clients that can play at a time."""
    idle_timeout_s: Annotated[float, SECONDS] = 900.0
    """A client that sends no request for so many seconds loses its episode."""
    request_timeout_s: Annotated[float, SECONDS] = 60.0
    """Seconds that a reset or a command may take."""


def serve_env(args: list[str]) -> int:
    """Runs the command; returns the exit status. Raises `UserError`."""
    spec = envs.find(take(list(args), "env") or "alfworld")
    options: ServeEnvOptions = parse(ServeEnvOptions, args, "serve-env", ServeEnvOptions(env=spec.make_config()))
    try:
        from paw_fast.integrations.openenv import Limits, make_app, serve
    except ModuleNotFoundError as error:
        if error.name != "openenv":
            raise
        raise UserError(f"paw-fast serve-env needs OpenEnv: {install_hint('openenv')}") from None
    from paw_fast.envs.search_qa.retrieval.server import open_socket

    if spec.check_installed is not None:
        spec.check_installed(options.env)
    limits = Limits(options.max_sessions, options.idle_timeout_s, options.request_timeout_s)
    env = envs.make_env(options.env)
    try:
        app = make_app(env, options.split, limits, console.say)
        with open_socket(options.host, options.port) as listener:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
            if not ipaddress.ip_address(host).is_loopback:
                console.say("note: whoever reaches this address can play; 127.0.0.1 keeps it to this machine")
            tasks = f"{len(env.tasks(options.split))} tasks of the split {options.split}"
            console.say(f"{env.name}, {tasks}, at http://{shown}:{port}; Ctrl-C stops")
            serve(app, listener, limits, console.say)
    finally:
        env.close()
    return 0
