"""Owns the KV blocks' reference counts and keys; does not know what a block holds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType


class BlockPool:
    """Block ids 0..num_blocks-1, each in exactly one of three places.

    free:   nobody uses it and it holds nothing;
    owned:  `references(block) > 0` requests use it, with or without a key;
    cached: nobody uses it, but its KV is kept under its key until the space is needed.

    Cached blocks are evicted least recently released first, and only when no block is free.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a pool needs at least 1")
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._references = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(self._free)

    @property
    def cached(self) -> tuple[int, ...]:
        """Least recently released first."""
        return tuple(self._cached)

    @property
    def keys(self) -> Mapping[int, bytes]:
        """Block id -> key, of owned and cached blocks."""
        return MappingProxyType(self._key_of)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """How many blocks `allocate` can give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - self.num_available

    def references(self, block: int) -> int:
        return self._references[block]

    def is_cached(self, block: int) -> bool:
        return block in self._cached

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; raises ValueError past `num_available`."""
        if count > self.num_available:
            raise ValueError(f"{count} blocks asked for, {self.num_available} available")
        return [self._take() for _ in range(count)]

    def share(self, block: int) -> None:
        """Add a reference to a block that has a key."""
        if block not in self._key_of:
            raise ValueError(f"block {block} has no key, so it cannot be shared")
        self._cached.pop(block, None)
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each; those without references left become cached or free."""
        for block in blocks:
            if self._references[block] < 1:
                raise ValueError(f"block {block} is released more often than it was taken")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._put_away(block)

    def publish(self, block: int, key: bytes) -> bool:
        """Make an owned block findable; returns whether it became so now.

        The first block under a key stays; later ones are not found.
        """
        if self._references[block] < 1:
            raise ValueError(f"block {block} is not owned, so its content is not known")
        if block in self._key_of or key in self._block_of:
            return False
        self._key_of[block] = key
        self._block_of[key] = block
        return True

    def retract(self, block: int) -> None:
        """Make an owned or cached block one that nobody finds; an owned one may be so already.

        Whoever owns it keeps it; a cached one becomes free.
        """
        if self._references[block] < 1 and block not in self._cached:
            raise ValueError(f"block {block} is not owned or cached, so it holds nothing")
        if block in self._key_of:
            del self._block_of[self._key_of.pop(block)]
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._references[block] = 1
        return block

    def _put_away(self, block: int) -> None:
        if block in self._key_of:
            self._cached[block] = None
        else:
            self._free.append(block)
