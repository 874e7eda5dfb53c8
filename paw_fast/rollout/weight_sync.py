"""Carries the policy's weights to generators that do not share its tensors.

    trainer: publisher.publish(version) ──> memory that both sides see ──> source.tensors() :generator

A publisher stands in the trainer, and gives each generator a *source*: a small picklable record from which the
generator's workers read `(name, tensor)` pairs, in Hugging Face's names, whenever they are told that the weights
changed.

    ModelWeights   the same process: the tensors themselves
    SharedWeights  another process on this machine: anonymous shared memory (CPU; works for any device)
    IpcWeights     another process on the same GPU: CUDA IPC handles, no copy leaves the card
    NcclWeights    other GPUs: a broadcast to the generator's workers
"""

from __future__ import annotations

import math
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from paw_fast.errors import UserError

_ALIGN = 64  # bytes: a cache line, and more than any dtype needs
_HEADER = 64
_WRITING = -1


class WeightSource(Protocol):
    """What a generator reads weights from. Instances for other processes can be pickled."""

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight of that version once. Raises `RuntimeError` when another version is there."""
        ...


class Publisher(Protocol):
    """The trainer's side of a transport."""

    def source(self) -> WeightSource:
        """A source for one more generator process."""
        ...

    def publish(self, version: int) -> None:
        """Makes the weights as they are now readable under that version."""
        ...

    def transmit(self, source: WeightSource, version: int) -> None:
        """Called after a generator was told to read: sends, where the transport does not let it read by itself."""
        ...


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by their names in a checkpoint; of tied ones the first name only."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in seen:
            seen.add(key)
            found[name] = tensor.detach()
    return found


@dataclass(frozen=True)
class ModelWeights:
    """The tensors of a model in this process."""

    model: torch.nn.Module

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield from named_weights(self.model).items()


# ---------------------------------------------------------------------------------------------- shared memory


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the shared memory, in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class SharedWeights:
    """Weights in another process's anonymous memory, opened through /proc; the memory goes when that process does."""

    path: str
    size: int
    places: tuple[_Place, ...]

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        with open(self.path, "rb") as file:
            # Private pages, so that torch may take them for writable; nobody writes, so nothing is copied.
            memory = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
        self._check(memory, version)
        for place in self.places:
            if place.num_bytes:
                flat = torch.frombuffer(memory, dtype=place.dtype, count=math.prod(place.shape), offset=place.offset)
                yield place.name, flat.view(place.shape)
            else:
                yield place.name, torch.empty(place.shape, dtype=place.dtype)
        self._check(memory, version)

    @staticmethod
    def _check(memory: mmap.mmap, version: int) -> None:
        found = int.from_bytes(memory[:8], "little", signed=True)
        if found != version:
            what = "are being written" if found == _WRITING else f"are those of version {found}"
            raise RuntimeError(f"asked for the weights of version {version}, but those in shared memory {what}")


class SharedMemoryPublisher:
    """Copies the model's weights into anonymous shared memory (`memfd`), which needs no room in /dev/shm."""

    def __init__(self, model: torch.nn.Module):
        if not hasattr(os, "memfd_create"):
            raise UserError("a generator in a process of its own needs Linux: say --rollout.placement inline")
        self._weights: Callable[[], Mapping[str, torch.Tensor]] = lambda: named_weights(model)
        places, offset = [], _HEADER
        for name, tensor in self._weights().items():
            num_bytes = tensor.numel() * tensor.element_size()
            places.append(_Place(name, tensor.dtype, tuple(tensor.shape), offset, num_bytes))
            offset += -(-num_bytes // _ALIGN) * _ALIGN
        self._places, self._size = tuple(places), max(offset, mmap.PAGESIZE)
        self._file = os.memfd_create("paw-fast-weights")
        os.ftruncate(self._file, self._size)
        self._memory = mmap.mmap(self._file, self._size)

    def source(self) -> SharedWeights:
        return SharedWeights(f"/proc/{os.getpid()}/fd/{self._file}", self._size, self._places)

    def publish(self, version: int) -> None:
        self._memory[:8] = _WRITING.to_bytes(8, "little", signed=True)
        for place, tensor in zip(self._places, self._weights().values(), strict=True):
            if place.num_bytes:
                target = torch.frombuffer(
                    self._memory, dtype=place.dtype, count=tensor.numel(), offset=place.offset
                ).view(place.shape)
                target.copy_(tensor)
        self._memory[:8] = version.to_bytes(8, "little", signed=True)

    def transmit(self, source: WeightSource, version: int) -> None:
        """Nothing to do: the generator reads."""


# --------------------------------------------------------------------------------------------------------- GPU


@dataclass(frozen=True)
class IpcWeights:
    """CUDA IPC handles of the trainer's own tensors, for a generator on the same card."""

    handles: tuple[tuple[str, Callable, tuple], ...]

    def tensors(self, version: int) -> Iterator[tuple[str, torch.Tensor]]:
        for name, rebuild, arguments in self.handles:
            yield name, rebuild(*arguments)


class IpcPublisher:
    """Hands out handles once; an optimizer that updates in place keeps them valid."""

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
        # The other process reads on a stream of its own: all writes must be done.
        torch.cuda.synchronize()

    def transmit(self, source: WeightSource, version: int) -> None:
        """Nothing to do: the generator reads."""


@dataclass(frozen=True)
class NcclWeights:
    """A broadcast over NCCL from the trainer (rank 0) to the workers of one generator (ranks 1 to `workers`)."""

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
    """Joins the group on first use; both sides meet in it, the trainer as rank 0."""
    if (host, port) not in _groups:
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        device = torch.cuda.current_device()
        _groups[host, port] = stateless_init_process_group(host, port, rank, size, device)
    return _groups[host, port]


@dataclass
class NcclPublisher:
    """One NCCL group for each generator process, so that one of them can be started anew alone."""

    model: torch.nn.Module
    workers: int
    host: str = "127.0.0.1"

    def source(self) -> NcclWeights:
        with socket.socket() as free:
            free.bind((self.host, 0))
            port = free.getsockname()[1]
        infos = tuple((name, t.dtype, tuple(t.shape)) for name, t in named_weights(self.model).items())
        return NcclWeights(self.host, port, self.workers, infos)

    def publish(self, version: int) -> None:
        """Nothing to do: `transmit` sends the tensors themselves."""

    def transmit(self, source: WeightSource, version: int) -> None:
        assert isinstance(source, NcclWeights)
        group = _nccl_group(source.host, source.port, 0, source.workers + 1)
        for tensor in named_weights(self.model).values():
            group.broadcast(tensor.contiguous(), src=0)
        torch.cuda.synchronize()
