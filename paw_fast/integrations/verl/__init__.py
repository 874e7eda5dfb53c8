"""Adds PaW to verl: a policy loss, a function that prepares its batches, and trainers that call it.

loss     the policy loss `paw`: another policy loss plus the world-model loss of the selected observation tokens
batch    add_world_model: selects transitions of a batch and weighs their observation tokens
trainer  the trainer modes `paw_sync`, `paw_colocate_async` and `paw_separate_async`, where TransferQueue is installed

Importing this package registers the loss and the trainers; verl imports it in each of its processes if

    VERL_USE_EXTERNAL_MODULES=paw_fast.integrations.verl

A module of the user that calls `configure` can stand there instead. Needs verl 0.9.
"""

import importlib.util

try:
    import verl as _verl  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "verl":
        raise
    raise ModuleNotFoundError(
        "paw_fast.integrations.verl needs verl 0.9, as its documentation installs it: pip install verl", name="verl"
    ) from e

from paw_fast.integrations.settings import PawConfig
from paw_fast.integrations.verl.batch import WEIGHTS, add_world_model, world_model_weights
from paw_fast.integrations.verl.loss import LOSS_MODE, configure, paw_policy_loss, settings

if importlib.util.find_spec("transfer_queue") is not None:
    from paw_fast.integrations.verl import trainer as _trainer  # noqa: F401

__all__ = [
    "LOSS_MODE",
    "WEIGHTS",
    "PawConfig",
    "add_world_model",
    "configure",
    "paw_policy_loss",
    "settings",
    "world_model_weights",
]
