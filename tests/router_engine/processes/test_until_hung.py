"""When a child counts as hung, in looks at it: silent, busy with long work, or answering."""

from __future__ import annotations

import asyncio

import pytest

from router_engine.processes.supervisor import LONG_WORK_PATIENCE, until_hung

_LOOKS = 8
_PATIENCE = 0.008  # seconds: a look is a millisecond


class _Child:
    """A loop that answers the first `answers` questions, and then nothing."""

    pid = 1
    alive = True

    def __init__(self, answers: int = 0, work: str | None = None) -> None:
        self.asked = 0
        self.looks = 0
        self._answers = answers
        self._work = work

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
