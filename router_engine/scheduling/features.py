"""Opens the observers that a request needs, and hands each step's output to them."""

from __future__ import annotations

from collections.abc import Iterable

from router_engine.request import EngineRequest
from router_engine.scheduling.gate_statistics import GateSums
from router_engine.scheduling.hidden_means import RunningMeans
from router_engine.scheduling.observers import RequestObserver
from router_engine.scheduling.plan import PlannedRow, StepOutput
from router_engine.scheduling.prompt_gates import WholePromptGates

Observers = tuple[RequestObserver, ...]
ReadRow = tuple[PlannedRow, slice, Observers]  # (row, where its tokens lie in the step, whose)


class Features:
    """The only list of them: a further feature is a module with an observer, and a line here."""

    def __init__(self, block_size: int) -> None:
        self.means = RunningMeans(block_size)

    def open(self, request: EngineRequest) -> Observers:
        """The observers of a new request; () for one that asks for nothing."""
        observers: Observers = ()
        if request.reads_hidden_states:
            is_told = request.reports.hidden_mean
            observers += (self.means.open(request.request_id, is_reported=is_told),)
        if request.reports.gates:
            observers += (GateSums(request.adapters),)
        return observers

    def open_for_adapters(self, request: EngineRequest, *, reads_whole_prompt: bool) -> Observers:
        """Further ones, once it is known what the request's adapters hold.

        reads_whole_prompt: some of them have gating networks of whole prompts.
        """
        return (WholePromptGates(request.request_id),) if reads_whole_prompt else ()

    def read(self, rows: Iterable[ReadRow], out: StepOutput) -> None:
        """What a step has computed of rows that go on; nothing is done in a step of plain ones."""
        if out.hidden_states is None and out.gates is None:
            return
        for row, tokens, observers in rows:
            for observer in observers:
                observer.read(row.start, tokens, out)
        self.means.flush()
