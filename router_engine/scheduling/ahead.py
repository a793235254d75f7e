"""Plans a step while the one before it still runs: its tokens are drawn by then, on the device.

Only where nothing that the results may say can change who takes part, but for requests that end:
the rows of those are void, as `Scheduler.update` sees it.
"""

from __future__ import annotations

from router_engine.scheduling.kv_blocks import KVBlockManager
from router_engine.scheduling.plan import PlannedRow, StepPlan
from router_engine.scheduling.planner import StepPlanner
from router_engine.scheduling.state import RequestState

_NOT_KNOWN = 0  # stands for a token that the device has, and the host does not


class AheadPlanner:
    """Lets every request of a step decode once more, or nobody."""

    def __init__(self, planner: StepPlanner, kv_blocks: KVBlockManager, max_model_len: int) -> None:
        self._planner = planner
        self._kv_blocks = kv_blocks
        self._max_model_len = max_model_len

    def plan(self, running: StepPlan) -> StepPlan | None:
        """The step behind `running`; None where it has to wait for what that one yields.

        `Scheduler.update` is to be called for both, in their order, before `schedule` is again.
        """
        if self._planner.may_admit:
            return None
        rows = {row.arrival: (index, row) for index, row in enumerate(running.rows)}
        going_on: list[tuple[int, RequestState]] = []
        for state in self._planner.running.values():
            index, row = rows.get(state.arrival, (0, None))
            if row is None and not state.is_runnable:
                continue  # its weights have yet to come
            if row is None or not _is_settled(state, row):
                return None
            if not self._ends(state):
                going_on.append((index, state))
        if not going_on or not self._find_blocks([state for _, state in going_on]):
            return None
        planned = tuple(_row(state) for _, state in going_on)
        return StepPlan(planned, fed=tuple(index for index, _ in going_on))

    def _ends(self, state: RequestState) -> bool:
        """Whether the token that is being drawn is the last, whatever it is."""
        generated, length = state.num_generated + 1, len(state.tokens) + 1
        return generated >= state.request.sampling.max_new_tokens or length >= self._max_model_len

    def _find_blocks(self, states: list[RequestState]) -> bool:
        """Room for a token more of each, where nobody has to give way for it."""
        missing = sum(state.block_table.missing(len(state.tokens) + 1) for state in states)
        if missing > self._kv_blocks.pool.num_available:
            return False
        for state in states:
            self._kv_blocks.grow(state, len(state.tokens) + 1)
        return True


def _is_settled(state: RequestState, row: PlannedRow) -> bool:
    """Whether all that the next pass of a request needs is known, but for its token.

    Not where the draw depends on the tokens before, where something watches what is computed or
    is told of it, where weights come with the results or replace those of before, or where members
    wait for one another.
    """
    request = state.request
    return (
        row.samples_token
        and state.ensemble is None
        and not state.observers
        and state.layer_routing is None
        and not state.recomputes
        and not request.is_background
        and not request.sampling.is_penalised
        and not request.sampling.report_entropy
        and state.weights_history.known_until > len(state.tokens)
    )


def _row(state: RequestState) -> PlannedRow:
    start = len(state.tokens)
    return PlannedRow(
        state.request,
        state.arrival,
        (_NOT_KNOWN,),
        start,
        state.block_table.snapshot,
        needs_logits=True,
        weight_runs=state.weights_history.between(start, start + 1),
        known_tokens=state.tokens,
        unknown=1,
    )
