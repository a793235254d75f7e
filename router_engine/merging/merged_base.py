"""Merged mode: a mixture folded into the base weights, and the untouched base kept beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from adapters_store.types import ResolvedMixture
from router_engine.device_calls import DEVICE_CALLS
from router_engine.errors import MixtureError
from router_engine.experts.base import HostAdapter

_MOST_NUMBERS = 1 << 26  # of a weight in fp32 at once


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

    The sum is made in fp32, where the weight lies, and rounded once to the base's dtype. `restore`
    writes the kept W back: subtracting would drift in bf16, so the base is bit-identical after any
    number of merges.
    """

    def __init__(self, weights: BaseWeights) -> None:
        self._weights = weights
        self._kept = KeptWeights()
        self._merged: list[str] = []  # modules whose weight is not the base's
        self._changing = threading.Lock()  # held while a weight is replaced
        self.mixture: ResolvedMixture | None = None

    def merge(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> None:
        """Fold `mixture` in, after undoing any other; `adapters` are its own, in its order.

        Raises MixtureError, the base restored, where a weight would be no finite number.
        """
        self.restore()
        modules = sorted({module for adapter in adapters for module in adapter.rows_by_site})
        try:
            finite = [self._merge(module, mixture, adapters) for module in modules]
        except BaseException:  # no memory left, say
            self.restore()
            raise
        # Read at the end: a GPU is not waited for module by module.
        wrong = [] if not finite else torch.stack(finite).logical_not().nonzero()[:, 0].tolist()
        if wrong:
            self.restore()
            raise MixtureError(
                f"merged, {modules[wrong[0]]} would hold values that are not finite in "
                f"{self._weights.read_weight(modules[wrong[0]]).dtype}; send the mixture with each "
                "request"
            )
        self.mixture = mixture

    def _merge(
        self, module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
    ) -> Tensor:
        """Replace a layer's weight; whether all of it is finite, where it lies."""
        weight = self._weights.read_weight(module)
        merged = with_low_rank(weight, *factors(module, mixture, adapters, weight.device))
        with self._changing:
            self._kept.keep(module, weight)
            self._weights.write_weight(module, merged)
            self._merged.append(module)
        return merged.isfinite().all()

    def restore(self) -> None:
        """Bring the untouched base back, bit for bit."""
        while self._merged:
            with self._changing:
                module = self._merged.pop()
                self._weights.write_weight(module, self._kept.untouched(module))
                self._kept.restored(module)
        self.mixture = None

    def norm(self, module: str) -> float:
        """The Frobenius norm of a layer's weight as no mixture has changed it."""
        is_merged = module in self._merged
        weight = self._kept.untouched(module) if is_merged else self._weights.read_weight(module)
        return float(weight.float().norm())

    def untouched(self, module: str) -> Tensor:
        """A copy of a layer's weight [out, in] as no mixture has changed it, in fp32 on the host.

        Any thread may ask, beside a running step or a merge.
        """
        with self._changing:
            if module in self._merged:
                weight = self._kept.untouched(module)
            else:
                weight = self._weights.read_weight(module)
            return weight.to("cpu", torch.float32, copy=True)


class KeptWeights:
    """Untouched weights, on the host, of layers that a mixture was merged into.

    Those of a GPU are in pinned memory, from which they come back as fast as the bus is, and stay
    when they are restored: the next merge copies nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._on_their_way: Any = None  # a CUDA event, untyped in torch: copies before it

    def keep(self, module: str, weight: Tensor) -> None:
        """Have the untouched weight of a layer, which is not changed before this is called."""
        if module in self._kept:
            return
        if weight.device.type == "cpu":
            self._kept[module] = weight.clone()
            return
        with DEVICE_CALLS:
            pinned = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True)
        self._kept[module] = pinned.copy_(weight, non_blocking=True)
        self._on_their_way = torch.cuda.current_stream(weight.device).record_event()

    def untouched(self, module: str) -> Tensor:
        """The weight of a layer that is kept."""
        if self._on_their_way is not None:
            self._on_their_way.synchronize()
            self._on_their_way = None
        return self._kept[module]

    def restored(self, module: str) -> None:
        """A layer's weight is the untouched one again."""
        if not self._kept[module].is_pinned():
            del self._kept[module]


def factors(
    module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter], device: torch.device
) -> tuple[Tensor, Tensor]:
    """A [rows, in] and B [rows, out] in fp32: B^T A is the change of a mixture at one layer.

    sum: sum_j w_j s_j B_j A_j. linear: (sum_j sqrt(w_j s_j) B_j)(sum_j sqrt(w_j s_j) A_j), as
    PEFT's `add_weighted_adapter(combination_type="linear")`.
    """
    terms = [
        (weight, adapter.rows_by_site[module])
        for weight, adapter in zip(mixture.weights, adapters, strict=True)
        if module in adapter.rows_by_site
    ]
    rows = [
        (weight, pair.scale, pair.a.to(device).float(), pair.b.to(device).float())
        for weight, pair in terms
    ]
    if mixture.combination == "sum":
        # B holds the scale already.
        a = torch.cat([weight * own for weight, _, own, _ in rows])
        return a, torch.cat([own for *_, own in rows])
    shrink = [(weight * scale) ** 0.5 * own for weight, scale, own, _ in rows]
    expand = [(weight / scale) ** 0.5 * own for weight, scale, _, own in rows]
    return torch.stack(shrink).sum(0), torch.stack(expand).sum(0)


def with_low_rank(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """weight [out, in] + B^T A, summed in fp32 and rounded once; a [rows, in], b [rows, out].

    A large weight goes piece by piece, so that its fp32 form is never held as a whole.
    """
    outputs = max(1, _MOST_NUMBERS // weight.shape[1])
    merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for first in range(0, len(weight), outputs):
        part = slice(first, first + outputs)
        merged[part] = weight[part].float() + b[:, part].T @ a
    return merged
