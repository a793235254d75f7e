"""Owns one step while it is put together: who takes part, within the token budget."""

from __future__ import annotations

from router_engine.config import SchedulerConfig
from router_engine.scheduling.ensembles import ensemble_members_of
from router_engine.scheduling.plan import EnsembleMember, PlannedRow, StepPlan
from router_engine.scheduling.state import RequestState


class StepBuilder:
    """Chunks by request; a request that is preempted meanwhile gives its tokens back."""

    def __init__(self, max_tokens: int, background_tokens: int) -> None:
        self.tokens_left = max_tokens
        self._background_left = background_tokens
        self.stalled: list[RequestState] = []  # found no blocks; their seniors hold them
        self._chunks: dict[str, tuple[RequestState, int]] = {}  # (request, stop position)
        self._has_ensembles = False

    @classmethod
    def from_config(cls, config: SchedulerConfig, tokens: int, *, is_idle: bool) -> StepBuilder:
        """tokens: of the step. is_idle: all that goes on is in the background."""
        beside, most = config.background_tokens_beside, config.background_tokens
        return cls(tokens, most if is_idle else beside)

    def has_room(self, state: RequestState) -> bool:
        """Whether the budget has a token left for a request."""
        return self._left(state) > 0

    @property
    def takes_background(self) -> bool:
        """Whether the budget has a token left for a request in the background."""
        return min(self.tokens_left, self._background_left) > 0

    def chunk_stop(self, state: RequestState) -> int:
        """How far `state` may be computed within what is left of the budget.

        A prompt that is read as a whole takes what it needs: it would wait for ever for a budget
        that is smaller.
        """
        within = state.num_computed + self._left(state)
        if state.needs_whole_prompt:
            within = max(within, state.num_prompt)
        return min(within, state.computable_until)

    def add(self, state: RequestState, stop: int) -> None:
        """Compute `state` up to position `stop`; its block table must cover that."""
        self._chunks[state.request_id] = (state, stop)
        self._has_ensembles = self._has_ensembles or state.ensemble is not None
        self._take(state, stop - state.num_computed)

    def discard(self, state: RequestState) -> None:
        """Take a chunk out again; call it before `num_computed` changes."""
        chunk = self._chunks.pop(state.request_id, None)
        if chunk is not None:
            self._take(state, state.num_computed - chunk[1])

    def plan(self) -> StepPlan | None:
        """The step; None where nobody takes part."""
        members = ensemble_members_of(self._chunks) if self._has_ensembles else {}
        rows = tuple(
            _row(state, stop, members.get(name)) for name, (state, stop) in self._chunks.items()
        )
        return StepPlan(rows) if rows else None

    def _left(self, state: RequestState) -> int:
        is_background = state.request.is_background
        return min(self.tokens_left, self._background_left) if is_background else self.tokens_left

    def _take(self, state: RequestState, tokens: int) -> None:
        self.tokens_left -= tokens
        if state.request.is_background:
            self._background_left -= tokens


def _row(state: RequestState, stop: int, member: EnsembleMember | None) -> PlannedRow:
    start = state.num_computed
    return PlannedRow(
        state.request,
        state.arrival,
        tuple(state.tokens[start:stop]),
        start,
        state.block_table.snapshot,
        stop == len(state.tokens),
        state.weights_history.between(start, stop),
        state.tokens,
        state.layer_routing,
        member,
        state.observers,
    )
