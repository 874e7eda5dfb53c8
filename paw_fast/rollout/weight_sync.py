"""Transfers the policy's weights from the trainer to engines that do not share its tensors.

    trainer: publisher.publish(version) ──> shared memory ──> source.tensors(version) :engine

A publisher runs in the trainer and gives each engine a *source*: a small picklable record from which the engine reads
`(name, tensor)` pairs, with the names of Hugging Face checkpoints, after each update.

    ModelWeights   same process: the tensors of the model
    SharedWeights  another process on this machine: anonymous shared memory on the host (works for any device)
    IpcWeights     another process on the same GPU: CUDA IPC handles, without a copy through the host
    NcclWeights    other GPUs: a broadcast to the workers of the engine
"""

from __future__ import annotations

import math
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from paw_fast.errors import UserError
from paw_fast.models.lora import has_adapters, merged_weights

_ALIGN = 64  # bytes: a cache line, and more than any dtype needs
_HEADER = 64
_WRITING = -1


class WeightSource(Protocol):
    """Source from which an engine reads weights. Sources for other processes can be pickled."""

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the name and tensor of every weight. Raises `RuntimeError` if the weights are of another version."""
        ...


class Publisher(Protocol):
    """The trainer's side of a weight transfer."""

    def source(self) -> WeightSource:
        """Creates the source for one engine process."""
        ...

    def publish(self, version: int) -> None:
        """Makes the current weights available as `version`."""
        ...

    def transmit(self, source: WeightSource, version: int) -> None:
        """Called after an engine was told to read: sends the weights, if the engine cannot read them by itself."""
        ...


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights by their names in a checkpoint. Tied weights are listed only under the first name."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in seen:
            seen.add(key)
            found[name] = tensor.detach()
    return found


