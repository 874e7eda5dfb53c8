"""Saves and loads the states of a sharded learner with `torch.distributed.checkpoint`, for any number of ranks.

    RUN/checkpoints/step_000040/sharded/    .metadata  __0_0.distcp  __1_0.distcp ...

Every tensor has a name: `policy.<parameter>.weight`, `.exp_avg`, `.exp_avg_sq` and `.step`, the same for `critic.`.
The weights are the float32 ones that the optimizer updates. Checkpoints of one process (optimizer.pt, critic.pt) are
read by the same names.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from paw_fast.distributed.sharding import ShardedPolicy
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.learner.optim import MasterAdamW
from paw_fast.runs.checkpoint import SHARDED as FOLDER

METADATA = ".metadata"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(learner: Learner, folder: Path, group: Any) -> None:
    """Writes the learner's weights and optimizer states; every rank of the gloo `group` writes its shards."""
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    save_state_dict(_tensors(learner), storage_writer=writer, process_group=group)


def load(learner: Learner, checkpoint: Path, group: Any = None) -> None:
    """Loads the weights and optimizer states of a checkpoint, of one process or of any number of ranks; every rank of
    `group` calls it, and one process alone has none. Raises `UserError` for one of other parameters."""
    folder = checkpoint / FOLDER
    if folder.is_dir():
        reader = _Reader(folder)
        names = reader.read_metadata().state_dict_metadata.keys()
        targets = _tensors(learner, names)
        _check(targets, names, checkpoint)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled"
            )  # one process loads the shards of several
            load_state_dict(targets, storage_reader=reader, process_group=group, no_dist=group is None)
    else:
        saved = _read_whole(learner, checkpoint)
        targets = _tensors(learner, saved)
        _check({name: one for name, one in targets.items() if name in saved}, saved, checkpoint)
        with torch.no_grad():
            for name, value in saved.items():
                _copy(targets[name], value)
    with torch.no_grad():
        for _, trained, master in _parameters(learner):
            if trained is not master:
                trained.copy_(master)


def whole_model(policy: ShardedPolicy, weights: Iterable[tuple[str, Tensor]]) -> Any:
    """A model on the CPU, in the dtype in which the policy computes, that has gathered `weights`."""
    gathered = {name: tensor.to("cpu", copy=True) for name, tensor in weights}
    with torch.device("meta"):
        model = type(policy.model)(policy.model.config)
    model.load_state_dict(gathered, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = policy.model.generation_config
    return model


# ------------------------------------------------------------------------------------------------------- by name


def _optimizers(learner: Learner) -> Iterator[tuple[MasterAdamW, list[str]]]:
    """Each optimizer with the names of its parameters, in its order."""
    policy = [f"policy.{name}" for name, p in learner.policy.model.named_parameters() if p.requires_grad]
    critic = [f"critic.{name}" for name, _ in learner.critic.named_parameters()]
    own = learner.critic.own_optimizers()
    yield learner.optimizer, policy if own else policy + critic
    for optimizer in own:
        yield optimizer, critic


def _parameters(learner: Learner) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, parameter, the float32 tensor that the optimizer updates) of all."""
    for optimizer, names in _optimizers(learner):
        masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        yield from zip(names, optimizer.trained, masters, strict=True)


def _tensors(learner: Learner, saved: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Weights and optimizer states by name. With the names of what is `saved`, states that a new optimizer lacks are
    added, for loading, and states that were not saved are removed."""
    wanted = None if saved is None else set(saved)
    out: dict[str, Tensor] = {}
    for optimizer, names in _optimizers(learner):
        masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, master in zip(names, masters, strict=True):
            out[f"{name}.weight"] = master.detach()
            if wanted is not None and f"{name}.step" in wanted:
                optimizer.state[master] = {"step": torch.zeros(()), **{m: torch.zeros_like(master) for m in _MOMENTS}}
            elif wanted is not None:
                optimizer.state.pop(master, None)
            out |= {f"{name}.{key}": value for key, value in optimizer.state.get(master, {}).items()}
    return out


def _check(targets: Iterable[str], saved: Iterable[str], checkpoint: Path) -> None:
    """Raises `UserError` where names are missing on either side."""
    different = sorted(set(targets) ^ set(saved))
    if different:
        raise UserError(
            f"the states in {checkpoint} are of other parameters than this run's ({different[0]} and "
            f"{len(different) - 1} more differ): resume with the saved settings"
        )


def _copy(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value = value.to(target.device, target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


# ------------------------------------------------------------------------------------- checkpoints of one process


def _read_whole(learner: Learner, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of optimizer.pt and critic.pt by name."""

    def read(name: str) -> dict[str, Any]:
        path = checkpoint / name
        if not path.is_file():
            raise UserError(f"checkpoint {checkpoint} holds no {name}: it cannot be resumed, only evaluated")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    found: dict[str, Tensor] = {}
    states = [read("optimizer.pt")]
    if learner.critic.needed:
        critic = read("critic.pt")
        for part in ("head", "backbone"):
            values = critic[part] or {}
            found |= {f"critic.{part}.{name}.weight": value for name, value in values.items()}
        states += [critic["optimizer"]] if learner.critic.own_optimizers() else []
    # The policy's weights were loaded from the model's files; float32 copies of the optimizer are exact.
    current = _tensors(learner)
    for (_, names), state in zip(_optimizers(learner), states, strict=True):
        found |= {f"{name}.weight": current[f"{name}.weight"] for name in names if f"{name}.weight" not in found}
        # Value heads, the last parameters, are float32 and have no copy.
        found |= {f"{name}.weight": value for name, value in zip(names, state["masters"], strict=False)}
        saved_ids = [index for group in state["param_groups"] for index in group["params"]]
        if len(saved_ids) != len(names):
            raise UserError(
                f"the optimizer state in {checkpoint} has {len(saved_ids)} parameters, this run has {len(names)}: "
                "resume with the saved settings"
            )
        for index, name in zip(saved_ids, names, strict=True):
            found |= {f"{name}.{key}": value for key, value in state["state"].get(index, {}).items()}
    return found


# ------------------------------------------------------------------------------------------------------- the index


_INDEX_NAMES = {
    ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),
    ("pathlib", "WindowsPath"), ("collections", "OrderedDict"),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint; refuses everything else, such as code."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        records = module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
        if (
            (records and isinstance(found, type))
            or (module == "torch" and (name == "Size" or isinstance(found, torch.dtype)))
            or (module, name) in _INDEX_NAMES
        ):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with open(path, "rb") as file:
                metadata = _Unpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise TypeError(f"it holds a {type(metadata).__name__}")
        except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint {path.parents[1]} cannot be used: {path} cannot be read ({error})") from error
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata
