"""Owns the keys under which full blocks are shared: tokens and mixture, chained from the start."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Protocol

from adapters_store.types import Combination, mixture_key
from router_engine.kv.block_pool import BlockPool
from router_engine.sparse import SparseWeights


class WeightsByPosition(Protocol):
    """What a key needs of a weights history: runs of (number of tokens, weights)."""

    def between(self, start: int, stop: int) -> tuple[tuple[int, SparseWeights], ...]: ...


class BlockKeys:
    """The key chain of one request, computed once per block.

    key_i = sha256(key_{i-1}, tokens of block i, mixture in force at each of them), so two requests
    have equal keys exactly when their KV is equal, whoever chose the weights. `salt` is the digest
    of what else KV depends on, such as a router inside the layers; b"" for nothing.
    """

    __slots__ = ("_combination", "_digests", "_keys", "_memo", "_root", "block_size")

    def __init__(
        self,
        block_size: int,
        digests: Sequence[str],
        combination: Combination,
        salt: bytes = b"",
    ) -> None:
        self.block_size = block_size
        self._digests = tuple(digests)
        self._combination = combination
        self._root = hashlib.sha256(salt).digest()
        self._keys: list[bytes] = []
        self._memo: tuple[SparseWeights, bytes] | None = None

    def reset(self) -> None:
        """Forget the chain, since the weights of known positions have changed."""
        self._keys = []

    def first(
        self, num_blocks: int, token_ids: Sequence[int], weights: WeightsByPosition
    ) -> list[bytes]:
        """Keys of the first `num_blocks` blocks; tokens and weights must cover them."""
        for index in range(len(self._keys), num_blocks):
            start, stop = index * self.block_size, (index + 1) * self.block_size
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(
                self._key(parent, token_ids[start:stop], weights.between(start, stop))
            )
        return self._keys[:num_blocks]

    def _key(
        self, parent: bytes, token_ids: Sequence[int], runs: Sequence[tuple[int, SparseWeights]]
    ) -> bytes:
        block = hashlib.sha256(parent)
        block.update(array("q", token_ids).tobytes())
        for length, mixture in self._mixtures(runs):
            block.update(array("q", (length, len(mixture))).tobytes())
            block.update(mixture)
        return block.digest()

    def _mixtures(self, runs: Sequence[tuple[int, SparseWeights]]) -> list[tuple[int, bytes]]:
        """Runs of equal canonical mixtures: weights that differ only in dropped zeros are equal."""
        merged: list[tuple[int, bytes]] = []
        for length, weights in runs:
            mixture = self._mixture(weights)
            if merged and merged[-1][1] == mixture:
                length += merged.pop()[0]
            merged.append((length, mixture))
        return merged

    def _mixture(self, weights: SparseWeights) -> bytes:
        if self._memo is None or self._memo[0] != weights:
            by_digest = {self._digests[column]: weight for column, weight in weights.items()}
            self._memo = (weights, mixture_key(by_digest, self._combination))
        return self._memo[1]


def longest_match(pool: BlockPool, keys: Sequence[bytes]) -> list[int]:
    """Blocks of the longest prefix of `keys` that the pool holds, owned or cached."""
    blocks: list[int] = []
    for key in keys:
        block = pool.find(key)
        if block is None:
            break
        blocks.append(block)
    return blocks
