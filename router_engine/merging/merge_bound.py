"""A bound on what merging a mixture may cost those who do not ask for it, found before it is done.

While W' = round(W + D) is in the base, others are served by x W' less x D, D at low rank. Exactly
computed that is x W. In floating point both terms carry rounding errors of the size of D, which the
subtraction leaves behind. With u the unit roundoff of the weights' format, for a layer of n inputs:

- W + D is rounded once, x W' and what is taken off once each: 3 u |D| at most.
- Sums of n products in fp32 lose about sqrt(n) u32 of their size more (Higham and Mary, "A New
  Approach to Probabilistic Rounding Error Analysis", 2019), in the same places.

So a layer's output is off by 3 (u + sqrt(n) u32) |D| / |W| of its size, |.| the Frobenius norm. The
layers' errors are independent: of L decoder layers they add up to sqrt(L) times that of the worst.
The output head's outputs are read one by one: there |D| is sqrt(outputs) times the largest norm of
D's rows, which is the Frobenius norm where all are alike.
The bound is this number, held against the tolerance of log probabilities in the format. Of what it
lets in, less than two thirds of the tolerance was measured, also where D reads just the direction
that the activations have.

That is true of numbers in the normal range of their format. D is the same for A times c and B
divided by c, but what is taken off is computed by way of A x, which may be too large for the
format, or so small that little is left of it. So each number on the way is followed from row to
row (`_Factors`): the largest must fit, and what may be lost below is added to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters_store.types import ResolvedMixture
from router_engine.errors import MixtureError
from router_engine.experts.base import ExpertRows, HostAdapter
from router_engine.merging.merged_base import MergedBase
from router_engine.tolerances import TOLERANCES

_ROUNDINGS = 3  # of the stored sum, of the layer's product, of what is taken off
_WIDE = torch.finfo(torch.float32)  # all kernels add products in fp32
_SUMS = _WIDE.eps / 2
# What layers read has a root mean square between the inverse of this and this.
_ACTIVATIONS = 32.0


@dataclass(frozen=True, slots=True)
class _Effect:
    """On requests that do not ask for the mixture, by way of one layer.

    error: of their log probabilities, relative to the largest; infinite where it is no number.
    fits: whether no number on the way passes the largest of its format.
    """

    module: str
    error: float
    fits: bool


class MergeBound:
    """Refuses mixtures that would change the answers of others; knows the base's norms."""

    def __init__(self, base: MergedBase, dtype: torch.dtype, layers: Sequence[str]) -> None:
        """`dtype`: that of the base's weights. `layers`: paths of the decoder's layers."""
        self._base = base
        self._dtype = dtype
        self._num_layers = len(layers)
        self._inside = tuple(f"{path}." for path in layers)
        self._norms: dict[str, float] = {}  # of the untouched weights, by layer

    def check(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> None:
        """Raises MixtureError where the bound is above the tolerance, or no number.

        `adapters` are the mixture's, in its order.
        """
        tolerance, name = TOLERANCES[self._dtype], str(self._dtype).removeprefix("torch.")
        effects = self._effects(mixture, adapters)
        if self._allows(effects):
            return
        names = ", ".join(
            f"{digest} at weight {weight:g}"
            for digest, weight in zip(mixture.digests, mixture.weights, strict=True)
        )
        worst = max(effects, key=lambda effect: effect.error)
        if worst.error <= tolerance:
            worst = next(effect for effect in effects if not effect.fits)
        if not worst.fits and not tolerance < worst.error < math.inf:
            raise MixtureError(
                f"{names}: merged, {worst.module} would make numbers that are not finite in {name}"
                "; send the mixture with each request"
            )
        advice = "Send the mixture with each request instead"
        share = _rounded_down(tolerance / worst.error)
        smaller = tuple(weight * float(share) for weight in mixture.weights)
        if self._allows(self._effects(replace(mixture, weights=smaller), adapters)):
            advice += f", or merge it at {share} of these weights"
        raise MixtureError(
            f"{names}: merged, the mixture could change log probabilities of other requests by "
            f"{worst.error:.1e} of the largest, for at {worst.module} it is too large beside the "
            "base's weights, or its A and B are of sizes too different for the format; "
            f"{tolerance:.0e} is allowed in {name}. {advice}"
        )

    def _allows(self, effects: Sequence[_Effect]) -> bool:
        tolerance = TOLERANCES[self._dtype]
        return all(effect.fits and effect.error <= tolerance for effect in effects)

    def _effects(self, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]) -> list[_Effect]:
        modules = sorted({module for adapter in adapters for module in adapter.rows_by_site})
        return [self._effect(module, mixture, adapters) for module in modules]

    def _effect(
        self, module: str, mixture: ResolvedMixture, adapters: Sequence[HostAdapter]
    ) -> _Effect:
        terms = [
            (weight, adapter.rows_by_site[module])
            for weight, adapter in zip(mixture.weights, adapters, strict=True)
            if module in adapter.rows_by_site
        ]
        factors = _summed(terms) if mixture.combination == "sum" else _folded(terms)
        is_head = not module.startswith(self._inside)
        size = factors.widest() if is_head else factors.size()
        fits, lost = factors.followed(self._dtype, by_output=is_head)
        if module not in self._norms:
            self._norms[module] = self._base.norm(module)
        norm, inputs = self._norms[module], terms[0][1].a.shape[1]
        unit = torch.finfo(self._dtype).eps / 2
        error = _ROUNDINGS * (unit + math.sqrt(inputs) * _SUMS) * size + lost
        if norm == 0:
            error = math.inf if size else 0.0
        else:
            error *= math.sqrt(self._num_layers) / norm
        if not error < math.inf:
            error, fits = math.inf, False
        return _Effect(module, error, fits)


