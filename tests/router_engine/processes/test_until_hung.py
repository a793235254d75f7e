"""When a child counts as hung, in looks at it: silent, computing, at long work, or answering."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

from router_engine.processes.child_process import ChildProcess, ChildWithProcess
from router_engine.processes.supervisor import LONG_WORK_PATIENCE, until_hung
from tests.support.waiting import wait_for

_LOOKS = 8
_PATIENCE = 0.008  # seconds: a look is a millisecond
_SECOND = 1.0  # in which a process that computes has a turn, however many others there are


class _Child:
    """A loop that answers the first `answers` questions, and then nothing.

    It computes all the while, until so many looks: on a core, or as a share of that.
    """

    pid = 1
    alive = True

    def __init__(
        self, answers: int = 0, work: str | None = None, computes: int = 0, share: float = 1.0
    ) -> None:
        self.asked = 0
        self.looks = 0
        self._answers = answers
        self._work = work
        self._reads = 0
        self._computes = computes
        self._share = share

    @property
    def cpu_seconds(self) -> float:
        self._reads += 1
        return min(self._reads, self._computes) * self._share * _PATIENCE / _LOOKS

    @property
    def long_work(self) -> str | None:
        self.looks += 1
        return self._work

    def tail(self) -> str:
        return ""

    async def heartbeat(self) -> None:
        self.asked += 1
        if self.asked > self._answers:
            await asyncio.Event().wait()

    async def wait(self) -> str:
        return ""

    async def stop(self, timeout: float) -> None: ...

    async def kill(self) -> None: ...

    def signal_kill(self) -> None: ...


def test_a_silent_child_is_hung_after_its_patience() -> None:
    child = _Child()
    asyncio.run(until_hung(child, _PATIENCE))
    assert (child.asked, child.looks) == (1, _LOOKS)


def test_long_work_is_given_longer() -> None:
    child = _Child(work="a switch")
    asyncio.run(until_hung(child, _PATIENCE))
    assert child.looks == _LOOKS * LONG_WORK_PATIENCE


@pytest.mark.parametrize("work", [None, "a switch"])
def test_a_child_that_computes_is_given_longer(work: str | None) -> None:
    child = _Child(work=work, computes=10**6)
    asyncio.run(until_hung(child, _PATIENCE))
    assert child.looks == _LOOKS * LONG_WORK_PATIENCE


def test_a_child_that_computes_no_more_is_hung_after_its_patience() -> None:
    child = _Child(computes=31)
    asyncio.run(until_hung(child, _PATIENCE))
    assert child.looks == 30 + _LOOKS


def test_what_wakes_now_and_then_does_not_compute() -> None:
    child = _Child(computes=10**6, share=0.01)
    asyncio.run(until_hung(child, _PATIENCE))
    assert child.looks == _LOOKS


class _Process(ChildWithProcess):
    """One of the system's that computes until it is killed."""

    def __init__(self) -> None:
        super().__init__(ChildProcess("tests.router_engine.processes.busy", logging.getLogger()))
        self._enough = asyncio.Event()
        self.answer_after(1)

    def answer_after(self, looks: int) -> None:
        """A question is answered, with an error, when it has been looked at so often."""
        self.looks, self._answers = 0, looks
        self._enough.clear()

    async def start(self) -> None:
        await self._process.start({**os.environ}, b"")

    @property
    def long_work(self) -> str | None:
        self.looks += 1
        if self.looks == self._answers:
            self._enough.set()
        return None

    async def heartbeat(self) -> None:
        await self._enough.wait()
        raise ConnectionError("asked enough")

    async def stop(self, timeout: float) -> None:
        await self.kill()

    async def kill(self) -> None:
        await self._process.kill()


@pytest.mark.slow
def test_a_process_that_computes_is_told_from_one_that_is_stopped() -> None:
    async def scenario() -> None:
        child = _Process()
        await child.start()
        try:
            child.answer_after(2 * _LOOKS)
            await asyncio.to_thread(wait_for, lambda: child.cpu_seconds > _SECOND)  # it has begun
            with pytest.raises(ConnectionError, match="asked enough"):
                await until_hung(child, _SECOND)
            os.kill(child.pid, signal.SIGSTOP)
            child.answer_after(10 * LONG_WORK_PATIENCE * _LOOKS)
            await until_hung(child, _SECOND)
            assert child.looks in (_LOOKS, _LOOKS + 1)  # the first may tell of its last moment
        finally:
            await child.kill()
        assert child.cpu_seconds == 0.0

    asyncio.run(scenario())


def test_a_child_that_answers_is_asked_again() -> None:
    child = _Child(answers=3)
    asyncio.run(until_hung(child, _PATIENCE))
    assert child.asked == 4


def test_a_question_that_fails_ends_the_watch() -> None:
    class Ended(_Child):
        async def heartbeat(self) -> None:
            raise ConnectionError("ended")

    with pytest.raises(ConnectionError, match="ended"):
        asyncio.run(until_hung(Ended(), _PATIENCE))
