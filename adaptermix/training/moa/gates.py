"""Statistics of gates over many tokens: their means, and their spread over the experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptermix.training.moa.model import MoaModel


def mean_and_spread(gates: Tensor) -> tuple[Tensor, Tensor]:
    """Of gates [layers, tokens, experts]: their mean, and the standard deviation over the experts
    of a token (of the population), in the mean of tokens and layers."""
    return gates.mean(), gates.std(dim=-1, correction=0).mean()


class GateSummary:
    """Sums over the tokens that it was shown."""

    def __init__(self) -> None:
        self.tokens = 0
        self._gates = self._spread = self._closed = torch.zeros(())

    def add(self, gates: Tensor) -> None:
        """gates [layers, tokens, experts]."""
        gates = gates.cpu()
        self.tokens += gates.shape[1]
        self._gates = self._gates + gates.sum(dim=1)
        self._spread = self._spread + gates.std(dim=-1, correction=0).sum(dim=1)
        self._closed = self._closed + (gates == 0).sum(dim=1)

    @property
    def means(self) -> Tensor:
        """[layers, experts]."""
        return self._gates / self.tokens

    @property
    def spread(self) -> float:
        """Standard deviation over the experts of a token, in the mean of tokens and layers."""
        return float((self._spread / self.tokens).mean())

    @property
    def closed(self) -> float:
        """Part of the gates that are 0."""
        return float((self._closed / self.tokens).mean())


@contextmanager
def recorded(model: MoaModel) -> Iterator[GateSummary]:
    """The gates of every call inside."""
    statistics = GateSummary()

    def add(called: MoaModel, inputs: Any, output: Any) -> None:
        statistics.add(called.gates)

    handle = model.register_forward_hook(add)
    try:
        yield statistics
    finally:
        handle.remove()
