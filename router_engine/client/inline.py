"""The engine on a thread of this process, with no second process: what `adaptermix.LLM` uses.

It runs the same loop as the engine's process; whoever wants each step for itself, without asyncio,
takes `router_engine.offline`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from router_engine.client.session import EngineSession, SessionClient
from router_engine.errors import EngineDiedError, EngineNotReadyError
from router_engine.events import FinishReason
from router_engine.info import EngineInfo
from router_engine.process.loop import EngineFactory, run_engine
from router_engine.process.messages import Command, Report, Shutdown
from router_engine.processes.supervisor import RunState


class InlineEngineClient(SessionClient):
    """Runs an engine on one background thread, which builds it and alone touches it.

    It is not restarted when a step fails: its requests end with ENGINE_DIED, and `close` raises
    what went wrong, so that no test passes over a broken invariant.
    """

    def __init__(self, build: EngineFactory) -> None:
        self._build = build
        self._state = RunState.STARTING
        self._thread: _EngineThread | None = None
        self._info: EngineInfo | None = None

    @property
    def state(self) -> RunState:
        """See `EngineClient.state`; never RESTARTING."""
        return self._state

    @property
    def restarts(self) -> int:
        """See `EngineClient.restarts`; always 0."""
        return 0

    async def start(self) -> None:
        """See `EngineClient.start`."""
        thread = _EngineThread(self._build, self._stopped)
        try:
            self._info = await thread.session.ready
        except BaseException:
            self._stopped()
            with suppress(EngineDiedError):  # the same failure again
                await thread.stop()
            raise
        self._thread = thread
        self._state = RunState.READY

    async def close(self) -> None:
        """See `EngineClient.close`; raises EngineDiedError if a step or a check had failed."""
        self._stopped()
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()

    async def info(self) -> EngineInfo:
        """See `EngineClient.info`."""
        if self._info is None:
            raise EngineNotReadyError("the engine has not started")
        return self._info

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Hold the engine between two steps; what is submitted meanwhile joins one batch.

        Tasks made inside get one turn of the event loop before the engine goes on.
        """
        self._session()
        assert self._thread is not None
        hold = _Hold(asyncio.get_running_loop())
        self._thread.channel.put(hold)
        try:
            await hold.reached.wait()
            yield
            await asyncio.sleep(0)
        finally:
            hold.released.set()

    def _session(self) -> EngineSession:
        if self._thread is None or self._state is not RunState.READY:
            raise EngineNotReadyError(f"the engine is {self._state}")
        return self._thread.session

    def _stopped(self) -> None:
        self._state = RunState.STOPPED


class _EngineThread:
    """The thread, the way to it, and what became of it."""

    def __init__(self, build: EngineFactory, on_failure: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.channel = _QueueChannel(loop, self._deliver)
        self.session = EngineSession(self.channel.put)
        self._on_failure = on_failure
        self._ended = asyncio.Event()
        self._error: Exception | None = None
        target = partial(self._run, build, loop)
        threading.Thread(target=target, name="engine", daemon=True).start()

    async def stop(self) -> None:
        self.session.end(FinishReason.CANCELLED, EngineNotReadyError("the engine was closed"))
        self.channel.put(Shutdown())
        await self._ended.wait()
        if self._error is not None:
            raise EngineDiedError(f"the engine failed: {self._error!r}") from self._error

    def _run(self, build: EngineFactory, loop: asyncio.AbstractEventLoop) -> None:
        error: Exception | None = None
        try:
            run_engine(build, self.channel)
        except Exception as caught:
            error = caught
        loop.call_soon_threadsafe(self._finish, error)

    def _deliver(self, report: Report) -> None:
        self.session.receive(report)

    def _finish(self, error: Exception | None) -> None:
        self._error = error
        self._ended.set()
        if error is not None:
            self._on_failure()
            died = EngineDiedError(f"the engine failed: {error!r}")
            self.session.end(FinishReason.ENGINE_DIED, died)


@dataclass(frozen=True, slots=True)
class _Hold:
    """Stops the engine thread where it takes commands, until `released`."""

    loop: asyncio.AbstractEventLoop
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.loop.call_soon_threadsafe(self.reached.set)
        self.released.wait()


class _QueueChannel:
    """A `Channel` within one process; None in the queue is a wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Report], None]) -> None:
        self._items: SimpleQueue[Command | _Hold | None] = SimpleQueue()
        self._loop = loop
        self._deliver = deliver

    def put(self, item: Command | _Hold) -> None:
        self._items.put(item)

    def wake(self) -> None:
        self._items.put(None)

    def send(self, report: Report) -> None:
        self._loop.call_soon_threadsafe(self._deliver, report)

    def receive(self, timeout: float | None) -> Sequence[Command]:
        commands: list[Command] = []
        with suppress(Empty):
            item = self._items.get(timeout=timeout) if timeout != 0 else self._items.get_nowait()
            while True:
                if isinstance(item, _Hold):
                    item.wait()
                elif item is not None:
                    commands.append(item)
                item = self._items.get_nowait()
        return commands
