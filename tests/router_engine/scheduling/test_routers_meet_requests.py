"""Where requests meet routers: one call around a step, and none to a router that nobody uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from router_engine.config import SchedulerConfig
from router_engine.errors import RouterError
from router_engine.events import FinishReason
from router_engine.kv.block_pool import BlockPool
from router_engine.request import EngineRequest, TokenRouting
from router_engine.routers.base import RoutedWeights
from router_engine.routers.instant import InstantTokenRouter, Rule
from router_engine.routing import RoutingFailure, RunningRouters
from router_engine.scheduling.router_queries import DueQueries
from router_engine.scheduling.scheduler import Scheduler
from tests.router_engine.scheduling.harness import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    HashRunner,
    fixed,
    routed,
)

GIVEN = TokenRouting("given")
ROWS = ((1.0, 0.0), (0.5, 0.5))  # for the first tokens; there are none for more


def _rule(params: Mapping[str, Any], num_candidates: int) -> Rule:
    def weights(num_prompt_tokens: int, num_tokens: int) -> tuple[float, ...]:
        row = num_tokens - num_prompt_tokens
        if row >= len(ROWS):
            raise RouterError(f"weights has {len(ROWS)} rows")
        return ROWS[row]

    return weights


class CountingRouter(InstantTokenRouter):
    """Answers with ROWS; its polls are counted."""

    def __init__(self, name: str, polls: Counter[str]) -> None:
        super().__init__(_rule)
        self._name = name
        self._polls = polls

    def poll(self) -> Sequence[RoutedWeights]:
        self._polls[self._name] += 1
        return super().poll()


class CountingScheduler(Scheduler):
    """Counts how often it is asked for queries."""

    times_asked = 0

    def take_queries(self) -> DueQueries:
        self.times_asked += 1
        return super().take_queries()


class Loop:
    """The engine's steps, around a runner without a model."""

    def __init__(self, names: Sequence[str] = ("given", "unused")) -> None:
        self.polls: Counter[str] = Counter()
        routers = {name: CountingRouter(name, self.polls) for name in names}
        self.routing = RunningRouters(routers, {}, {})
        self.scheduler = CountingScheduler(
            SchedulerConfig(), BlockPool(64), block_size=BLOCK_SIZE, max_model_len=MAX_MODEL_LEN
        )
        self.runner = HashRunner()
        self.failures: list[RoutingFailure] = []

    def add(self, request: EngineRequest) -> None:
        assert self.scheduler.add(request) is None
        assert self.routing.begin(request, self.scheduler) is None
        self.scheduler.adapters_ready(request.request_id)

    def step(self) -> None:
        self._route()
        plan = self.scheduler.schedule()
        if plan is not None:
            self.scheduler.update(plan, self.runner.run(plan))
        self._route()
        for request in self.scheduler.take_finished():
            self.routing.end(request)

    def drain(self) -> Mapping[str, int]:
        """Polls until nobody is live."""
        while self.scheduler.live:
            self.step()
        return self.polls

    def _route(self) -> None:
        for failure in self.routing.advance(self.scheduler):
            self.failures.append(failure)
            self.scheduler.fail(failure.request_id, failure.reason, failure.error)


def test_a_plain_request_calls_no_router_in_any_step() -> None:
    loop = Loop()
    loop.add(fixed("plain", [1, 2, 3], 4))
    assert loop.drain() == {}
    assert loop.scheduler.times_asked == 0


def test_only_the_router_in_use_is_polled() -> None:
    """Once when it begins, for what came too late, and twice in each of two steps."""
    loop = Loop()
    loop.add(routed("r", [1, 2, 3], 2, routing=GIVEN))
    assert loop.drain() == {"given": 1 + 2 * 2}
    assert loop.failures == []


def test_a_router_is_let_go_with_its_last_request() -> None:
    loop = Loop()
    loop.add(routed("r", [1, 2, 3], 2, routing=GIVEN))
    polls = dict(loop.drain())
    loop.add(fixed("plain", [1, 2, 3], 4))
    assert loop.drain() == polls


def test_an_answer_to_a_request_that_ended_reaches_no_other_of_its_name() -> None:
    """It came after the last poll for the request that ended, and stays where it is."""
    loop = Loop()
    request = routed("r", [1, 2, 3], 2, routing=GIVEN)
    loop.add(request)
    loop.scheduler.cancel("r")
    for ended in loop.scheduler.take_finished():
        loop.routing.end(ended)
    loop.add(replace(request, prompt_token_ids=(1, 2, 3, 4, 5)))
    loop.drain()
    assert loop.failures == []


def test_what_a_router_cannot_answer_ends_its_request_alone() -> None:
    """Two rows of weights, and four tokens."""
    loop = Loop()
    loop.add(routed("short", [1, 2, 3], 4, routing=GIVEN))
    loop.add(routed("long", [1, 2, 3], 2, routing=GIVEN))
    loop.drain()
    ((name, error, reason),) = loop.failures
    assert (name, reason) == ("short", FinishReason.FAILED)
    assert "weights has 2 rows" in error


@pytest.mark.parametrize("name", ["given", "unused"])
def test_a_router_that_is_not_served_is_refused_by_name(name: str) -> None:
    routing = Loop(("given",)).routing
    request = routed("r", [1], 2, routing=replace(GIVEN, router=name))
    _, reason = routing.layer_routing(request)
    refused = "token router 'unused' is not served; served: given"
    assert reason == (None if name == "given" else refused)
