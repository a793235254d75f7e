"""What a restarted engine is asked for, and what happens when it cannot have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from adapters_store.types import ResolvedMixture
from router_engine.calls import Merge, Pin
from router_engine.client.restart_state import RestartState
from router_engine.client.session import EngineSession
from router_engine.errors import EngineDiedError, MixtureError
from router_engine.events import FinishReason
from router_engine.info import AdapterResidency, MergedState, Residency
from router_engine.process.messages import CallFailed, CallRequest, CallResult, Command, encode
from router_engine.process.wire_errors import WireError

pytestmark = pytest.mark.anyio

DIGEST = "sha256:" + "a" * 64
MIXTURE = ResolvedMixture((DIGEST,), (1.0,))
RESIDENT = AdapterResidency(
    DIGEST, Residency.DEVICE, pinned=True, users=0, rank_rows=4, device_bytes=64
)


def desired() -> RestartState:
    desired = RestartState()
    desired.record(Pin(DIGEST, pinned=True), RESIDENT)
    desired.record(Merge(MIXTURE), MergedState(MIXTURE, 0.1))
    return desired


async def asked_of_an_engine(
    desired: RestartState, answer: Callable[[EngineSession, Command], None]
) -> list[type]:
    """The kinds of commands that `restore` sends to an engine which answers by `answer`."""
    asked: list[type] = []

    def send(command: Command) -> None:
        assert isinstance(command, CallRequest)
        asked.append(type(command.call))
        asyncio.get_running_loop().call_soon(answer, session, command)

    session = EngineSession(send)
    await desired.restore(session)
    return asked


def accept(session: EngineSession, command: Command) -> None:
    match command:
        case CallRequest(number, Pin()):
            session.receive(CallResult(number, msgspec.Raw(encode(RESIDENT))))
        case CallRequest(number, Merge(mixture)):
            session.receive(CallResult(number, msgspec.Raw(encode(MergedState(mixture, 0.1)))))


def refuse(session: EngineSession, command: Command) -> None:
    assert isinstance(command, CallRequest)
    session.receive(CallFailed(command.number, WireError.of(MixtureError("its adapter is gone"))))


def die(session: EngineSession, command: Command) -> None:
    session.end(FinishReason.ENGINE_DIED, EngineDiedError(f"killed by {command}"))


async def test_everything_is_asked_for_each_time() -> None:
    state = desired()
    assert await asked_of_an_engine(state, accept) == [Pin, Merge]
    assert await asked_of_an_engine(state, accept) == [Pin, Merge]


async def test_what_was_let_go_is_not_asked_for() -> None:
    state = desired()
    state.record(Pin(DIGEST, pinned=False), RESIDENT)
    state.record(Merge(None), MergedState(None, 0.1))
    assert await asked_of_an_engine(state, accept) == []


async def test_what_is_refused_is_forgotten() -> None:
    state = desired()
    assert await asked_of_an_engine(state, refuse) == [Pin, Merge]
    assert await asked_of_an_engine(state, accept) == []


async def test_everything_is_forgotten_when_engines_keep_dying_over_it() -> None:
    state = desired()
    for _ in range(3):
        with pytest.raises(EngineDiedError):
            await asked_of_an_engine(state, die)
    assert await asked_of_an_engine(state, accept) == []


async def test_deaths_that_are_not_in_a_row_do_not_add_up() -> None:
    state = desired()
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(EngineDiedError):
                await asked_of_an_engine(state, die)
        assert await asked_of_an_engine(state, accept) == [Pin, Merge]
