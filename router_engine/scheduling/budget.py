"""Owns one step while it is put together: who takes part, within the token budget."""

from __future__ import annotations

from router_engine.scheduling.ensembles import seats_of
from router_engine.scheduling.plan import PlannedRow, StepPlan
from router_engine.scheduling.state import RequestState


class StepDraft:
    """Chunks by request; a request that is preempted meanwhile gives its tokens back."""

    def __init__(self, max_tokens: int) -> None:
        self.tokens_left = max_tokens
        self.stalled: list[RequestState] = []  # found no blocks; their seniors hold them
        self._chunks: dict[str, tuple[RequestState, int]] = {}  # (request, stop position)

    def chunk_stop(self, state: RequestState) -> int:
        """How far `state` may be computed within what is left of the budget.

        A prompt that is read as a whole takes what it needs: it would wait for ever for a budget
        that is smaller.
        """
        within = state.num_computed + self.tokens_left
        if state.lacks_prompt_gates:
            within = max(within, state.num_prompt)
        return min(within, state.computable_until)

    def add(self, state: RequestState, stop: int) -> None:
        self._chunks[state.request_id] = (state, stop)
        self.tokens_left -= stop - state.num_computed

    def discard(self, state: RequestState) -> None:
        """Take a chunk out again; call it before `num_computed` changes."""
        chunk = self._chunks.pop(state.request_id, None)
        if chunk is not None:
            self.tokens_left += chunk[1] - state.num_computed

    def plan(self) -> StepPlan | None:
        seats = seats_of(self._chunks)
        rows = tuple(
            PlannedRow.of(state, stop, seats.get(name))
            for name, (state, stop) in self._chunks.items()
        )
        return StepPlan(rows) if rows else None
