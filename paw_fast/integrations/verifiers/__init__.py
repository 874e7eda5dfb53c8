"""The environments for verifiers (and prime-rl): a taskset, an environment and a harness. Needs the extra `verifiers`.

    from paw_fast.integrations.verifiers import load_environment

    env = load_environment("alfworld", split="unseen", template="verl", size="small")

On the command line of verifiers, and in prime-rl, the plugin is `paw-fast-verifiers`:

    eval paw-fast-verifiers --env.taskset.env alfworld --env.taskset.split unseen -n 20

The environment plays the user of a chat: its observations, in the prompt template of the environment's settings, are
the user's turns, and the model's replies are parsed as in paw-fast's own rollouts.
"""

from paw_fast.extras import install_hint

try:
    import verifiers as _verifiers  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "verifiers":
        raise
    message = f"paw_fast.integrations.verifiers needs verifiers: {install_hint('verifiers')}"
    raise ModuleNotFoundError(message, name="verifiers") from e

from paw_fast.integrations.verifiers.environment import (
    PLUGIN,
    ChatHarness,
    TextGameEnv,
    TextGameTaskset,
    load_environment,
)

__all__ = ["PLUGIN", "ChatHarness", "TextGameEnv", "TextGameTaskset", "load_environment"]
