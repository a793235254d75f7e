"""Merged mode: a mixture folded into the base weights, and the untouched base kept beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from adapters_store.types import ResolvedMixture
from router_engine.errors import MixtureError
from router_engine.experts.base import HostAdapter


class BaseWeights(Protocol):
    """The base's linear weights, in whatever form a backend keeps them.

    Written between two steps by the engine's thread; other threads may read.
    """

    def read_weight(self, module: str) -> Tensor:
        """A layer's weight [out, in] in the base's dtype, in fp32 where it is held in integers.

        It may be the layer's own memory.
        """
        ...

    def write_weight(self, module: str, weight: Tensor) -> None:
        """Replace it by `weight` [out, in], bit for bit; nothing may run meanwhile."""
        ...


class MergedBase:
    """Folds one mixture into the base between two steps: W' = W + sum_j w_j s_j B_j A_j.

    The sum is made in fp32 and rounded once to the base's dtype. `restore` writes the kept W back:
    subtracting would drift in bf16, so the base is bit-identical after any number of merges.
    """

    def __init__(self, weights: BaseWeights) -> None:
        self._weights = weights
        self._kept: dict[str, Tensor] = {}  # the untouched weights of merged layers, on the host
        self._changing = threading.Lock()  # held while a weight is replaced
        self.mixture: ResolvedMixture | None = None

    def merge(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> None:
        """Fold `mixture` in, after undoing any other; `adapters` are its own, in its order.

        Raises MixtureError, the base restored, where a weight would be no finite number.
        """
        self.restore()
        modules = {module for adapter in adapters for module in adapter.rows_by_site}
        for module in sorted(modules):
            weight = self._weights.read_weight(module)
            delta = low_rank_delta(module, mixture, adapters).to(weight.device)
            merged = (weight.float() + delta).to(weight.dtype)
            if not bool(merged.isfinite().all()):
                self.restore()
                raise MixtureError(
                    f"merged, {module} would hold values that are not finite in {weight.dtype}; "
                    "send the mixture with each request"
                )
            with self._changing:
                self._kept[module] = weight.to("cpu", copy=True)
                self._weights.write_weight(module, merged)
        self.mixture = mixture

    def restore(self) -> None:
        """Bring the untouched base back, bit for bit."""
        for module in list(self._kept):
            with self._changing:
                self._weights.write_weight(module, self._kept.pop(module))
        self.mixture = None

    def norm(self, module: str) -> float:
        """The Frobenius norm of a layer's weight as no mixture has changed it."""
        weight = self._kept.get(module)
        return float(
            (self._weights.read_weight(module) if weight is None else weight).float().norm()
        )

    def untouched(self, module: str) -> Tensor:
        """A copy of a layer's weight [out, in] as no mixture has changed it, in fp32 on the host.

        Any thread may ask, beside a running step or a merge.
        """
        with self._changing:
            weight = self._kept.get(module)
            if weight is None:
                weight = self._weights.read_weight(module)
            return weight.to("cpu", torch.float32, copy=True)


def low_rank_delta(
    module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
) -> Tensor:
    """The weight change [out, in] of a mixture at one layer, in fp32.

    sum: sum_j w_j s_j B_j A_j. linear: (sum_j sqrt(w_j s_j) B_j)(sum_j sqrt(w_j s_j) A_j), as
    PEFT's `add_weighted_adapter(combination_type="linear")`.
    """
    terms = [
        (weight, adapter.rows_by_site[module])
        for weight, adapter in zip(mixture.weights, adapters, strict=True)
        if module in adapter.rows_by_site
    ]
    if mixture.combination == "sum":
        # B holds the scale already.
        a = torch.cat([weight * pair.a.float() for weight, pair in terms])
        b = torch.cat([pair.b.float() for _, pair in terms])
        return b.T @ a
    shrink = [(weight * pair.scale) ** 0.5 * pair.a.float() for weight, pair in terms]
    expand = [(weight / pair.scale) ** 0.5 * pair.b.float() for weight, pair in terms]
    return torch.stack(expand).sum(0).T @ torch.stack(shrink).sum(0)
