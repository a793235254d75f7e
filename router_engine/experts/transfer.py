"""Transfers of an adapter's rows from the host to the device.

On a GPU they go from pinned memory on a stream of their own, beside the running steps: an adapter
has arrived when the device says so, and only then may a step use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from router_engine.experts.base import HostAdapter


class Transfer(Protocol):
    """All but `prepare` belong to the engine's thread."""

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """The adapter in memory that copies may start from; called by a loader's thread."""
        ...

    def placing(self, digest: str) -> AbstractContextManager[None]:
        """Within it an adapter's rows are copied."""
        ...

    def arrived(self, digest: str) -> bool:
        """Whether all that was copied for an adapter is there."""
        ...

    def settle(self) -> None:
        """What the device does from here on comes after every copy so far."""
        ...


class SyncTransfer:
    """A copy is over when the call returns."""

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        return adapter

    def placing(self, digest: str) -> AbstractContextManager[None]:
        return nullcontext()

    def arrived(self, digest: str) -> bool:
        return True

    def settle(self) -> None:
        pass


class StreamTransfer:
    """Copies on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        stream_type: Any = torch.cuda.Stream  # untyped in torch
        self._stream = stream_type(device)
        self._events: dict[str, Any] = {}  # CUDA events, untyped as well

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        """Into pinned memory, which is what lets a copy run beside a step."""
        return replace(
            adapter,
            rows_by_site={
                site: rows.mapped(Tensor.pin_memory) for site, rows in adapter.rows_by_site.items()
            },
            routers={
                layer: router.mapped(Tensor.pin_memory) for layer, router in adapter.routers.items()
            },
        )

    @contextmanager
    def placing(self, digest: str) -> Iterator[None]:
        # Steps launched before may still read what is written over.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
            self._events[digest] = self._stream.record_event()

    def arrived(self, digest: str) -> bool:
        event = self._events.get(digest)
        if event is not None and not event.query():
            return False
        self._events.pop(digest, None)
        return True

    def settle(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)


def transfer_for(device: torch.device) -> Transfer:
    """The way to a device."""
    return StreamTransfer(device) if device.type == "cuda" else SyncTransfer()
