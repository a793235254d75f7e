"""The flat batch of one step as arrays on the host: rows one after another, nothing padded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from router_engine.kernels.base import Chunk, slots_at
from router_engine.kv.block_table import BlockIds
from router_engine.scheduling.plan import PlannedRow, StepPlan


class StepArrays:
    """The numbers of a plan that every backend reads."""

    token_ids: NDArray[np.int64]  # [tokens]
    positions: NDArray[np.int32]  # [tokens]
    samples: NDArray[np.int32]  # [samples]: flat tokens whose logits are wanted
    blocks: NDArray[np.int32]  # the rows' block tables, one after another

    def __init__(self, plan: StepPlan) -> None:
        lengths = np.array([len(row.token_ids) for row in plan.rows], dtype=np.int32)
        starts = np.array([row.start for row in plan.rows], dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int32)
        sizes = [len(row.block_ids) for row in plan.rows]
        self._lengths, self._starts, self._ends = lengths, starts, ends
        self._tables = np.cumsum(sizes, dtype=np.int32) - sizes
        self.token_ids = np.array(
            list(chain.from_iterable(row.token_ids for row in plan.rows)), dtype=np.int64
        )
        self.block_ids = [row.block_ids for row in plan.rows]
        self.blocks = np.concatenate([_array(ids) for ids in self.block_ids])
        offsets = np.repeat(starts - (ends - lengths), lengths)
        self.positions = np.arange(len(offsets), dtype=np.int32) + offsets
        sampled = [row.needs_logits for row in plan.rows]
        self.samples = (ends[sampled] - 1).astype(np.int32)

    @property
    def rows(self) -> NDArray[np.int32]:
        """[rows, 4]: first flat token, length, start, where the row's blocks begin in `blocks`."""
        return np.stack(
            (self._ends - self._lengths, self._lengths, self._starts, self._tables),
            axis=1,
            dtype=np.int32,
            casting="unsafe",
        )

    @property
    def lengths(self) -> NDArray[np.int32]:
        """[rows]: tokens of each row in this step."""
        return self._lengths

    @property
    def contexts(self) -> NDArray[np.int32]:
        """[rows]: positions that each row's last token sees, itself included."""
        return self._starts + self._lengths

    def slots(self, block_size: int) -> NDArray[np.int32]:
        """[tokens]: the cache slots of the tokens."""
        tables = np.repeat(self._tables, self._lengths)
        own = self.blocks[tables + self.positions // block_size]
        return slots_at(own, self.positions, block_size)


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return ids.array if isinstance(ids, BlockIds) else np.array(ids, dtype=np.int32)


def chunks_of(rows: Sequence[PlannedRow]) -> list[Chunk]:
    """The place of each row's tokens in the flat batch."""
    chunks: list[Chunk] = []
    first = 0
    for row in rows:
        chunks.append(Chunk(first, row.start, len(row.token_ids), row.block_ids))
        first += len(row.token_ids)
    return chunks
