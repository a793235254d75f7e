"""Owns the gates of one request whose adapters have gating networks of whole prompts."""

from __future__ import annotations

from router_engine.scheduling.observers import RequestObserver
from router_engine.scheduling.plan import PlannedRow, PromptGates, StepOutput


class WholePromptGates(RequestObserver):
    """Found in the one step that holds the whole prompt, and in force for all that follows.

    Blocks are neither shared nor searched for: KV depends on tokens behind them.
    """

    __slots__ = ("_request_id", "values")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self.values: PromptGates | None = None  # None: the prompt has yet to be computed

    @property
    def shares_blocks(self) -> bool:
        return False

    @property
    def searches_blocks(self) -> bool:
        return False

    @property
    def needs_whole_prompt(self) -> bool:
        return self.values is None

    def read(self, start: int, tokens: slice, out: StepOutput) -> None:
        """See `RequestObserver.read`."""
        if self.values is None and out.gates is not None:
            self.values = out.gates.of_prompts[self._request_id]

    def restart(self) -> None:
        """See `RequestObserver.restart`."""
        self.values = None


def whole_prompt_gates(row: PlannedRow) -> WholePromptGates | None:
    """Those of a row's request; None where no adapter has gating networks of whole prompts."""
    for observer in row.observers:
        if isinstance(observer, WholePromptGates):
            return observer
    return None
