"""The environments of paw-fast as a plugin of verifiers, which finds it as `--env.taskset.id paw-fast-verifiers`.

A package of its own, since the plugins of verifiers are top-level modules. See `paw_fast.integrations.verifiers`.
"""

from paw_fast.integrations.verifiers import ChatHarness, TextGameEnv, TextGameTaskset, load_environment

__all__ = ["ChatHarness", "TextGameEnv", "TextGameTaskset", "load_environment"]