@dataclass(frozen=True, slots=True)
class _Factors:
    """A mixture at one layer, as kernels multiply it: y += sum_jr b_jr q_j sum_i p_i (a_ir . x).

    The inner sum is over the adapters i of a group, row by row: under `linear` all of them, whose
    rows are equally many; under `sum` all rows are one adapter's. All are fp64.
    a [adapters, rows, in]; b [adapters, rows, out]; p, q [adapters, rows]. beside: the largest
    number that kernels make of the scales alone.
    """

    a: Tensor
    b: Tensor
    p: Tensor
    q: Tensor
    beside: float = 0.0

    def size(self) -> float:
        """|D|, or the root of its rows' squares where that is more.

        Rows that cancel each other leave a small sum, and the errors of large ones.
        """
        a, b = self.p[:, :, None] * self.a, self.q[:, :, None] * self.b
        rows = a.norm(dim=2).sum(0) * b.norm(dim=2).sum(0)
        product, size = _product(a.sum(0), b.sum(0)), float(rows.norm())
        return size if not product > size else product  # no number where a row is none

    def widest(self) -> float:
        """As `size`, were each row of D, which makes one output, as large as the largest is."""
        a, b = self.p[:, :, None] * self.a, self.q[:, :, None] * self.b
        rows = a.norm(dim=2).sum(0)[:, None] * b.abs().sum(0)
        a, b = a.sum(0), b.sum(0)
        product, size = ((a @ a.T) @ b * b).sum(0).max(), rows.square().sum(0).max()
        largest = size if not product > size else product
        return math.sqrt(b.shape[1] * float(largest))

    def followed(self, dtype: torch.dtype, *, by_output: bool) -> tuple[bool, float]:
        """Whether all numbers fit their formats; what may be lost of y below them.

        Each number, whatever it is, may be off by the smallest one of its format: some processors
        read and write smaller ones as 0. Of fp16 they all know the subnormal ones, too. x has a
        root mean square of _ACTIVATIONS, or of its inverse, whichever is worse; what is lost is
        relative to it. by_output: as if all outputs lost as much as the one that loses most.
        """
        form = torch.finfo(dtype)
        least = unread = form.smallest_normal
        if dtype == torch.float16:
            least, unread = form.smallest_normal * form.eps, 0.0
        p, a, b = self.p.abs(), self.a.norm(dim=2), self.b.norm(dim=2)
        wide_in, wide_out = self.a.shape[2] ** 0.5, self.b.shape[2] ** 0.5
        if by_output:
            b = wide_out * self.b.abs().amax(dim=2)
        read, lost = wide_in * a, 3 * wide_in * unread + least  # of a and x, of products and sums
        inner, lost = p * read, p * lost + least * read + least
        folded, lost = inner.sum(0), lost.sum(0)
        outer, lost = self.q * folded, self.q * lost + least * folded + least
        lost = lost * b + unread * wide_out * outer  # of b
        largest = torch.stack([inner.max(), folded.max(), p.max(), self.q.max()])
        largest = _ACTIVATIONS * largest.clamp(min=self.beside)
        narrow = _ACTIVATIONS * torch.stack([read.max(), outer.max()])
        fits = bool((largest <= _WIDE.max).all() and (narrow <= form.max).all())
        return fits, _ACTIVATIONS * float(lost.norm())


def _summed(terms: Sequence[tuple[float, ExpertRows]]) -> _Factors:
    """sum_r w_r b_r (a_r . x); b holds the scale."""
    a = torch.cat([rows.a for _, rows in terms]).double()[None]
    b = torch.cat([rows.b for _, rows in terms]).double()[None]
    p = torch.cat([a.new_full((rows.count,), weight) for weight, rows in terms])[None]
    return _Factors(a, b, p, torch.ones_like(p))


def _folded(terms: Sequence[tuple[float, ExpertRows]]) -> _Factors:
    """(sum_j c_j B_j)(sum_j c_j A_j) with c = sqrt(weight * scale); B holds the scale."""
    a = torch.stack([rows.a for _, rows in terms]).double()
    b = torch.stack([rows.b for _, rows in terms]).double()
    p = a.new_tensor([(weight * rows.scale) ** 0.5 for weight, rows in terms])
    q = a.new_tensor([(weight / rows.scale) ** 0.5 for weight, rows in terms])
    shape = a.shape[:2]
    beside = max((1 / rows.scale) ** 0.5 for _, rows in terms)
    return _Factors(a, b, p[:, None].expand(shape), q[:, None].expand(shape), beside)


def _product(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of b^T a, for a [rows, in] and b [rows, out], without making it."""
    return math.sqrt(max(0.0, float(((a @ a.T) * (b @ b.T)).sum())))


def _rounded_down(share: float) -> str:
    """A share with one digit, not above what it is."""
    power = 10.0 ** math.floor(math.log10(share))
    return f"{math.floor(share / power * (1 + 1e-9)) * power:.0e}"
