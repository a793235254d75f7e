"""Owns every live request and decides which tokens run in the next step.

There is no prefill phase and no decode phase: each request's computed tokens catch up with its
known tokens, under one token budget. One thread calls everything here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from router_engine.config import SchedulerConfig
from router_engine.errors import RequestRefusedError
from router_engine.events import EngineEvent, FinalEvent, FinishReason, TokenEvent
from router_engine.kv.block_pool import BlockPool
from router_engine.request import EngineRequest
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.ahead import AheadPlanner
from router_engine.scheduling.ensembles import join, member_requests
from router_engine.scheduling.fairness import ServiceCounters, group_of
from router_engine.scheduling.features import Features
from router_engine.scheduling.kv_blocks import KVBlockManager
from router_engine.scheduling.plan import PlannedRow, SampledToken, StepOutput, StepPlan
from router_engine.scheduling.planner import StepPlanner
from router_engine.scheduling.request_validation import NOT_FINITE, Limits, refusal
from router_engine.scheduling.router_queries import DueQueries, RouterQueries
from router_engine.scheduling.state import (
    RequestState,
    RequestStatus,
    RequestUsage,
    SchedulerCounters,
    SchedulerGauges,
    Turn,
)
from router_engine.scheduling.weights_history import WeightsHistory
from router_engine.sparse_weights import SparseWeights


class Scheduler:
    """`plan = schedule(); out = run(plan); events = update(plan, out)`, over and over."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        block_size: int,
        max_model_len: int,
        vocab_size: int = 1 << 31,
        prefix_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(config.max_step_tokens, config.max_running, config.max_overtaken) < 1:
            raise ValueError(f"{config}: its bounds must be at least 1")
        self.config = config
        self.counters = SchedulerCounters()
        self.service = ServiceCounters()
        self._features = Features(block_size)
        self._queries = RouterQueries(self._features.means)
        self.kv_blocks = KVBlockManager(pool, block_size, prefix_cache=prefix_cache)
        self.limits = Limits(
            max_model_len, block_size, pool.num_blocks, config.max_running, vocab_size
        )
        self._clock = clock
        self._live: dict[str, RequestState] = {}
        self._num_background = 0  # of them
        self.planner = StepPlanner(
            config, self.kv_blocks, self.service, self._queries, self.counters
        )
        self.ahead = AheadPlanner(self.planner, self.kv_blocks, max_model_len)
        self._finished: list[EngineRequest] = []
        self._idle = False  # the last `schedule` found nobody, and nothing has changed since

    @property
    def live(self) -> Mapping[str, RequestState]:
        """Sequences whose request has not had its final event, by id: ensembles have several."""
        return MappingProxyType(self._live)

    @property
    def running(self) -> tuple[RequestState, ...]:
        return tuple(self.planner.running.values())

    @property
    def waiting(self) -> tuple[RequestState, ...]:
        return tuple(self.planner.queue)

    @property
    def has_runnable(self) -> bool:
        """Whether `schedule` may find something: False once it did not, until something changes."""
        if self._idle:
            return False
        return len(self.planner.queue) > 0 or any(
            s.is_runnable for s in self.planner.running.values()
        )

    @property
    def gauges(self) -> SchedulerGauges:
        return SchedulerGauges.from_states(
            self._live.values(), len(self.planner.running), len(self.planner.queue)
        )

    # Coming and going

    def add(
        self, request: EngineRequest, layer_routing: LayerRoutingParams | None = None
    ) -> FinalEvent | None:
        """Take a request on; a final event if it can never run.

        layer_routing: what its layers compute where weights arise inside them. One with adapters
        waits for `adapters_ready`, one with a token router for `set_weights` too. Raises
        RequestRefusedError if a live request has this id: an event would end that one.
        """
        requests = member_requests(request)
        for each in requests:
            if each.request_id in self._live:
                raise RequestRefusedError(f"request_id {each.request_id!r} is live: use another")
        error = refusal(request, self.limits)
        if error is not None:
            size = len(request.prompt_token_ids)
            reason = FinishReason.REFUSED
            return FinalEvent(request.request_id, reason, error, num_prompt_tokens=size)
        states = [self._enter(each, layer_routing) for each in requests]
        if len(states) > 1:
            join(states)
        if not request.adapters:
            self._park(states[0])
        return None

    def adapters_ready(self, request_id: str, *, reads_whole_prompt: bool = False) -> None:
        """All adapters of the request are on the device. Unknown ids are ignored.

        reads_whole_prompt: some of them compute with the whole prompt at once.
        """
        state = self._live.get(request_id)
        if state is None or state.status is not RequestStatus.WAITING_ADAPTERS:
            return
        for member in state.members:
            member.observers += self._features.open_for_adapters(
                member.request, reads_whole_prompt=reads_whole_prompt
            )
        self._park(state.head)

    def take_queries(self) -> DueQueries:
        """What the token routers are to be asked, since the last call."""
        return self._queries.take()

    def set_weights(
        self,
        request_id: str,
        num_tokens: int,
        weights: Sequence[float] | SparseWeights,
        at_most: int | None = None,
        window: int | None = None,
    ) -> None:
        """The router's answer for the first `num_tokens` tokens. Unknown ids are ignored.

        `at_most` and `window` go with an answer for 0 tokens: see `Prior`. Raises RouterError if it
        is no answer to what was asked, or its weights are of no use.
        """
        state = self._live.get(request_id)
        if state is None:
            return
        if not isinstance(weights, SparseWeights):
            weights = SparseWeights.from_dense(weights)
        until = self._queries.accept(state, num_tokens, weights, at_most, window)
        self._apply_weights(state, weights, until)
        if state.status is RequestStatus.WAITING_WEIGHTS:
            self._park(state)

    def cancel(self, request_id: str) -> FinalEvent | None:
        """End a request wherever it is; None if it is not live."""
        return self.fail(request_id, FinishReason.CANCELLED)

    def fail(
        self, request_id: str, reason: FinishReason, error: str | None = None
    ) -> FinalEvent | None:
        """End a request for `reason`; None if it is not live. A row in flight is void."""
        state = self._live.get(request_id)
        return None if state is None else self._finish(state.head, reason, error=error)

    def take_finished(self) -> list[EngineRequest]:
        """Requests that ended since the last call, so that their pins and sessions can go."""
        finished, self._finished = self._finished, []
        return finished

    # The step

    def schedule(self) -> StepPlan | None:
        """The next step: running requests, decodes first, then waiting ones; None if nobody can."""
        plan = self.planner.plan(is_idle=self._num_background == len(self._live))
        self._idle = plan is None
        if plan is not None:
            now = self._clock()
            for row in plan.rows:
                usage = self._live[row.request.request_id].usage
                if usage.first_scheduled_time is None:
                    usage.first_scheduled_time = now
        return plan

    def update(self, plan: StepPlan, out: StepOutput) -> list[EngineEvent]:
        """Take in a step's results. Rows whose request ended meanwhile are void."""
        if len(out.samples) != len(plan.sampling_rows):
            raise ValueError(f"{len(out.samples)} samples for {len(plan.sampling_rows)} rows")
        samples = iter(out.samples)
        events: list[EngineEvent] = []
        sound: list[tuple[PlannedRow, slice, RequestState, SampledToken | None]] = []
        for row, tokens in plan.parts:
            sample = next(samples) if row.samples_token else None
            state = self._live.get(row.request.request_id)
            if state is None or state.arrival != row.arrival:
                continue  # it has ended, even if another has its id now
            if out.is_finite(tokens, sample):
                sound.append((row, tokens, state, sample))
            else:
                failed = FinishReason.FAILED
                events.append(self._finish(state.head, failed, error=NOT_FINITE, is_kept=False))
        if events:  # with those of which another member of their ensemble has failed in this step
            sound = [each for each in sound if each[2].status is not RequestStatus.FINISHED]
        self._features.read(((row, at, state.observers) for row, at, state, _ in sound), out)
        for row, _, state, sample in sound:
            self._computed(state, row)
            if sample is not None:
                events.extend(self._sampled(state.head, sample))
        return events

    # Requests changing

    def _enter(
        self, request: EngineRequest, layer_routing: LayerRoutingParams | None
    ) -> RequestState:
        weights = request.weights
        if layer_routing is not None:  # these say which adapters may act, in keys of blocks too
            weights = (1.0,) * len(request.adapters)
        is_fixed = request.routing is None
        history = (
            WeightsHistory.fixed(SparseWeights.from_dense(weights))
            if is_fixed
            else WeightsHistory()
        )
        state = RequestState(
            request,
            self.counters.submitted,
            tokens=list(request.prompt_token_ids),
            status=RequestStatus.WAITING_ADAPTERS,
            block_table=self.kv_blocks.new_table(),
            block_keys=self.kv_blocks.new_keys(request, layer_routing),
            weights_history=history,
            turn=Turn(group_of(request, self.config.fairness)),
            usage=RequestUsage(self._clock()),
            layer_routing=layer_routing,
            queries=self._queries.first(request),
            observers=self._features.open(request),
        )
        self._live[request.request_id] = state
        self._num_background += request.is_background
        self.counters.submitted += 1
        return state

    def _park(self, state: RequestState) -> None:
        self._idle = False
        self.planner.park(state)

    def _apply_weights(self, state: RequestState, weights: SparseWeights, until: int) -> None:
        self._idle = False
        history = state.weights_history
        if history.newest in (None, weights) or not state.recomputes:
            history.extend(weights, until)
            return
        history.replace(weights, until)
        for observer in state.observers:
            observer.restart()
        state.block_keys.reset()
        self.kv_blocks.release(state)
        self.service.charge_prompt(state.turn.group, len(state.tokens))

    def _computed(self, state: RequestState, row: PlannedRow) -> None:
        state.num_computed = row.stop
        self.kv_blocks.publish(state, row.start)
        self._queries.computed(state)
        self.counters.prompt_tokens += max(0, min(row.stop, state.num_prompt) - row.start)

    def _sampled(self, state: RequestState, sample: SampledToken) -> Iterator[EngineEvent]:
        sampling, index = state.request.sampling, state.num_generated
        if sample.token_id in sampling.stop_token_ids and index >= sampling.min_new_tokens:
            yield self._finish(state, FinishReason.STOP_TOKEN, stop_token_id=sample.token_id)
            return
        state.tokens.append(sample.token_id)
        self.counters.generated_tokens += 1
        self.service.charge_generated(state.turn.group, len(state.members))
        weights = state.weights_at_yield(index) if state.request.reports.weights else ()
        yield TokenEvent(
            state.request_id,
            sample.token_id,
            sample.logprob,
            sample.top_tokens,
            weights,
            sample.uncertainty,
        )
        length = len(state.tokens)
        if state.num_generated >= sampling.max_new_tokens or length >= self.limits.max_model_len:
            yield self._finish(state, FinishReason.LENGTH)
        else:
            self._queries.sampled(state)

    def _finish(
        self,
        state: RequestState,
        reason: FinishReason,
        *,
        error: str | None = None,
        stop_token_id: int | None = None,
        is_kept: bool = True,  # whether others may find what it has written
    ) -> FinalEvent:
        self._idle = False
        event = state.final_event(reason, self._clock(), error=error, stop_token_id=stop_token_id)
        self.planner.drop(state, is_kept=is_kept)
        for member in state.members:
            del self._live[member.request_id]
            self._num_background -= member.request.is_background
            for observer in member.observers:
                observer.close()
            self.counters.ended += 1
        self._finished.append(state.request)
        return event
