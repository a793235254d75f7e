"""What the scheduler knows of one request. Only the scheduler changes it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from router_engine.events import FinalEvent, FinishReason
from router_engine.kv.block_table import BlockTable
from router_engine.kv.prefix_index import BlockKeys
from router_engine.request import EngineRequest
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.gate_statistics import GateSums, GateValues, PromptGates
from router_engine.scheduling.hidden_means import RunningMean
from router_engine.scheduling.weights_history import WeightsHistory


class RequestStatus(StrEnum):
    WAITING_ADAPTERS = "waiting_adapters"  # some adapter is not on the device
    WAITING_WEIGHTS = "waiting_weights"  # owns no blocks, and its router has not answered
    WAITING = "waiting"  # could run; owns no blocks
    RUNNING = "running"  # may own blocks
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class RequestState:
    """`tokens` are prompt and generated tokens; the first `num_computed` have valid KV."""

    request: EngineRequest
    arrival: int  # order of submission
    arrival_time: float  # seconds on the scheduler's clock
    block_table: BlockTable
    block_keys: BlockKeys
    weights_history: WeightsHistory
    tokens: list[int]
    status: RequestStatus
    num_computed: int = 0
    num_routed_tokens: int = 0  # tokens that the router knows of
    pending_queries: deque[int] = field(
        default_factory=deque
    )  # lengths of text it has yet to answer on
    running_mean: RunningMean | None = None  # of a probed request
    gate_sums: GateSums | None = None  # of one that reports gates
    admitted: bool = False
    overtaken: int = 0  # later requests that started while none waited longer than this one
    raised_to: int | None = None  # the level that it goes with, once it was overtaken too often
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    # Key by block of what it has computed itself and others could find, ever: its blocks may have
    # been released since, or hold another's content. No more entries than the pool has blocks.
    published: dict[int, bytes] = field(default_factory=dict)
    first_scheduled_time: float | None = None
    group: str = ""  # whose service it counts as
    gate: LayerRoutingParams | None = None  # where weights arise inside the layers
    reads_whole_prompt: bool = False  # some adapter has routers of whole prompts
    prompt_gates: PromptGates | None = None  # theirs, once the prompt is computed
    # An ensemble's members share `tokens` and status; its first is the request to all others.
    parent: RequestState | None = None  # of a follower
    children: tuple[RequestState, ...] = ()  # of a lead
    num_prompt: int = field(init=False)  # tokens; asked for several times a step

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt_token_ids)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def goes_on(self) -> bool:
        """Whether it goes before those of its level that have yet to start."""
        return self.admitted or self.raised_to is not None

    @property
    def head(self) -> RequestState:
        """Who stands for its ensemble; itself where there is none."""
        return self if self.parent is None else self.parent

    @property
    def members(self) -> tuple[RequestState, ...]:
        """All sequences of a head's request."""
        return (self, *self.children)

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
    def lacks_prompt_gates(self) -> bool:
        """The prompt has to be computed in one step: its gates are of all its tokens."""
        return self.reads_whole_prompt and self.prompt_gates is None

    @property
    def computable_until(self) -> int:
        """How many tokens can have KV after the next step, were it unbounded.

        A request that recomputes waits for its newest weights: KV under older ones is useless.
        """
        if self.lacks_weights and self.recomputes:
            return self.num_computed
        until = min(len(self.tokens), self.weights_history.known_until)
        if self.lacks_prompt_gates and until < self.num_prompt:
            return self.num_computed
        return until

    @property
    def num_runnable(self) -> int:
        """Tokens that could be computed now."""
        return self.computable_until - self.num_computed

    @property
    def is_runnable(self) -> bool:
        return self.num_runnable > 0

    def read_gates(self, start: int, gates: GateValues, tokens: slice) -> None:
        """Take in what the routers said of the step's `tokens`, at positions from `start` on."""
        if self.lacks_prompt_gates:
            self.prompt_gates = gates.of_prompts[self.request_id]
        if self.gate_sums is not None:
            self.gate_sums.add(start, gates, tokens)

    def weights_at_yield(self, index: int) -> tuple[float, ...]:
        """Weights of the pass that yielded generated token `index`; () where layers chose them."""
        if self.gate is not None:
            return ()
        return self.weights_history.at(self.num_prompt + index - 1).dense

    def _hidden(self) -> tuple[float, ...]:
        if not self.request.report_hidden or self.running_mean is None:
            return ()
        mean = self.running_mean.mean()
        return () if mean is None else tuple(mean.tolist())

    def final_event(
        self,
        reason: FinishReason,
        now: float,
        *,
        error: str | None = None,
        stop_token_id: int | None = None,
    ) -> FinalEvent:
        started = now if self.first_scheduled_time is None else self.first_scheduled_time
        return FinalEvent(
            self.request_id,
            reason,
            error,
            stop_token_id,
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=self.num_generated,
            num_preemptions=self.num_preemptions,
            queue_seconds=started - self.arrival_time,
            hidden=self._hidden(),
            gates=() if self.gate_sums is None else self.gate_sums.statistics(),
        )
