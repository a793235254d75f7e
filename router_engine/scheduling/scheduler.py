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
from router_engine.scheduling.counters import SchedulerCounters, SchedulerGauges
from router_engine.scheduling.ensembles import child_requests
from router_engine.scheduling.fairness import ServiceCounters, group_of
from router_engine.scheduling.gate_statistics import GateSums
from router_engine.scheduling.hidden_means import RunningMeans
from router_engine.scheduling.kv_blocks import KVBlockManager
from router_engine.scheduling.plan import PlannedRow, SampledToken, StepOutput, StepPlan
from router_engine.scheduling.policy import in_turn, make_policy
from router_engine.scheduling.preemption import victim_for_running, victim_for_waiting
from router_engine.scheduling.queue import WaitingQueue
from router_engine.scheduling.request_validation import NOT_FINITE, Limits, refusal
from router_engine.scheduling.router_queries import RouterQueries
from router_engine.scheduling.state import RequestState, RequestStatus
from router_engine.scheduling.step_builder import StepBuilder
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
        self._means = RunningMeans(block_size)
        self.router_queries = RouterQueries(self._means)
        self.kv_blocks = KVBlockManager(pool, block_size, prefix_cache=prefix_cache)
        self.limits = Limits(
            max_model_len, block_size, pool.num_blocks, config.max_running, vocab_size
        )
        self._clock = clock
        self._policy = make_policy(config.policy)
        self._live: dict[str, RequestState] = {}
        self._num_background = 0  # of them
        self._running: dict[str, RequestState] = {}
        self._queue = WaitingQueue(self._policy, self.service, config.max_overtaken)
        self._finished: list[EngineRequest] = []
        self._idle = False  # the last `schedule` found nobody, and nothing has changed since

    @property
    def live(self) -> Mapping[str, RequestState]:
        """Sequences whose request has not had its final event, by id: followers have their own."""
        return MappingProxyType(self._live)

    @property
    def running(self) -> tuple[RequestState, ...]:
        return tuple(self._running.values())

    @property
    def waiting(self) -> tuple[RequestState, ...]:
        return tuple(self._queue)

    @property
    def has_runnable(self) -> bool:
        """Whether `schedule` may find something: False once it did not, until something changes."""
        if self._idle:
            return False
        return len(self._queue) > 0 or any(s.is_runnable for s in self._running.values())

    @property
    def gauges(self) -> SchedulerGauges:
        return SchedulerGauges.of(self._live.values(), len(self._running), len(self._queue))

    # Coming and going

    def add(
        self, request: EngineRequest, gate: LayerRoutingParams | None = None
    ) -> FinalEvent | None:
        """Take a request on; a final event if it can never run. `gate`: of its layer routing.

        One with adapters waits for `adapters_ready`, one with routing for `set_weights` too.
        Raises RequestRefusedError if a live request has this id: an event would end that one.
        """
        children = child_requests(request)
        for each in (request, *children):
            if each.request_id in self._live:
                raise RequestRefusedError(f"request_id {each.request_id!r} is live: use another")
        error = refusal(request, self.limits)
        if error is not None:
            size = len(request.prompt_token_ids)
            reason = FinishReason.REFUSED
            return FinalEvent(request.request_id, reason, error, num_prompt_tokens=size)
        state = self._enter(request, gate)
        state.children = tuple(self._enter(each, gate, state) for each in children)
        if not request.adapters:
            self._park(state)
        return None

    def adapters_ready(self, request_id: str, *, reads_whole_prompt: bool = False) -> None:
        """All adapters of the request are on the device. Unknown ids are ignored.

        reads_whole_prompt: some of them have routers of whole prompts.
        """
        state = self._live.get(request_id)
        if state is not None and state.status is RequestStatus.WAITING_ADAPTERS:
            for member in state.head.members:
                member.reads_whole_prompt = reads_whole_prompt
            self._park(state.head)

    def set_weights(
        self,
        request_id: str,
        num_tokens: int,
        weights: Sequence[float] | SparseWeights,
        at_most: int | None = None,
        window: int | None = None,
    ) -> None:
        """The router's answer for the first `num_tokens` tokens. Unknown ids are ignored.

        `at_most` and `window` go with a probed request's prior, for 0 tokens: see `Prior`. Raises
        RouterError if it is no answer to what was asked, or its weights are of no use.
        """
        state = self._live.get(request_id)
        if state is None:
            return
        if not isinstance(weights, SparseWeights):
            weights = SparseWeights.of(weights)
        until = self.router_queries.accept(state, num_tokens, weights, at_most)
        if state.running_mean is not None and window is not None:
            state.running_mean.window = window
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
        draft = StepBuilder.of(self.config, is_idle=self._num_background == len(self._live))
        before, after = in_turn(self._policy, self._running.values(), self._queue.head())
        for state in before:
            self._plan_running(state, draft)
        self._admit(draft)
        for state in after:
            self._plan_running(state, draft)
        plan = draft.plan()
        self._idle = plan is None
        if plan is not None:
            now = self._clock()
            for row in plan.rows:
                state = self._live[row.request_id]
                if state.first_scheduled_time is None:
                    state.first_scheduled_time = now
        return plan

    def update(self, plan: StepPlan, out: StepOutput) -> list[EngineEvent]:
        """Take in a step's results. Rows whose request ended meanwhile are void."""
        if len(out.samples) != len(plan.sampling_rows):
            raise ValueError(f"{len(out.samples)} samples for {len(plan.sampling_rows)} rows")
        samples = iter(out.samples)
        taken = [(row, self._state_of(row), tokens) for row, tokens in plan.parts]
        if out.hidden_states is not None:
            self._means.read(
                [(s.running_mean, r.start, at) for r, s, at in taken if s], out.hidden_states
            )
        events: list[EngineEvent] = []
        for row, state, tokens in taken:
            sample = next(samples) if row.samples_token else None
            if state is None or state.status is RequestStatus.FINISHED:
                continue  # or another member of its ensemble has failed in this step
            if not out.is_finite(tokens, sample):
                failed = FinishReason.FAILED
                events.append(self._finish(state.head, failed, error=NOT_FINITE, is_kept=False))
                continue
            if out.gates is not None:
                state.read_gates(row.start, out.gates, tokens)
            self._computed(state, row)
            if sample is not None:
                events.extend(self._sampled(state.head, sample))
        return events

    def _state_of(self, row: PlannedRow) -> RequestState | None:
        """None where the request has ended, even if another has its id now."""
        state = self._live.get(row.request_id)
        return state if state is not None and state.arrival == row.arrival else None

    def _plan_running(self, state: RequestState, draft: StepBuilder) -> None:
        if state.status is not RequestStatus.RUNNING or not draft.has_room(state):
            return  # preempted in this very step, or no budget left
        if not state.block_table.block_ids:  # all of it is to be computed again
            self.kv_blocks.attach(state)
        stop = draft.chunk_stop(state)
        while self.kv_blocks.shortage(state, stop):
            victim = victim_for_running(self._running.values(), self._policy, state)
            if victim is None:
                # Its seniors hold the rest. It keeps what it has: they take that when they need it.
                draft.stalled.append(state)
                return
            self._preempt(victim, draft)
        self._advance(state, stop, draft)

    def _advance(self, state: RequestState, stop: int, draft: StepBuilder) -> None:
        if stop > state.num_computed:
            self.kv_blocks.grow(state, stop)
            draft.add(state, stop)
        else:  # the prefix cache gave all whose weights are known
            self.router_queries.computed(state)

    def _admit(self, draft: StepBuilder) -> None:
        while draft.tokens_left > 0:
            state = self._queue.head(background=draft.takes_background)
            if state is None or not self._make_room(state, draft):
                return
            self._queue.start(state, self._running.values())
            for member in state.members:
                self._start(member)
                self._advance(member, draft.chunk_stop(member), draft)

    def _start(self, state: RequestState) -> None:
        state.status = RequestStatus.RUNNING
        self._running[state.request_id] = state
        found = self.kv_blocks.attach(state)
        if not state.admitted:
            state.admitted = True
            state.num_cached_tokens = min(found, state.num_prompt)
            self.service.charge_prompt(state.group, state.num_prompt - found)

    def _make_room(self, state: RequestState, draft: StepBuilder) -> bool:
        """Whether the head of the queue may come in; displaces later levels to let it."""
        level = self._policy.level(state)
        if any(self._policy.level(stalled) <= level for stalled in draft.stalled):
            return False
        while not self._has_room(state):
            victim = victim_for_waiting(self._running.values(), self._policy, state)
            if victim is None:
                return False
            self._preempt(victim, draft)
        return True

    def _has_room(self, state: RequestState) -> bool:
        members, running = state.members, len(self._running)
        if running + len(members) > self.config.max_running:
            return False
        # Each running request may soon need a block: one admitted into those would be preempted.
        return self.kv_blocks.can_admit(members, reserve=running)

    def _preempt(self, state: RequestState, draft: StepBuilder) -> None:
        # All of an ensemble or none: a member that has its logits would hold blocks while the one
        # that it waits for finds none.
        for member in state.head.members:
            draft.discard(member)
            del self._running[member.request_id]
            self.kv_blocks.release(member)
        state.head.num_preemptions += 1
        self.counters.preemptions += 1
        self._park(state.head)

    # Requests changing

    def _enter(
        self,
        request: EngineRequest,
        gate: LayerRoutingParams | None,
        parent: RequestState | None = None,
    ) -> RequestState:
        state = self._new_state(request, gate)
        if parent is not None:
            state.parent, state.tokens, state.group = parent, parent.tokens, parent.group
        self._live[request.request_id] = state
        self._num_background += request.is_background
        self.counters.submitted += 1
        return state

    def _new_state(self, request: EngineRequest, gate: LayerRoutingParams | None) -> RequestState:
        fixed = request.routing is None
        # Under a gate these say which adapters may act, in the keys of blocks too.
        weights = request.weights if gate is None else (1.0,) * len(request.adapters)
        history = WeightsHistory.fixed(SparseWeights.of(weights)) if fixed else WeightsHistory()
        return RequestState(
            request=request,
            arrival=self.counters.submitted,
            arrival_time=self._clock(),
            block_table=self.kv_blocks.new_table(),
            block_keys=self.kv_blocks.new_keys(request, gate),
            weights_history=history,
            tokens=list(request.prompt_token_ids),
            status=RequestStatus.WAITING_ADAPTERS,
            num_routed_tokens=len(request.prompt_token_ids),
            pending_queries=self.router_queries.first(request),
            running_mean=self._means.open() if request.reads_hidden_states else None,
            gate_sums=GateSums(request.adapters) if request.report_gates else None,
            group=group_of(request, self.config.fairness),
            gate=gate,
        )

    def _park(self, state: RequestState) -> None:
        """Put a request that owns no blocks where it belongs; a lead stands for its followers."""
        self._idle = False
        is_runnable = state.is_runnable
        for member in state.members:
            member.status = RequestStatus.WAITING if is_runnable else RequestStatus.WAITING_WEIGHTS
        if is_runnable:
            self._queue.push(state)

    def _apply_weights(self, state: RequestState, weights: SparseWeights, until: int) -> None:
        self._idle = False
        history = state.weights_history
        if history.newest in (None, weights) or not state.recomputes:
            history.extend(weights, until)
            return
        history.replace(weights, until)
        state.prompt_gates = None
        state.block_keys.reset()
        self.kv_blocks.release(state)
        self.service.charge_prompt(state.group, len(state.tokens))

    def _computed(self, state: RequestState, row: PlannedRow) -> None:
        state.num_computed = row.stop
        self.kv_blocks.publish(state, row.start)
        self.router_queries.computed(state)
        self.counters.prompt_tokens += max(0, min(row.stop, state.num_prompt) - row.start)

    def _sampled(self, state: RequestState, sample: SampledToken) -> Iterator[EngineEvent]:
        sampling, index = state.request.sampling, state.num_generated
        if sample.token_id in sampling.stop_token_ids and index >= sampling.min_new_tokens:
            yield self._finish(state, FinishReason.STOP_TOKEN, stop_token_id=sample.token_id)
            return
        state.tokens.append(sample.token_id)
        self.counters.generated_tokens += 1
        self.service.charge_generated(state.group, len(state.members))
        weights = state.weights_at_yield(index) if state.request.report_weights else ()
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
            self.router_queries.sampled(state)

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
        if state.status is RequestStatus.WAITING:
            self._queue.remove(state)
        for member in state.members:
            self._running.pop(member.request_id, None)
            self.kv_blocks.release(member, is_kept=is_kept)
            member.status = RequestStatus.FINISHED
            del self._live[member.request_id]
            self._num_background -= member.request.is_background
            self._means.close(member.running_mean)
            self.counters.ended += 1
        self._finished.append(state.request)
        return event
