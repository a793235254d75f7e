"""A supervisor's end: whoever closes it returns when its process has ended, and not before."""

from __future__ import annotations

import asyncio

from router_engine.processes.supervisor import RunState, Supervisor


class _Slow:
    """A child that ends when it is let go."""

    pid = 1
    alive = True
    long_work = None
    cpu_seconds = 0.0

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()
        self.stops = 0

    def tail(self) -> str:
        return ""

    async def heartbeat(self) -> None: ...

    async def wait(self) -> str:
        await self.let_go.wait()
        return "exited with code 0"

    async def stop(self, timeout: float) -> None:
        self.stops += 1
        self.asked.set()
        await self.let_go.wait()

    async def kill(self) -> None: ...

    def signal_kill(self) -> None: ...


def test_a_second_close_waits_for_the_first() -> None:
    async def scenario() -> None:
        child = _Slow()

        async def launch() -> _Slow:
            return child

        supervisor = Supervisor("child", launch)
        assert await supervisor.start()
        first = asyncio.create_task(supervisor.close(1.0))
        await child.asked.wait()
        second = asyncio.create_task(supervisor.close(1.0))
        first.cancel()  # who gives up waiting does not end the closing
        await asyncio.wait({first})
        assert not second.done()
        child.let_go.set()
        await second
        assert child.stops == 1
        assert supervisor.state is RunState.STOPPED
        assert not await supervisor.wait_ready()

    asyncio.run(scenario())
