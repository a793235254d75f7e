"""Random traffic: whatever happens in whatever order, texts and bookkeeping are right."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from router_engine.config import SchedulerConfig
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine.scheduling.harness import BLOCK_SIZE, Drive

NUM_BLOCKS = 11
CONFIGS = st.builds(
    SchedulerConfig,
    max_step_tokens=st.sampled_from([1, 3, 7, 16, 64]),
    max_running=st.sampled_from([1, 2, 4, 8]),
    policy=st.sampled_from(["fifo", "priority"]),
    fairness=st.sampled_from(["adapter", "none"]),
)
# Prompts share beginnings, so that the prefix cache has something to find.
PROMPTS = st.builds(
    lambda head, tail: tuple(range(1, head + 1)) + tuple(tail),
    st.integers(0, 20),
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
)
SAMPLING = st.builds(
    SamplingSpec,
    max_new_tokens=st.integers(4, 14),
    min_new_tokens=st.integers(0, 4),
    stop_token_ids=st.sampled_from([(), (), tuple(range(0, 40, 8))]),
)
ADAPTERS = st.lists(
    st.sampled_from(["sha256:a", "sha256:b", "sha256:c"]), unique=True, max_size=2
).map(tuple)
ROUTING = st.builds(
    TokenRouting,
    router=st.just("test"),
    every=st.integers(1, 5),
    context=st.just("keep"),
    lag=st.integers(0, 4),
) | st.builds(
    TokenRouting,
    router=st.just("test"),
    every=st.integers(1, 5),
    context=st.just("recompute"),
)


class Traffic(RuleBasedStateMachine):
    """Requests come, wait, are preempted, cancelled, spoilt and answered late, in any order."""

    @initialize(config=CONFIGS, prefix_cache=st.booleans(), ahead=st.booleans())
    def start(self, *, config: SchedulerConfig, prefix_cache: bool, ahead: bool) -> None:
        self.drive = Drive(config, num_blocks=NUM_BLOCKS, prefix_cache=prefix_cache, ahead=ahead)

    @rule(
        prompt=PROMPTS,
        sampling=SAMPLING,
        adapters=ADAPTERS,
        weight=st.sampled_from([0.0, 0.5, -1.0]),
        routing=st.none() | ROUTING,
        members=st.lists(st.sampled_from(["", "#1", "#2"]), max_size=2),
        priority=st.integers(0, 2),
        ready=st.booleans(),
    )
    def add(
        self,
        *,
        prompt: tuple[int, ...],
        sampling: SamplingSpec,
        adapters: tuple[str, ...],
        weight: float,
        routing: TokenRouting | None,
        members: list[str],
        priority: int,
        ready: bool,
    ) -> None:
        is_routed = routing is not None and bool(adapters)
        ensemble = tuple(tuple(name + draw for name in adapters) for draw in members)
        self.drive.add(
            EngineRequest(
                f"r{len(self.drive.requests)}",
                prompt,
                sampling,
                adapters,
                () if is_routed else (weight,) * len(adapters),
                routing=routing if is_routed else None,
                priority=priority,
                reports=Reports(weights=True),
                ensemble=() if is_routed else ensemble,
            ),
            ready=ready,
        )

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.drive.step()

    @precondition(lambda self: self.drive.asks)
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        self.drive.answer(data.draw(st.sampled_from(sorted(self.drive.asks))))

    @rule()
    def answer_and_step(self) -> None:
        self.drive.answer_all()
        self.drive.step()

    @precondition(lambda self: self.drive.scheduler.live)
    @rule(data=st.data())
    def adapters_ready(self, data: Any) -> None:
        self.drive.scheduler.adapters_ready(self._any_live(data))
        self.drive.check()

    @precondition(lambda self: self.drive.scheduler.live)
    @rule(data=st.data(), in_flight=st.booleans())
    def cancel(self, *, data: Any, in_flight: bool) -> None:
        request_id = self._any_live(data)
        if in_flight:
            self.drive.step(cancelled_in_flight=[request_id])
        else:
            self.drive.cancel(request_id)

    @precondition(lambda self: self.drive.scheduler.live)
    @rule(data=st.data())
    def spoil(self, data: Any) -> None:
        """What a sequence computes from now on is not finite; `Drive.check` looks at its blocks."""
        self.drive.runner.spoilt.add(self._any_live(data))

    def teardown(self) -> None:
        if not hasattr(self, "drive"):
            return
        self.drive.drain()
        self.drive.check_texts()
        assert self.drive.pool.num_owned == 0
        ended = [request.request_id for request in self.drive.scheduler.take_finished()]
        assert len(ended) == len(set(ended))
        sequences = sum(1 + len(self.drive.requests[name].ensemble) for name in ended)
        assert sequences == self.drive.scheduler.counters.submitted

    def _any_live(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(sorted(self.drive.scheduler.live))))


assert BLOCK_SIZE * NUM_BLOCKS >= 20 + 8 + 14 - 1, "every drawn request must fit"

TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