def weights_to_send(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights that an engine needs, by their names in a checkpoint: adapters are merged one by one, so that
    engines run plain models."""
    if has_adapters(model):
        yield from merged_weights(model)
    else:
        yield from named_weights(model).items()


@dataclass(frozen=True)
class ModelWeights:
    """Weights of a model in the same process."""

    model: torch.nn.Module

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield from weights_to_send(self.model)


# ---------------------------------------------------------------------------------------------- shared memory


@dataclass(frozen=True)
class _TensorLayout:
    """Position of a tensor in the shared memory, in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class SharedWeights:
    """Weights in anonymous memory of another process, opened through /proc. It is freed when that process ends."""

    path: str
    size: int
    layouts: tuple[_TensorLayout, ...]

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        with open(self.path, "rb") as file:
            # torch requires writable memory, hence a private mapping; nothing is written, so no page is copied.
            memory = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
        self._check(memory, version)
        for one in self.layouts:
            if one.num_bytes:
                flat = torch.frombuffer(memory, dtype=one.dtype, count=math.prod(one.shape), offset=one.offset)
                yield one.name, flat.view(one.shape)
            else:
                yield one.name, torch.empty(one.shape, dtype=one.dtype)
        self._check(memory, version)

    @staticmethod
    def _check(memory: mmap.mmap, version: int) -> None:
        found = int.from_bytes(memory[:8], "little", signed=True)
        if found != version:
            state = "are being written" if found == _WRITING else f"have version {found}"
            raise RuntimeError(f"expected weights of version {version}, but the weights in shared memory {state}")


class SharedMemoryPublisher:
    """Copies the weights of a model into anonymous shared memory (`memfd`), which does not use /dev/shm."""

    def __init__(self, model: torch.nn.Module):
        if not hasattr(os, "memfd_create"):
            raise UserError("rollouts in separate processes require Linux: use --rollout.placement inline")
        self._model = model
        layouts, offset = [], _HEADER
        for name, tensor in weights_to_send(model):
            num_bytes = tensor.numel() * tensor.element_size()
            layouts.append(_TensorLayout(name, tensor.dtype, tuple(tensor.shape), offset, num_bytes))
            offset += -(-num_bytes // _ALIGN) * _ALIGN
        self._layouts, self._size = tuple(layouts), max(offset, mmap.PAGESIZE)
        self._file = os.memfd_create("paw-fast-weights")
        os.ftruncate(self._file, self._size)
        self._memory = mmap.mmap(self._file, self._size)

    def source(self) -> SharedWeights:
        return SharedWeights(f"/proc/{os.getpid()}/fd/{self._file}", self._size, self._layouts)

    def publish(self, version: int) -> None:
        self._memory[:8] = _WRITING.to_bytes(8, "little", signed=True)
        for one, (_, tensor) in zip(self._layouts, weights_to_send(self._model), strict=True):
            if one.num_bytes:
                target = torch.frombuffer(self._memory, dtype=one.dtype, count=tensor.numel(), offset=one.offset).view(
                    one.shape
                )
                target.copy_(tensor)
        self._memory[:8] = version.to_bytes(8, "little", signed=True)

    def transmit(self, source: WeightSource, version: int) -> None:
        """Does nothing: the engine reads the shared memory."""


# --------------------------------------------------------------------------------------------------------- GPU


@dataclass(frozen=True)
class IpcWeights:
    """CUDA IPC handles of the trainer's tensors, for an engine on the same GPU."""

    handles: tuple[tuple[str, Callable, tuple], ...]

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        for name, rebuild, arguments in self.handles:
            yield name, rebuild(*arguments)


class IpcPublisher:
    """Creates IPC handles once. They stay valid because the optimizer updates the weights in place."""

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def source(self) -> IpcWeights:
        from torch.multiprocessing.reductions import reduce_tensor

        handles: list[tuple[str, Any, Any]] = []
        for name, tensor in named_weights(self._model).items():
            rebuild, arguments = reduce_tensor(tensor)
            handles.append((name, rebuild, arguments))
        return IpcWeights(tuple(handles))

    def publish(self, version: int) -> None:
        # The other process reads on its own stream, so all writes must be finished.
        torch.cuda.synchronize()

    def transmit(self, source: WeightSource, version: int) -> None:
        """Does nothing: the engine reads the tensors of the trainer."""


@dataclass(frozen=True)
class NcclWeights:
    """A broadcast over NCCL from the trainer (rank 0) to the workers of one engine (ranks 1 to `workers`)."""

    host: str
    port: int
    workers: int
    infos: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    rank: int = 0

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        group = _nccl_group(self.host, self.port, self.rank, self.workers + 1)
        for name, dtype, shape in self.infos:
            tensor = torch.empty(shape, dtype=dtype, device="cuda")
            group.broadcast(tensor, src=0)
            yield name, tensor


_groups: dict[tuple[str, int], Any] = {}


def _nccl_group(host: str, port: int, rank: int, size: int) -> Any:
    """Returns the NCCL group, which is created on first use. The trainer is rank 0."""
    if (host, port) not in _groups:
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        device = torch.cuda.current_device()
        _groups[host, port] = stateless_init_process_group(host, port, rank, size, device)
    return _groups[host, port]


@dataclass
class NcclPublisher:
    """Creates one NCCL group per engine process, so that each can be restarted separately."""

    model: torch.nn.Module
    workers: int
    host: str = "127.0.0.1"

    def source(self) -> NcclWeights:
        with socket.socket() as free:
            free.bind((self.host, 0))
            port = free.getsockname()[1]
        infos = tuple((name, t.dtype, tuple(t.shape)) for name, t in weights_to_send(self.model))
        return NcclWeights(self.host, port, self.workers, infos)

    def publish(self, version: int) -> None:
        """Does nothing: `transmit` sends the tensors."""

    def transmit(self, source: WeightSource, version: int) -> None:
        assert isinstance(source, NcclWeights)
        group = _nccl_group(source.host, source.port, 0, source.workers + 1)
        for _, tensor in weights_to_send(self.model):
            group.broadcast(tensor.contiguous(), src=0)
        torch.cuda.synchronize()
