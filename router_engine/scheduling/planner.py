"""Owns who runs and who waits, and puts each step together from both."""

from __future__ import annotations

from router_engine.config import SchedulerConfig
from router_engine.scheduling.fairness import ServiceCounters
from router_engine.scheduling.kv_blocks import KVBlockManager
from router_engine.scheduling.plan import StepPlan
from router_engine.scheduling.policy import (
    in_turn,
    make_policy,
    seniority,
    victim_for_running,
    victim_for_waiting,
)
from router_engine.scheduling.queue import WaitingQueue
from router_engine.scheduling.router_queries import RouterQueries
from router_engine.scheduling.state import RequestState, RequestStatus, SchedulerCounters
from router_engine.scheduling.step_builder import StepBuilder
from router_engine.scheduling.step_limit import StepLimit


class StepPlanner:
    """Running requests, decodes first, then waiting ones, while budget and KV blocks last."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv_blocks: KVBlockManager,
        service: ServiceCounters,
        queries: RouterQueries,
        counters: SchedulerCounters,
    ) -> None:
        self._config = config
        self._kv_blocks = kv_blocks
        self._service = service
        self._queries = queries
        self._counters = counters
        self._policy = make_policy(config.policy)
        self.limit = StepLimit(config.max_step_tokens)
        self.running: dict[str, RequestState] = {}
        self.queue = WaitingQueue(self._policy, service, config.max_overtaken)

    def plan(self, *, is_idle: bool) -> StepPlan | None:
        """The next step; None if nobody can run. is_idle: all that is live is in the background."""
        self.limit.step()
        draft = StepBuilder.from_config(self._config, self.limit.tokens, is_idle=is_idle)
        before, after = in_turn(self._policy, self.running.values(), self.queue.head())
        for state in before:
            self._plan_running(state, draft)
        self._admit(draft)
        for state in after:
            self._plan_running(state, draft)
        return draft.plan()

    @property
    def may_admit(self) -> bool:
        """Whether somebody who waits may come in with the next step."""
        head = self.queue.head()
        if head is None:
            return False
        running = self.running.values()
        return self._has_room(head) or victim_for_waiting(running, self._policy, head) is not None

    def shrink(self, plan: StepPlan) -> list[RequestState]:
        """A step found no memory on the device: the next ones hold half as much.

        The most junior requests give way, so that those that stay have their turn in every step.
        Returns the head of what could not be less: one token, or the whole prompt of one request
        whose adapters read it at once.
        """
        self._counters.shrunk += 1
        running = [self.running[row.request_id] for row in plan.rows]
        heads = {state.head.request_id: state.head for state in running}
        tokens = min(plan.num_tokens, self.limit.tokens)
        self.limit.lower(tokens)
        self._give_way()
        return [*heads.values()] if len(heads) == 1 and tokens == 1 else []

    def _give_way(self) -> None:
        draft = StepBuilder(0, 0)  # of the failed step nothing stands
        while len(self.running) > self.limit.tokens:
            senior = min(self.running.values(), key=lambda state: seniority(self._policy, state))
            victim = victim_for_running(self.running.values(), self._policy, senior)
            if victim is None:  # one ensemble, which runs whole or not at all
                return
            self._preempt(victim, draft)

    def park(self, state: RequestState) -> None:
        """Put a request that owns no blocks where it belongs; a head stands for its ensemble."""
        is_runnable = state.is_runnable
        for member in state.members:
            member.status = RequestStatus.WAITING if is_runnable else RequestStatus.WAITING_WEIGHTS
        if is_runnable:
            self.queue.push(state)

    def drop(self, state: RequestState, *, is_kept: bool) -> None:
        """A request ends: its blocks are free. is_kept: others may find what it has written."""
        if state.status is RequestStatus.WAITING:
            self.queue.remove(state)
        for member in state.members:
            self.running.pop(member.request_id, None)
            self._kv_blocks.release(member, is_kept=is_kept)
            member.status = RequestStatus.FINISHED

    def _plan_running(self, state: RequestState, draft: StepBuilder) -> None:
        if state.status is not RequestStatus.RUNNING or not draft.has_room(state):
            return  # preempted in this very step, or no budget left
        if not state.block_table.block_ids:  # all of it is to be computed again
            self._kv_blocks.attach(state)
        stop = draft.chunk_stop(state)
        while self._kv_blocks.shortage(state, stop):
            victim = victim_for_running(self.running.values(), self._policy, state)
            if victim is None:
                # Its seniors hold the rest. It keeps what it has: they take that when they need it.
                draft.stalled.append(state)
                return
            self._preempt(victim, draft)
        self._advance(state, stop, draft)

    def _advance(self, state: RequestState, stop: int, draft: StepBuilder) -> None:
        if stop > state.num_computed:
            self._kv_blocks.grow(state, stop)
            draft.add(state, stop)
        else:  # the prefix cache gave all whose weights are known
            self._queries.computed(state)

    def _admit(self, draft: StepBuilder) -> None:
        while draft.tokens_left > 0:
            state = self.queue.head(background=draft.takes_background)
            if state is None or not self._make_room(state, draft):
                return
            self.queue.start(state, self.running.values())
            is_new, state.turn.was_admitted = not state.turn.was_admitted, True
            for member in state.members:
                self._start(member, is_new=is_new)
                self._advance(member, draft.chunk_stop(member), draft)

    def _start(self, state: RequestState, *, is_new: bool) -> None:
        state.status = RequestStatus.RUNNING
        self.running[state.request_id] = state
        num_cached = self._kv_blocks.attach(state)
        if is_new:
            state.usage.num_cached_tokens = min(num_cached, state.num_prompt)
            self._service.charge_prompt(state.turn.group, state.num_prompt - num_cached)

    def _make_room(self, state: RequestState, draft: StepBuilder) -> bool:
        """Whether the head of the queue may come in; displaces later levels to let it."""
        level = self._policy.level(state)
        if any(self._policy.level(stalled) <= level for stalled in draft.stalled):
            return False
        while not self._has_room(state):
            victim = victim_for_waiting(self.running.values(), self._policy, state)
            if victim is None:
                return False
            self._preempt(victim, draft)
        return True

    def _has_room(self, state: RequestState) -> bool:
        members, running = state.members, len(self.running)
        if running + len(members) > self._config.max_running:
            return False
        if self.limit.is_lowered and running and running + len(members) > self.limit.tokens:
            return False  # where nobody runs, the next is let in however many members it has
        # Each running request may soon need a block: one admitted into those would be preempted.
        return self._kv_blocks.can_admit(members, reserve=running)

    def _preempt(self, state: RequestState, draft: StepBuilder) -> None:
        # All of an ensemble or none: a member that has its logits would hold blocks while the one
        # that it waits for finds none.
        for member in state.members:
            draft.discard(member)
            del self.running[member.request_id]
            self._kv_blocks.release(member)
        state.head.usage.num_preemptions += 1
        self._counters.preemptions += 1
        self.park(state.head)
