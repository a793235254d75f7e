"""What merging a mixture may cost those who do not ask for it, by arithmetic, before it is done.

While W' = round(W + D) is in the base, others are served by x W' less x D, D at low rank. Exactly
computed that is x W. In floating point both terms carry rounding errors of the size of D, which the
subtraction leaves behind. With u the unit roundoff of the weights' format, for a layer of n inputs:

- W + D is rounded once, x W' and what is taken off once each: 3 u |D| at most.
- Sums of n products in fp32 lose about sqrt(n) u32 of their size more (Higham and Mary, "A New
  Approach to Probabilistic Rounding Error Analysis", 2019), in the same places.

So a layer's output is off by 3 (u + sqrt(n) u32) |D| / |W| of its size, |.| the Frobenius norm. The
layers' errors are independent: of L decoder layers they add up to sqrt(L) times that of the worst.
The bound is this number, held against the tolerance of log probabilities in the format. Of what it
lets in, less than two thirds of the tolerance was measured, also where D reads just the direction
that the activations have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.types import ResolvedMixture
from router_engine.errors import MixtureError
from router_engine.experts.base import ExpertRows, HostAdapter
from router_engine.experts.merged import MergedBase
from router_engine.tolerances import TOLERANCES

_ROUNDINGS = 3  # of the stored sum, of the layer's product, of what is taken off
_SUMS = torch.finfo(torch.float32).eps / 2  # all kernels add products in fp32


class MergeBound:
    """Refuses mixtures that would change the answers of others; knows the base's norms."""

    def __init__(self, base: MergedBase, dtype: torch.dtype, num_layers: int) -> None:
        """`dtype`: that of the base's weights."""
        self._base = base
        self._dtype = dtype
        self._num_layers = num_layers
        self._norms: dict[str, float] = {}  # of the untouched weights, by layer

    def check(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> None:
        """Raises MixtureError where the bound is above the tolerance, or no number.

        `adapters` are the mixture's, in its order.
        """
        dtype = self._dtype
        tolerance = TOLERANCES[dtype]
        bound, module = self._largest(mixture, adapters)
        if bound <= tolerance:  # false for NaN too
            return
        names = ", ".join(
            f"{digest} at weight {weight:g}"
            for digest, weight in zip(mixture.digests, mixture.weights, strict=True)
        )
        if not math.isfinite(bound):
            raise MixtureError(
                f"{names}: merged, {module} would hold values that are not finite in {_name(dtype)}"
                "; send the mixture with each request, or use smaller weights"
            )
        raise MixtureError(
            f"{names}: merged, the mixture could change log probabilities of other requests by "
            f"{bound:.1e} of the largest, for at {module} it is so much larger than the base's "
            f"weights; {tolerance:.0e} is allowed in {_name(dtype)}. Send the mixture with each "
            f"request instead, or merge it at {_rounded_down(tolerance / bound)} of these weights"
        )

    def _largest(
        self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
    ) -> tuple[float, str]:
        """The bound, and the layer that makes it; 0 where nothing is touched."""
        modules = sorted({module for adapter in adapters for module in adapter.pairs})
        worst, where = 0.0, ""
        for module in modules:
            error = self._error(module, mixture, adapters)
            if not error <= worst:  # true for NaN too
                worst, where = error, module
            if not math.isfinite(worst):
                break
        return math.sqrt(self._num_layers) * worst, where

    def _error(
        self, module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
    ) -> float:
        """Of a layer's output, relative to its size."""
        terms = [
            (weight, adapter.pairs[module])
            for weight, adapter in zip(mixture.weights, adapters, strict=True)
            if module in adapter.pairs
        ]
        size = _sum_size(terms) if mixture.combination == "sum" else _linear_size(terms)
        if module not in self._norms:
            self._norms[module] = self._base.norm(module)
        norm, inputs = self._norms[module], terms[0][1].a.shape[1]
        if norm == 0:
            return math.inf if size else 0.0
        unit = torch.finfo(self._dtype).eps / 2
        return _ROUNDINGS * (unit + math.sqrt(inputs) * _SUMS) * size / norm


def _sum_size(terms: Sequence[tuple[float, ExpertRows]]) -> float:
    """|sum_r w_r b_r a_r^T|, or the root of the rows' squares where that is more.

    Rows that cancel each other leave a small sum, and the errors of large ones.
    """
    a = torch.cat([weight * rows.a.double() for weight, rows in terms])
    b = torch.cat([rows.b.double() for _, rows in terms])
    return _larger(_product(a, b), a.norm(dim=1) * b.norm(dim=1))


def _linear_size(terms: Sequence[tuple[float, ExpertRows]]) -> float:
    """The same of (sum_j c_j B_j)(sum_j c_j A_j), whose rows are as large as their terms."""
    shrink = [(weight * rows.scale) ** 0.5 * rows.a.double() for weight, rows in terms]
    expand = [(weight / rows.scale) ** 0.5 * rows.b.double() for weight, rows in terms]
    a, b = (torch.stack(parts).norm(dim=2).sum(0) for parts in (shrink, expand))
    return _larger(_product(torch.stack(shrink).sum(0), torch.stack(expand).sum(0)), a * b)


def _product(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of b^T a, for a [rows, in] and b [rows, out], without making it."""
    return math.sqrt(max(0.0, float(((a @ a.T) * (b @ b.T)).sum())))


def _larger(product: float, rows: Tensor) -> float:
    """No number where a row is none."""
    size = float(rows.norm())
    return size if not product > size else product


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded_down(share: float) -> str:
    """A share with one digit, not above what it is."""
    power = 10.0 ** math.floor(math.log10(share))
    return f"{math.floor(share / power * (1 + 1e-9)) * power:.0e}"
