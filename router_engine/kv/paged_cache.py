"""The KV cache's storage: one key and one value tensor a layer, addressed by slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.config import CacheConfig


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token takes of the cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def num_blocks_for(config: CacheConfig, shape: KVShape, dtype: torch.dtype) -> int:
    """Blocks that the configured memory holds, or the configured number."""
    if config.num_blocks is not None:
        return config.num_blocks
    assert config.memory_bytes is not None, "it is open on a GPU alone, and settled there"
    block_bytes = config.block_size * shape.bytes_per_token(dtype)
    blocks = config.memory_bytes // block_bytes
    if blocks < 1:
        raise ValueError(
            f"KV cache memory of {config.memory_bytes} bytes is below one block "
            f"({block_bytes} bytes): raise memory_bytes"
        )
    return int(blocks)


class PagedCache:
    """Slot s holds the token at offset s % block_size of block s // block_size.

    keys[layer], values[layer]: [num_blocks * block_size, kv_heads, head_dim]. Which request owns
    which block is `kv.block_pool`'s business.
    """

    def __init__(
        self,
        shape: KVShape,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.when_resized: list[Callable[[], None]] = []  # of those who keep addresses
        self._width = (shape.num_kv_heads, shape.head_dim)
        like = torch.empty(0, *self._width, dtype=dtype, device=device)
        self.keys = [self._zeros(like) for _ in range(shape.num_layers)]
        self.values = [self._zeros(like) for _ in range(shape.num_layers)]

    def resize(self, num_blocks: int) -> None:
        """Hold so many blocks, empty ones. The tensors stay the same objects, elsewhere."""
        self.num_blocks = num_blocks
        stores = (*self.keys, *self.values)
        for store in stores:
            store.data = store.new_empty(0, *self._width)  # before anything is taken
        for store in stores:
            store.data = self._zeros(store)
        for tell in self.when_resized:
            tell()

    def _zeros(self, like: Tensor) -> Tensor:
        """Not `empty`: a masked slot must not hold a NaN that 0 * NaN would spread."""
        return like.new_zeros(self.num_blocks * self.block_size, *self._width)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store the step's tokens: slots [tokens]; key, value [tokens, kv_heads, head_dim]."""
        self.keys[layer].index_copy_(0, slots, key)
        self.values[layer].index_copy_(0, slots, value)

    def close(self) -> None:
        """Let go of the memory, whoever still holds this: the traceback of an error may."""
        self.keys, self.values = [], []

    @contextmanager
    def borrowed(self, blocks: int) -> Iterator[None]:
        """Within it the first `blocks` may be written; afterwards they hold what they held."""
        stores = (*self.keys, *self.values)
        held = [store[: blocks * self.block_size].clone() for store in stores]
        try:
            yield
        finally:
            for store, before in zip(stores, held, strict=True):
                store[: len(before)].copy_(before)
