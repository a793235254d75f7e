"""The gauge of a GPU's memory: what there is, what others hold, what work takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from router_engine.errors import EngineError


class MemoryGauge(Protocol):
    """All numbers in bytes."""

    @property
    def total(self) -> int:
        """Of the device."""
        ...

    @property
    def others(self) -> int:
        """What neither is free nor held by torch here: the driver and other processes."""
        ...

    def taken_by(self, work: Callable[[], object]) -> int:
        """By how much more is held, at its height, while `work` runs."""
        ...

    def kept_by(self, work: Callable[[], object]) -> int:
        """By how much less is free once `work` has run."""
        ...


class CudaGauge:
    """That of a card."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def total(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[1])

    @property
    def others(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free - torch.cuda.memory_reserved(self._device))

    def taken_by(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # so that all that the work takes is seen
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        work()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.empty_cache()
        return int(peak - before)

    def kept_by(self, work: Callable[[], object]) -> int:
        before = self._free()
        work()
        return max(0, before - self._free())

    def _free(self) -> int:
        """Without what torch only holds in store."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])


def gauge_for(device: torch.device) -> MemoryGauge | None:
    """The gauge of a device; None for a CPU, whose memory is not planned."""
    return CudaGauge(device) if device.type == "cuda" else None


@contextmanager
def told_where_short(what: str, advice: str) -> Iterator[None]:
    """Raises EngineError with the numbers where a GPU's memory does not do for `what`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise EngineError(
            f"the GPU's memory does not do for {what}: {free / 2**30:.2f} GiB of "
            f"{total / 2**30:.2f} GiB are free: {advice}"
        ) from error
