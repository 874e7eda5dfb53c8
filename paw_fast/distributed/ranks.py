"""Sets up the process group of a training run, and sends records between its ranks.

A rank is a process with a device of its own. Rank 0 leads: it plays the rollouts and writes all files. The collectives
of tensors use NCCL on GPUs and gloo on the CPU; records (tasks, numpy arrays) always go over gloo.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from paw_fast.errors import UserError

_WAIT = datetime.timedelta(days=30)
"""How long ranks wait for rank 0, which may play rollouts for hours. The death of a process is noticed at once: its
connections close, and torch's launcher ends the others."""


@dataclass
class Ranks:
    """The processes of a training run. Produced by `join_ranks`, consumed by `ShardedLearner`.

    rank, size: the number of this process and how many there are. device: of this process. control: the gloo group of
    records. busy: whether a command is being carried out, in which the other ranks wait for tensors.
    """

    rank: int
    size: int
    device: torch.device
    control: Any = field(repr=False)
    busy: bool = False

    def mesh(self, replicate: int, device: torch.device) -> DeviceMesh:
        """The mesh of FSDP over all ranks; with `replicate` > 1, that of HSDP: so many copies of the weights, each
        split among size / replicate ranks."""
        if replicate == 1:
            return init_device_mesh(device.type, (self.size,), mesh_dim_names=("shard",))
        shape = (replicate, self.size // replicate)
        return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))

    def broadcast(self, value: Any = None) -> Any:
        """Returns the `value` of rank 0 on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in order of rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def leave(self) -> None:
        """Ends the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join_ranks() -> Ranks:
    """Joins the process group that the launcher has described in the environment (RANK, WORLD_SIZE, ...)."""
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local >= count:
            raise UserError(f"rank {rank} has no GPU of its own: {count} are visible to torch; start fewer ranks")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Without a device's backend, gloo on the CPU: `--model.device cpu` on a machine with GPUs needs both.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size)
    return Ranks(rank, size, device, dist.new_group(backend="gloo", timeout=_WAIT))
