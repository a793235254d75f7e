"""Owns the traffic between requests and the block pool: share, grow, publish, release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_engine.kv.block_pool import BlockPool
from router_engine.kv.block_table import BlockTable, blocks_for
from router_engine.kv.prefix_index import BlockKeys, longest_match
from router_engine.request import EngineRequest
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.state import RequestState


@dataclass(slots=True)
class PrefixCounters:
    """Tokens looked up in the prefix cache and found there, since the start."""

    queried: int = 0
    hit: int = 0


class KVBlockManager:
    """A block is published once its KV is computed, and shared by whoever has the same key."""

    def __init__(self, pool: BlockPool, block_size: int, *, prefix_cache: bool) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.prefix = PrefixCounters()

    def new_table(self) -> BlockTable:
        return BlockTable(self.block_size)

    def new_keys(
        self, request: EngineRequest, layer_routing: LayerRoutingParams | None
    ) -> BlockKeys:
        """The chain of keys of a new request: its own where adapters act from a layer on only."""
        salt = b"" if layer_routing is None else layer_routing.key
        if request.reads_hidden_states:
            salt = b"probed"
        return BlockKeys(self.block_size, request.adapters, request.combination, salt)

    def can_admit(self, states: Sequence[RequestState], *, reserve: int) -> bool:
        """Whether all their known tokens find blocks now, with `reserve` blocks to spare."""
        needed = sum(map(self._needed, states))
        return needed + reserve <= self.pool.num_available

    def _needed(self, state: RequestState) -> int:
        """Available blocks that the known tokens of `state` would take."""
        shared = self._match(state)
        fresh = blocks_for(len(state.tokens), self.block_size) - len(shared)
        return fresh + sum(map(self.pool.is_cached, shared))

    def attach(self, state: RequestState) -> int:
        """Give a request without blocks what the prefix cache has; returns the tokens found."""
        shared = self._match(state)
        for block in shared:
            self.pool.share(block)
        state.block_table.extend(shared)
        state.num_computed = len(shared) * self.block_size
        for observer in state.observers:
            observer.resume(shared)
        if self._searches(state):
            self.prefix.queried += len(state.tokens)
            self.prefix.hit += state.num_computed
        return state.num_computed

    def shortage(self, state: RequestState, stop: int) -> int:
        """Blocks lacking in the pool for `state` to be computed up to position `stop`."""
        return max(0, state.block_table.missing(stop) - self.pool.num_available)

    def grow(self, state: RequestState, stop: int) -> None:
        state.block_table.extend(self.pool.allocate(state.block_table.missing(stop)))

    def publish(self, state: RequestState, computed_before: int) -> None:
        """Make the blocks findable that were filled since `computed_before`."""
        full = state.num_computed // self.block_size
        if full == computed_before // self.block_size or not self._shares(state):
            return
        keys = state.block_keys.first(full, state.tokens, state.weights_history)
        for index in range(computed_before // self.block_size, full):
            block = state.block_table.block_ids[index]
            for observer in state.observers:
                observer.publish(index, block)
            if self.pool.publish(block, keys[index]):
                state.block_keys.published[block] = keys[index]

    def release(self, state: RequestState, *, is_kept: bool = True) -> None:
        """Take all blocks back; the request starts over if it goes on.

        is_kept: whether others may find what it has written, before it was preempted and under
        weights that were replaced too; what it found itself, they may.
        """
        if not is_kept:
            self._retract(state)
        self.pool.release(state.block_table.clear())
        state.num_computed = 0

    def _retract(self, state: RequestState) -> None:
        """Let nobody find what a request has published; whoever shares it keeps it."""
        for block, key in state.block_keys.published.items():
            # An evicted block has none or another's. Where that is equal it is lost, and no more.
            if self.pool.keys.get(block) == key:
                self.pool.retract(block)

    def _shares(self, state: RequestState) -> bool:
        """Whether others find its blocks."""
        observers = state.observers
        return self.prefix_cache and (not observers or all(o.shares_blocks for o in observers))

    def _searches(self, state: RequestState) -> bool:
        """Whether it may use the blocks of others."""
        observers = state.observers
        return self.prefix_cache and (not observers or all(o.searches_blocks for o in observers))

    def _match(self, state: RequestState) -> list[int]:
        """Blocks that hold the first tokens' KV; at least one token is left to compute."""
        if not self._searches(state):
            return []
        until = min(len(state.tokens) - 1, state.weights_history.known_until)
        keys = state.block_keys.first(until // self.block_size, state.tokens, state.weights_history)
        return longest_match(self.pool, keys)
