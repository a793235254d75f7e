"""Transfers of an adapter from the host to the device.

On a GPU it goes from pinned memory on a stream of its own, beside the running steps: an adapter has
arrived when the device says so, and only then may a step use it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from router_engine.experts.base import HostAdapter
from router_engine.experts.slab import outline, part_of


class Transfer(Protocol):
    """All but `prepare` belong to the engine's thread."""

    # Whether the device computes on the host's own copies, so that nothing is held twice.
    shares_memory: bool

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """The adapter in memory that a copy may start from; called by a loader's thread."""
        ...

    def send(self, adapter: HostAdapter) -> Tensor:
        """The adapter's slab on the device, which is on its way there until it has `arrived`."""
        ...

    def arrived(self, digest: str) -> bool:
        """Whether an adapter that was sent is there."""
        ...


class SharedMemory:
    """No transfer: the device reads what the host holds."""

    shares_memory = True

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        return adapter

    def send(self, adapter: HostAdapter) -> Tensor:
        return adapter.slab

    def arrived(self, digest: str) -> bool:
        return True


class StreamTransfer:
    """One copy an adapter, on a CUDA stream of their own."""

    shares_memory = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream_type: Any = torch.cuda.Stream  # untyped in torch
        self._stream = stream_type(device)
        self._events: dict[str, Any] = {}  # CUDA events, untyped as well

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """In pinned memory, which is what lets a copy run beside a step."""
        slab = adapter.slab.pin_memory()
        return replace(
            adapter,
            slab=slab,
            parts=adapter.parts.mapped(lambda part: part_of(slab, part)),
            outline=outline(adapter.parts),
        )

    def send(self, adapter: HostAdapter) -> Tensor:
        slab = torch.empty_like(adapter.slab, device=self._device)
        # Steps launched before may still read what lay there.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slab.copy_(adapter.slab, non_blocking=True)
            self._events[adapter.digest] = self._stream.record_event()
        slab.record_stream(self._stream)  # it may be freed before it has arrived
        return slab

    def arrived(self, digest: str) -> bool:
        event = self._events.get(digest)
        if event is not None and not event.query():
            return False
        self._events.pop(digest, None)
        return True


def transfer_for(device: torch.device) -> Transfer:
    """The way to a device."""
    return StreamTransfer(device) if device.type == "cuda" else SharedMemory()
