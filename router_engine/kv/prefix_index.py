"""Owns the keys under which full blocks are shared: tokens and mixture, chained from the start."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Sequence
from typing import Protocol

from adapters_store.types import ZEROS, Combination
from router_engine.kv.block_pool import BlockPool
from router_engine.sparse_weights import SparseWeights


class WeightsByPosition(Protocol):
    """What a key needs of a weights history: runs of (number of tokens, weights)."""

    def between(self, start: int, stop: int) -> tuple[tuple[int, SparseWeights], ...]: ...


class BlockKeys:
    """The key chain of one request, computed once per block.

    key_i = sha256(key_{i-1}, tokens of block i, mixture in force at each of them), so two requests
    have equal keys exactly when their KV is equal, whoever chose the weights. `salt` is the digest
    of what else KV depends on, such as a router inside the layers; b"" for nothing.
    """

    __slots__ = ("_keys", "_memo", "_names", "_prefix", "_root", "block_size", "published")

    def __init__(
        self,
        block_size: int,
        digests: Sequence[str],
        combination: Combination,
        salt: bytes = b"",
    ) -> None:
        self.block_size = block_size
        self._names = [digest.encode() for digest in digests]
        self._prefix = combination.encode() + b"|"
        self._root = hashlib.sha256(salt).digest()
        self._keys: list[bytes] = []
        # By block: of what the request has computed itself and others could find, ever: its blocks
        # may have been released since, or hold another's content. No more than the pool's blocks.
        self.published: dict[int, bytes] = {}
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
            self._memo = (weights, self._key_of(weights))
        return self._memo[1]

    def _key_of(self, weights: SparseWeights) -> bytes:
        """`mixture_key` of these weights; of many tokens in a row, so it wastes no time."""
        packed = struct.pack(f"<{len(weights.values)}f", *weights.values)
        parts = [
            self._names[column] + packed[at : at + 4]
            for column, at in zip(weights.columns, range(0, len(packed), 4), strict=True)
            if packed[at : at + 4] not in ZEROS
        ]
        # Digests are of one length and each stands once: this is the order of the digests.
        parts.sort()
        return self._prefix + b"|".join(parts) if parts else b""


def longest_match(pool: BlockPool, keys: Sequence[bytes]) -> list[int]:
    """Blocks of the longest prefix of `keys` that the pool holds, owned or cached."""
    blocks: list[int] = []
    for key in keys:
        block = pool.find(key)
        if block is None:
            break
        blocks.append(block)
    return blocks
