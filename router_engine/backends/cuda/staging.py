"""Numbers of a step at fixed addresses of the device, and where the host writes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StepRoom(NamedTuple):
    """The most of a step that a graph runs. blocks: of one request."""

    tokens: int
    requests: int
    blocks: int

    def rows(self, tokens: int) -> int:
        """The requests of a graph of so many tokens."""
        return min(tokens, self.requests)


class HostAndDevice:
    """Numbers that are written on the host, and go to the device by one copy.

    There are two of them on the host, by turns: one step may still be under way when the next is
    written, and the one before that has ended.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        pin = device.type == "cuda"  # where there is no card there is no pinned memory
        self._hosts = [torch.zeros(shape, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
        self.device = torch.zeros(shape, dtype=torch.int32, device=device)

    @property
    def host(self) -> Tensor:
        """To be written now."""
        return self._hosts[0]

    def turn(self) -> None:
        """A step begins."""
        self._hosts.reverse()

    def send(self, *at: slice) -> None:
        """Copy a part, once all is done that the device was asked for before."""
        self.device[at].copy_(self.host[at], non_blocking=True)
