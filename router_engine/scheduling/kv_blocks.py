"""Owns the traffic between requests and the block pool: share, grow, publish, release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_engine.kv.block_pool import BlockPool
from router_engine.kv.block_table import BlockTable, blocks_for
from router_engine.kv.prefix_index import BlockKeys, longest_match
from router_engine.request import EngineRequest
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.hidden_means import Sum
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
        # By block, at its end: so that cached prompts are routed as fresh ones are. A probed
        # request finds only blocks that probed ones have published, each with its sum.
        self._sums: dict[int, Sum] = {}

    def new_table(self) -> BlockTable:
        return BlockTable(self.block_size)

    def new_keys(self, request: EngineRequest, gate: LayerRoutingParams | None) -> BlockKeys:
        salt = b"probed" if request.reads_hidden_states else b"" if gate is None else gate.key
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
        if state.running_mean is not None:
            state.running_mean.resume([self._sums[block] for block in shared])
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
        if not self._shares(state) or full == computed_before // self.block_size:
            return
        keys = state.block_keys.first(full, state.tokens, state.weights_history)
        for index in range(computed_before // self.block_size, full):
            block = state.block_table.block_ids[index]
            if state.running_mean is not None:
                self._sums[block] = state.running_mean.block_sums[index]
            if self.pool.publish(block, keys[index]):
                state.published[block] = keys[index]

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
        for block, key in state.published.items():
            # An evicted block has none or another's. Where that is equal it is lost, and no more.
            if self.pool.keys.get(block) == key:
                self.pool.retract(block)

    def _shares(self, state: RequestState) -> bool:
        """Whether others find its blocks: not where their KV depends on the tokens behind them."""
        return self.prefix_cache and not state.reads_whole_prompt

    def _searches(self, state: RequestState) -> bool:
        return self._shares(state) and state.gate_sums is None

    def _match(self, state: RequestState) -> list[int]:
        """Blocks that hold the first tokens' KV; at least one token is left to compute."""
        if not self._searches(state):
            return []
        known = min(len(state.tokens) - 1, state.weights_history.known_until)
        keys = state.block_keys.first(known // self.block_size, state.tokens, state.weights_history)
        return longest_match(self.pool, keys)
