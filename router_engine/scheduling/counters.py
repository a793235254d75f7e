"""What the scheduler counts, for whoever watches it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router_engine.scheduling.state import RequestState, RequestStatus


@dataclass(slots=True)
class SchedulerCounters:
    """Since the start. `submitted` = `ended` + live sequences: an ensemble counts by members."""

    submitted: int = 0
    ended: int = 0
    prompt_tokens: int = 0  # computed; what the prefix cache gave is not counted
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerGauges:
    """Live sequences by what they are doing; `waiting` could run and own no blocks."""

    running: int
    waiting: int
    waiting_for_adapters: int
    waiting_for_weights: int  # running ones that sit out included

    @classmethod
    def of(cls, live: Iterable[RequestState], running: int, waiting: int) -> SchedulerGauges:
        """Counts what the states of the live sequences tell."""
        loading = unsure = 0
        for state in live:
            if state.status is RequestStatus.WAITING_ADAPTERS:
                loading += 1
            elif state.lacks_weights:
                unsure += 1
        return cls(running, waiting, loading, unsure)
