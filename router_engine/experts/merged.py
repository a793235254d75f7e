"""Merged mode: a mixture folded into the base weights, and the untouched base kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from adapters_store.types import ResolvedMixture
from router_engine.experts.base import HostAdapter


class MergeTarget(Protocol):
    """A base linear layer whose weight can be replaced."""

    base: nn.Module

    @property
    def weight(self) -> nn.Parameter: ...

    @property
    def is_transposed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """What restores a layer: the parameter that it had, and that parameter's untouched values."""

    parameter: nn.Parameter
    values: Tensor | None  # on the host; None where the parameter itself was left alone


class MergedBase:
    """Folds one mixture into the base between two steps: W' = W + sum_j w_j s_j B_j A_j.

    The sum is made in fp32 and rounded once to the base's dtype. `restore` copies the kept W back:
    subtracting would drift in bf16, so the base is bit-identical after any number of merges.
    """

    def __init__(
        self,
        linears: Mapping[str, MergeTarget],
        embeddings: Sequence[nn.Parameter],
        changed: Callable[[Collection[str]], None],
    ) -> None:
        """`changed` is told which modules' weights are others now: kernels keep copies."""
        self._linears = linears
        self._changed = changed
        self._embeddings = {id(parameter) for parameter in embeddings}
        self._kept: dict[str, _Kept] = {}
        self.mixture: ResolvedMixture | None = None

    def merge(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> None:
        """Fold `mixture` in, after undoing any other; `adapters` are its own, in its order."""
        self.restore()
        modules = {module for adapter in adapters for module in adapter.pairs}
        for module in sorted(modules):
            self._fold(module, low_rank_delta(module, mixture, adapters))
        self.mixture = mixture
        self._changed(modules)

    def restore(self) -> None:
        """Bring the untouched base back, bit for bit."""
        for module, kept in self._kept.items():
            if kept.values is None:
                self._linears[module].base.weight = kept.parameter
            else:
                kept.parameter.data.copy_(kept.values)
        self._changed(self._kept)
        self._kept.clear()
        self.mixture = None

    def _fold(self, module: str, delta: Tensor) -> None:
        target = self._linears[module]
        parameter = target.weight
        delta = delta.T if target.is_transposed else delta
        merged = (parameter.data.float() + delta.to(parameter.device)).to(parameter.dtype)
        if id(parameter) in self._embeddings:
            # An embedding reads the same tensor: the layer gets one of its own while merged.
            self._kept[module] = _Kept(parameter, None)
            target.base.weight = nn.Parameter(merged, requires_grad=False)
        else:
            self._kept[module] = _Kept(parameter, parameter.data.to("cpu", copy=True))
            parameter.data.copy_(merged)


def low_rank_delta(
    module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
) -> Tensor:
    """The weight change [out, in] of a mixture at one layer, in fp32.

    sum: sum_j w_j s_j B_j A_j. linear: (sum_j sqrt(w_j s_j) B_j)(sum_j sqrt(w_j s_j) A_j), as
    PEFT's `add_weighted_adapter(combination_type="linear")`.
    """
    terms = [
        (weight, adapter.pairs[module])
        for weight, adapter in zip(mixture.weights, adapters, strict=True)
        if module in adapter.pairs
    ]
    if mixture.combination == "sum":
        # B holds the scale already.
        a = torch.cat([weight * pair.a.float() for weight, pair in terms])
        b = torch.cat([pair.b.float() for _, pair in terms])
        return b.T @ a
    shrink = [(weight * pair.scale) ** 0.5 * pair.a.float() for weight, pair in terms]
    expand = [(weight / pair.scale) ** 0.5 * pair.b.float() for weight, pair in terms]
    return torch.stack(expand).sum(0).T @ torch.stack(shrink).sum(0)
