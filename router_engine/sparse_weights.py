"""Weights over many candidates, of which few are not 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec


class SparseWeights(msgspec.Struct, frozen=True):
    """One weight for each adapter of a request, zeros left out: a router may have thousands.

    size: adapters of the request. columns: which of them have a weight, ascending. values: theirs.
    Equal exactly when the weights are.
    """

    size: int
    columns: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def from_dense(cls, weights: Sequence[float]) -> SparseWeights:
        """From one number for each adapter."""
        pairs = [(column, weight) for column, weight in enumerate(weights) if weight != 0]
        return cls(len(weights), tuple(c for c, _ in pairs), tuple(w for _, w in pairs))

    @property
    def dense(self) -> tuple[float, ...]:
        """One number for each adapter."""
        weights = [0.0] * self.size
        for column, weight in self.items():
            weights[column] = weight
        return tuple(weights)

    def items(self) -> Iterator[tuple[int, float]]:
        """(column, weight) of those that are not 0."""
        return zip(self.columns, self.values, strict=True)
