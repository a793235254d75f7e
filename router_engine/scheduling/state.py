"""The state of one request. Only the scheduler changes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from router_engine.events import FinalEvent, FinishReason
from router_engine.kv.block_table import BlockTable
from router_engine.kv.prefix_index import BlockKeys
from router_engine.request import EngineRequest
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.fairness import Group
from router_engine.scheduling.observers import RequestObserver
from router_engine.scheduling.weights_history import WeightsHistory


class RequestStatus(StrEnum):
    WAITING_ADAPTERS = "waiting_adapters"  # some adapter is not on the device
    WAITING_WEIGHTS = "waiting_weights"  # owns no blocks, and its router has not answered
    WAITING = "waiting"  # could run; owns no blocks
    RUNNING = "running"  # may own blocks
    FINISHED = "finished"


@dataclass(slots=True)
class Turn:
    """A request's place in the order; an ensemble has one."""

    group: Group  # whose service it counts as
    was_admitted: bool = False
    overtaken: int = 0  # later requests that started while none waited longer than this one
    raised_to: int | None = None  # the level that it goes with, once it was overtaken too often

    @property
    def goes_on(self) -> bool:
        """Whether it goes before those of its level that have yet to start."""
        return self.was_admitted or self.raised_to is not None


@dataclass(slots=True)
class RequestUsage:
    """What a request has had, for its final event."""

    arrival_time: float  # seconds on the scheduler's clock
    first_scheduled_time: float | None = None
    num_cached_tokens: int = 0  # of the prompt, when it was admitted
    num_preemptions: int = 0


@dataclass(slots=True)
class PendingQueries:
    """What the token router of a request has been told and has yet to answer."""

    lengths: deque[int]  # of the texts that it has yet to answer on, in tokens, oldest first
    num_routed_tokens: int  # tokens of the text that it has been told


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The sequences of one request, which share tokens, turn and status."""

    members: tuple[RequestState, ...]

    @property
    def head(self) -> RequestState:
        """The member that is the request to all others."""
        return self.members[0]


@dataclass(slots=True, eq=False)
class RequestState:
    """One sequence: the first `num_computed` of its `tokens` have valid KV."""

    request: EngineRequest
    arrival: int  # order of submission
    tokens: list[int]  # prompt and generated
    status: RequestStatus
    block_table: BlockTable
    block_keys: BlockKeys
    weights_history: WeightsHistory
    turn: Turn
    usage: RequestUsage
    layer_routing: LayerRoutingParams | None = None  # where weights arise inside the layers
    queries: PendingQueries | None = None  # where a token router makes them
    observers: tuple[RequestObserver, ...] = ()  # of features that watch what it computes
    ensemble: Ensemble | None = None
    num_computed: int = 0
    num_prompt: int = field(init=False)  # tokens; asked for several times a step

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt_token_ids)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def head(self) -> RequestState:
        """The member that stands for its ensemble; itself where there is none."""
        return self if self.ensemble is None else self.ensemble.members[0]

    @property
    def members(self) -> tuple[RequestState, ...]:
        """All sequences of the request."""
        return (self,) if self.ensemble is None else self.ensemble.members

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def recomputes(self) -> bool:
        routing = self.request.routing
        return routing is not None and routing.context == "recompute"

    @property
    def lacks_weights(self) -> bool:
        """The last token's weights have not come yet."""
        return self.weights_history.known_until < len(self.tokens)

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether the prompt has to be computed in one step: an observer reads all of it."""
        return bool(self.observers) and any(each.needs_whole_prompt for each in self.observers)

    @property
    def computable_until(self) -> int:
        """How many tokens can have KV after the next step, were it unbounded.

        A request that recomputes waits for its newest weights: KV under older ones is useless.
        """
        if self.lacks_weights and self.recomputes:
            return self.num_computed
        return min(len(self.tokens), self.weights_history.known_until)

    @property
    def num_runnable(self) -> int:
        """Tokens that could be computed now."""
        return self.computable_until - self.num_computed

    @property
    def is_runnable(self) -> bool:
        return self.num_runnable > 0

    def weights_at_yield(self, index: int) -> tuple[float, ...]:
        """Weights of the pass that yielded generated token `index`; () where layers chose them."""
        if self.layer_routing is not None:
            return ()
        return self.weights_history.at(self.num_prompt + index - 1).dense

    def final_event(
        self,
        reason: FinishReason,
        now: float,
        *,
        error: str | None = None,
        stop_token_id: int | None = None,
    ) -> FinalEvent:
        """The event that ends the request. now: seconds on the scheduler's clock."""
        usage = self.usage
        started = now if usage.first_scheduled_time is None else usage.first_scheduled_time
        event = FinalEvent(
            self.request_id,
            reason,
            error,
            stop_token_id,
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=usage.num_cached_tokens,
            num_generated_tokens=self.num_generated,
            num_preemptions=usage.num_preemptions,
            queue_seconds=started - usage.arrival_time,
        )
        for observer in self.observers:
            event = observer.report(event)
        return event


@dataclass(slots=True)
class SchedulerCounters:
    """Since the start. `submitted` = `ended` + live sequences: an ensemble counts by members."""

    submitted: int = 0
    ended: int = 0
    prompt_tokens: int = 0  # computed; what the prefix cache gave is not counted
    generated_tokens: int = 0
    preemptions: int = 0
    shrunk: int = 0  # steps that found no memory on the device


@dataclass(frozen=True, slots=True)
class SchedulerGauges:
    """Live sequences by what they are doing."""

    running: int
    waiting: int  # could run, and own no blocks
    waiting_for_adapters: int
    waiting_for_weights: int  # running ones that sit out included

    @classmethod
    def from_states(
        cls, live: Iterable[RequestState], running: int, waiting: int
    ) -> SchedulerGauges:
        """Counts what the states of the live sequences tell."""
        loading = unsure = 0
        for state in live:
            if state.status is RequestStatus.WAITING_ADAPTERS:
                loading += 1
            elif state.lacks_weights:
                unsure += 1
        return cls(running, waiting, loading, unsure)
