"""Starting, stopping and failing, of each client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from router_engine.calls import GetStats
from router_engine.client.inline import InlineEngineClient
from router_engine.client.process_client import ProcessEngineClient
from router_engine.config import ModelConfig
from router_engine.engine import Engine
from router_engine.errors import EngineDiedError, EngineError, EngineNotReadyError
from router_engine.events import EngineEvent, FinishReason
from router_engine.process.engine_factory import build_engine
from router_engine.process.messages import EngineProcessConfig
from router_engine.processes.supervisor import RunState
from router_engine.request import EngineRequest, SamplingSpec
from tests.router_engine.client.conftest import make_client
from tests.router_engine.client.support import PROMPT, answer_to, started
from tests.support.harness import request

pytestmark = pytest.mark.anyio

LONG = SamplingSpec(max_new_tokens=900)
KINDS = pytest.mark.parametrize("kind", ["inline", "process"])


@KINDS
async def test_nothing_works_before_the_start(
    kind: str, config: EngineProcessConfig, environment: Mapping[str, str]
) -> None:
    client = make_client(kind, config, environment)
    assert client.state is RunState.STARTING
    with pytest.raises(EngineNotReadyError, match="starting"):
        await answer_to(client, request("early", PROMPT))
    with pytest.raises(EngineNotReadyError):
        await client.info()
    await client.close()


@KINDS
async def test_closing_ends_live_requests_and_refuses_new_ones(
    kind: str, config: EngineProcessConfig, environment: Mapping[str, str]
) -> None:
    client = make_client(kind, config, environment)
    await client.start()
    live = await started(client, [EngineRequest(f"live-{n}", PROMPT, LONG) for n in range(3)])
    await client.close()
    for answer in await asyncio.gather(*live):
        assert answer.end.reason is FinishReason.CANCELLED
        assert "closed" in str(answer.end.error)
    assert client.state is RunState.STOPPED
    with pytest.raises(EngineNotReadyError):
        await answer_to(client, request("late", PROMPT))
    with pytest.raises(EngineNotReadyError):
        await client.call(GetStats())
    await client.cancel("live-0")
    await client.close()


async def test_a_model_that_does_not_exist_fails_the_start_by_name(
    config: EngineProcessConfig, environment: Mapping[str, str]
) -> None:
    """Of a process it is the start's failure too: tests/server/test_bad_models.py."""
    engine = replace(config.engine, model=ModelConfig("/nowhere/to-be-found"))
    client = make_client("inline", msgspec.structs.replace(config, engine=engine), environment)
    with pytest.raises(EngineError, match="/nowhere/to-be-found"):
        await client.start()
    assert client.state is RunState.STOPPED
    await client.close()


async def test_a_process_that_dies_early_shows_the_end_of_its_output(
    config: EngineProcessConfig, environment: Mapping[str, str]
) -> None:
    broken = {**environment, "PYTHONHOME": "/nowhere/python"}
    client = ProcessEngineClient(config, environment=broken)
    with pytest.raises(EngineDiedError, match=r"(?s)exited with code \d+ .*/nowhere/python"):
        await client.start()


async def test_paused_lets_requests_join_one_batch(config: EngineProcessConfig) -> None:
    client = InlineEngineClient(partial(build_engine, config))
    await client.start()
    async with client.paused():
        asks = [request(f"joined-{n}", PROMPT, max_new_tokens=1) for n in range(8)]
        tasks = [asyncio.create_task(answer_to(client, ask)) for ask in asks]
    await asyncio.gather(*tasks)
    assert (await client.call(GetStats())).steps == 1
    await client.close()


class _FailingStep(Engine):
    def step(self) -> list[EngineEvent]:
        events = super().step()
        if self.stats().generated_tokens:
            raise RuntimeError("a kernel failed")
        return events


class _BrokenInvariant(Engine):
    def check_integrity(self) -> None:
        raise AssertionError("a block is lost")


@pytest.fixture
def build(config: EngineProcessConfig) -> Callable[[type[Engine]], InlineEngineClient]:
    """A client over a subclass of the engine with a fault in it."""

    def make(kind: type[Engine]) -> InlineEngineClient:
        engine = build_engine(config, lambda: None)
        engine.__class__ = kind
        return InlineEngineClient(lambda wake: engine)

    return make


async def test_a_step_that_fails_ends_the_engine_and_its_requests(
    build: Callable[[type[Engine]], InlineEngineClient],
) -> None:
    client = build(_FailingStep)
    await client.start()
    answer = await answer_to(client, request("unlucky", PROMPT))
    assert answer.end.reason is FinishReason.ENGINE_DIED
    assert "a kernel failed" in str(answer.end.error)
    assert client.state is RunState.STOPPED
    with pytest.raises(EngineDiedError, match="a kernel failed"):
        await client.close()


async def test_a_broken_invariant_ends_an_idle_engine(
    build: Callable[[type[Engine]], InlineEngineClient],
) -> None:
    client = build(_BrokenInvariant)
    await client.start()
    await answer_to(client, request("last", PROMPT))
    with pytest.raises(EngineDiedError, match="a block is lost"):
        await client.close()
