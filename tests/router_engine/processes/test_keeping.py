"""A child that ends is followed by another, whatever goes wrong beside it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from router_engine.processes.supervisor import RestartPolicy, RunState, Supervisor

_FAILURES = ("wait", "kill", "tail", "log", "")


class _Child:
    """A child of which one thing fails at its end."""

    long_work = None
    cpu_seconds = 0.0

    def __init__(self, pid: int, failing: str) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self._failing = failing

    def _fail(self, name: str) -> None:
        if self._failing == name:
            raise OSError(f"{name} fails")

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def tail(self) -> str:
        self._fail("tail")
        return ""

    async def heartbeat(self) -> None: ...

    async def wait(self) -> str:
        await self.ended.wait()
        self._fail("wait")
        return "was killed by SIGKILL"

    async def stop(self, timeout: float) -> None: ...

    async def kill(self) -> None:
        self._fail("kill")

    def signal_kill(self) -> None:
        self.ended.set()


class _Full(logging.Handler):
    """A log on a disk without room."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("no room")


@pytest.mark.parametrize("failing", _FAILURES)
def test_another_follows(failing: str) -> None:
    launched: list[_Child] = []

    async def launch() -> _Child:
        launched.append(_Child(len(launched), failing))
        if len(launched) == 2:
            raise OSError("one that does not start")
        return launched[-1]

    async def scenario() -> None:
        supervisor = Supervisor("child", launch, policy=RestartPolicy(0))
        assert await supervisor.start()
        for restarts in (1, 2):
            launched[-1].ended.set()
            assert supervisor.state is RunState.RESTARTING
            assert await supervisor.wait_ready()
            assert supervisor.restarts == restarts
        await supervisor.close(0)

    logger = logging.getLogger("router_engine.processes.supervisor")
    handler = _Full() if failing == "log" else logging.NullHandler()
    logger.addHandler(handler)
    try:
        asyncio.run(scenario())
    finally:
        logger.removeHandler(handler)
    assert len(launched) == 4
