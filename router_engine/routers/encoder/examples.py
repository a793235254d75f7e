"""Embeddings of adapters' sample texts, one by one, in the encoder worker's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from router_engine.routers.errors import RouterInputError
from router_engine.routers.knn import MAX_EXAMPLES, ExampleView
from router_engine.routers.scoring import unit_rows

MAX_SETS = 4096  # sets of examples that are held, and candidates of one request


class ExampleBank:
    """Owns one matrix of unit rows, float32, and which of its rows are whose.

    A set is the examples of one adapter's texts, under a key. Each has a place of MAX_EXAMPLES
    rows. Memory is zeroed, so the system gives it page by page as rows are written; at most it is
    num_sets * MAX_EXAMPLES * d * 4 bytes (403 MB for 4,096 sets of d = 384). When no place is free,
    the set that was asked for longest ago gives way.
    """

    def __init__(self, dimension: int, *, num_sets: int = MAX_SETS) -> None:
        self._rows = np.zeros((num_sets * MAX_EXAMPLES, dimension), dtype=np.float32)
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()  # key -> first row, rows
        self._used = 0  # rows from the first to the last that was ever written
        self._free = list(range(len(self._rows) - MAX_EXAMPLES, -1, -MAX_EXAMPLES))

    def lacking(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Keys that are not held; those that are count as asked for now."""
        for key in keys:
            if key in self._counts:
                self._counts.move_to_end(key)
        return tuple(dict.fromkeys(key for key in keys if key not in self._counts))

    def put(self, key: str, vectors: ArrayLike) -> None:
        """Hold vectors [n, d] as rows of length 1, in place of any under this key."""
        rows = np.asarray(vectors)
        if not 1 <= len(rows) <= MAX_EXAMPLES or not np.isfinite(rows).all():
            raise RouterInputError(
                f"the examples of {key} must be 1 to {MAX_EXAMPLES} finite rows, not {rows.shape}"
            )
        self._drop(key)
        if not self._free:
            self._drop(next(iter(self._counts)))
        first = self._free.pop()
        self._used = max(self._used, first + MAX_EXAMPLES)
        self._rows[first : first + len(rows)] = unit_rows(rows)
        self._counts[key] = (first, len(rows))

    def view(self, keys: Sequence[str]) -> ExampleView:
        """All keys' examples, one key after the other; an owner is a place in `keys`."""
        held = np.array([self._counts[key] for key in keys], dtype=np.intp)
        counts = held[:, 1]
        owners = np.repeat(np.arange(len(keys)), counts)
        # Row i of a key's own: its place in the whole less where that key's rows begin.
        own = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return ExampleView(self._rows[: self._used], held[owners, 0] + own, owners)

    def _drop(self, key: str) -> None:
        place = self._counts.pop(key, None)
        if place is not None:
            self._free.append(place[0])
