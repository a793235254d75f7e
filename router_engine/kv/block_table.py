"""Owns which blocks hold one request's KV, in the order of its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


def blocks_for(num_tokens: int, block_size: int) -> int:
    """How many blocks hold the KV of `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockIds(tuple[int, ...]):
    """The blocks of a request in a step. The same object in each, until a block comes or goes."""

    @cached_property
    def array(self) -> NDArray[np.int32]:
        return np.array(self, dtype=np.int32)


class BlockTable:
    """Token at position p lives in block `block_ids[p // block_size]`, at `p % block_size`."""

    __slots__ = ("_snapshot", "block_ids", "block_size")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.block_ids: list[int] = []
        self._snapshot: BlockIds | None = None

    def __len__(self) -> int:
        return len(self.block_ids)

    @property
    def snapshot(self) -> BlockIds:
        """What it holds now."""
        if self._snapshot is None:
            self._snapshot = BlockIds(self.block_ids)
        return self._snapshot

    @property
    def capacity(self) -> int:
        """Tokens that the blocks hold."""
        return len(self.block_ids) * self.block_size

    def missing(self, num_tokens: int) -> int:
        """How many more blocks `num_tokens` tokens need."""
        return max(0, blocks_for(num_tokens, self.block_size) - len(self.block_ids))

    def extend(self, block_ids: Iterable[int]) -> None:
        self.block_ids.extend(block_ids)
        self._snapshot = None

    def clear(self) -> list[int]:
        """Empty the table; returns its blocks, last first.

        A cached block is of use only while those before it are, so the last must be evicted first.
        """
        blocks = self.block_ids[::-1]
        self.block_ids = []
        self._snapshot = None
        return blocks
