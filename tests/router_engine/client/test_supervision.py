"""The engine process dies: requests end and the engine is back.

How one ends that hangs, or loses its parent: tests/server/test_hangs.py and test_killed_server.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from adapters_store.store import AdapterStore
from adapters_store.types import ResolvedMixture
from router_engine.calls import GetMerged, GetResidency, GetStats, Merge, Pin
from router_engine.client.process_client import ProcessEngineClient, ProcessLimits
from router_engine.config import ModelConfig
from router_engine.errors import EngineDiedError, EngineNotReadyError
from router_engine.events import FinishReason
from router_engine.model.tiny import save_tiny
from router_engine.process.messages import EngineProcessConfig
from router_engine.processes.supervisor import RestartPolicy, RunState
from router_engine.request import EngineRequest, SamplingSpec
from tests.router_engine.client.support import PROMPT, answer_to, started
from tests.support.harness import request

pytestmark = pytest.mark.anyio

LONG = SamplingSpec(max_new_tokens=900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("supervised") / "model")


@pytest.fixture(scope="module")
async def process(
    anyio_backend: str, config: EngineProcessConfig, environment: Mapping[str, str], model: Path
) -> AsyncIterator[ProcessEngineClient]:
    engine = replace(config.engine, model=ModelConfig(str(model)))
    client = ProcessEngineClient(
        msgspec.structs.replace(config, engine=engine), environment=environment
    )
    await client.start()
    yield client
    await client.close()


async def test_signals_to_the_whole_group_do_not_end_the_engine(
    process: ProcessEngineClient,
) -> None:
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    answer = await answer_to(process, request("undisturbed", PROMPT))
    assert answer.end.reason is FinishReason.LENGTH


async def test_a_request_that_cannot_be_encoded_is_refused(process: ProcessEngineClient) -> None:
    seed = SamplingSpec(seed=2**80)
    answer = await answer_to(process, EngineRequest("huge", PROMPT, seed))
    assert answer.end.reason is FinishReason.REFUSED


async def test_kill_9_under_load(
    process: ProcessEngineClient, store: AdapterStore, folders: Mapping[str, Path], model: Path
) -> None:
    """Everybody is told, and restarts go on until one works, with all as it was before."""
    base = (await process.info()).base
    digest = store.publish("math", folders["math"], base=base).digest
    merged = await process.call(Merge(ResolvedMixture((digest,), (0.5,))))
    await process.call(Pin(digest, pinned=True))
    expected = (await answer_to(process, request("before", PROMPT, {digest: 1.0}))).ids
    live = await started(process, [EngineRequest(f"live-{n}", PROMPT, LONG) for n in range(8)])
    away = model.rename(model.with_name("away"))  # the first to be started finds no model

    with _heard("the engine did not start") as failed:
        os.kill(process.pid, signal.SIGSTOP)
        call = asyncio.create_task(process.call(GetStats()))
        await asyncio.sleep(0)  # the call is on its way, and no answer will come
        os.kill(process.pid, signal.SIGKILL)
        for answer in await asyncio.gather(*live):
            assert answer.end.reason is FinishReason.ENGINE_DIED
            assert "SIGKILL" in str(answer.end.error)
        with pytest.raises(EngineDiedError, match="SIGKILL"):
            await call
        await failed.told.wait()
    assert str(model) in failed.message
    assert process.state is RunState.RESTARTING
    with pytest.raises(EngineNotReadyError, match="restarting"):
        await answer_to(process, request("between", PROMPT))
    with pytest.raises(EngineNotReadyError, match="restarting"):
        await process.call(Merge(None))
    away.rename(model)

    await process.wait_ready()
    assert process.restarts == 1
    after = await answer_to(process, request("after", PROMPT, {digest: 1.0}))
    assert after.ids == expected
    assert (await process.call(GetMerged())).mixture == merged.mixture
    assert [adapter.pinned for adapter in await process.call(GetResidency())] == [True]


async def test_a_start_that_is_given_up_leaves_no_process_behind(
    tmp_path: Path, config: EngineProcessConfig, environment: Mapping[str, str]
) -> None:
    os.mkfifo(tmp_path / "config.json")  # nobody writes into it: who reads it is never ready
    config = msgspec.structs.replace(
        config, engine=replace(config.engine, model=ModelConfig(str(tmp_path)))
    )
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = children.read_text()
    impatient = ProcessEngineClient(
        config, environment=environment, limits=ProcessLimits(start=0.01)
    )
    with pytest.raises(EngineDiedError, match=r"not ready within 0\.01 s"):
        await impatient.start()
    cancelled = ProcessEngineClient(config, environment=environment)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await cancelled.start()
    assert cancelled.state is RunState.STOPPED
    assert children.read_text() == before


class _Heard(logging.Handler):
    """Sets `told` when a message with a text in it is logged, and keeps that."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.message = ""
        self.told = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.message = record.getMessage()
            self.told.set()


@contextmanager
def _heard(text: str) -> Iterator[_Heard]:
    handler = _Heard(text)
    logger = logging.getLogger("router_engine.processes.supervisor")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def test_restarts_slow_down_up_to_a_bound() -> None:
    policy = RestartPolicy(initial_delay=0.1, factor=2.0, max_delay=30.0)
    assert [policy.delay(failures) for failures in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert policy.delay(10_000) == 30.0
