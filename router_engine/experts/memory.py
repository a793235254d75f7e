"""The device's memory for adapters, and the way of an adapter into it.

On a GPU it is one arena, allocated at the start. An adapter goes there from pinned memory on a
stream of its own, beside the running steps: it has arrived when the device says so, and only then
may a step use it. Where the device is the host, it reads what the host holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from router_engine.device_calls import DEVICE_CALLS
from router_engine.errors import EngineError
from router_engine.experts.arena import Arena, Move
from router_engine.experts.base import HostAdapter
from router_engine.experts.slab import outline, part_of

_BOUNCE = 16 << 20  # bytes: moves of a shorter way than this go through a buffer


@dataclass(frozen=True, slots=True)
class Placed:
    """An adapter's slab on the device, and those of others that made room for it."""

    slab: Tensor
    moved: Mapping[str, Tensor] = field(default_factory=dict)  # by digest, where they are now


class AdapterMemory(Protocol):
    """All but `prepare` belong to the engine's thread."""

    num_bytes: int
    # Whether the device computes on the host's own copies, so that nothing is held twice.
    shares_host: bool

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """The adapter in memory that a copy may start from; called by a loader's thread."""
        ...

    def send(self, adapter: HostAdapter) -> Placed:
        """The adapter's slab on the device, which is on its way there until it has `arrived`.

        The caller has made sure that so many bytes are free.
        """
        ...

    def arrived(self, digest: str) -> bool:
        """Whether an adapter that was sent is there."""
        ...

    def free(self, digest: str) -> None:
        """Give up the memory of an adapter that was sent."""
        ...


class HostMemory:
    """No copies: the device reads what the host holds."""

    shares_host = True

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        return adapter

    def send(self, adapter: HostAdapter) -> Placed:
        return Placed(adapter.slab)

    def arrived(self, digest: str) -> bool:
        return True

    def free(self, digest: str) -> None:
        pass


class DeviceMemory:
    """One arena in a device's own memory. Whatever happens to it happens in its stream's order."""

    shares_host = False

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Raises EngineError where the device has not so many bytes."""
        try:
            self._buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
            self._bounce = torch.empty(min(_BOUNCE, num_bytes), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            raise EngineError(
                f"{num_bytes / 2**30:.2f} GiB for adapters do not fit {device}: use a smaller "
                "adapter_memory"
            ) from error
        self._arena = Arena(num_bytes)
        self.num_bytes = num_bytes

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        return replace(adapter, outline=outline(adapter.parts))

    def send(self, adapter: HostAdapter) -> Placed:
        first, moves = self._arena.take(adapter.digest, adapter.num_bytes)
        for move in moves:
            self._move(move)
        slab = self._slab(first, adapter.num_bytes)
        self._copy(adapter, slab)
        return Placed(slab, {each.name: self._slab(each.target, each.size) for each in moves})

    def arrived(self, digest: str) -> bool:
        return True

    def free(self, digest: str) -> None:
        self._arena.free(digest)

    def _copy(self, adapter: HostAdapter, slab: Tensor) -> None:
        slab.copy_(adapter.slab)

    def _slab(self, first: int, size: int) -> Tensor:
        return self._buffer[first : first + size]

    def _move(self, move: Move) -> None:
        """Copy piece by piece, so that nothing is overwritten before it was read."""
        way = move.source - move.target
        piece = max(way, self._bounce.nbytes)
        for start in range(0, move.size, piece):
            size = min(piece, move.size - start)
            part = self._slab(move.source + start, size)
            if way < size:
                part = self._bounce[:size].copy_(part)
            self._slab(move.target + start, size).copy_(part)


class CudaMemory(DeviceMemory):
    """An arena on a GPU; one asynchronous copy an adapter, on a stream of their own."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        super().__init__(num_bytes, device)
        stream_type: Any = torch.cuda.Stream  # untyped in torch
        self._stream = stream_type(device)
        self._events: dict[str, Any] = {}  # CUDA events, untyped as well

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """In pinned memory, which is what lets a copy run beside a step."""
        with DEVICE_CALLS:
            slab = adapter.slab.pin_memory()
        pinned = adapter.parts.mapped(lambda part: part_of(slab, part))
        return super().prepare(replace(adapter, slab=slab, parts=pinned))

    def arrived(self, digest: str) -> bool:
        event = self._events.get(digest)
        if event is not None and not event.query():
            return False
        self._events.pop(digest, None)
        return True

    def free(self, digest: str) -> None:
        super().free(digest)
        self._events.pop(digest, None)

    def _move(self, move: Move) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)  # it may be on its way still
        super()._move(move)

    def _copy(self, adapter: HostAdapter, slab: Tensor) -> None:
        # Steps launched before may still read what lay there, and moves be under way.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slab.copy_(adapter.slab, non_blocking=True)
            self._events[adapter.digest] = self._stream.record_event()


def memory_for(device: torch.device, num_bytes: int) -> AdapterMemory:
    """Memory for adapters of a device. Raises EngineError where it has not so many bytes."""
    return CudaMemory(num_bytes, device) if device.type == "cuda" else HostMemory(num_bytes)
