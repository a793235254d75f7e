"""Keeps one engine process running: starts it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from router_engine.client.base import EngineState
from router_engine.client.child import EngineChild
from router_engine.client.session import EngineSession
from router_engine.errors import EngineError, EngineNotReadyError
from router_engine.events import FinishReason

_logger = logging.getLogger(__name__)


_LOOKS = 8  # at a child's health, in the time after which it counts as hung


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How fast an engine that dies is started again. Seconds."""

    initial_delay: float = 0.1
    factor: float = 2.0
    max_delay: float = 30.0
    stable_after: float = 60.0  # having run this long, it counts as sound again

    def delay(self, failures: int) -> float:
        """The wait before the next start after `failures` >= 1 failures in a row."""
        return min(self.max_delay, self.initial_delay * self.factor ** min(failures - 1, 64))


class Supervisor:
    """The state machine STARTING -> READY <-> RESTARTING -> STOPPED around `EngineChild`.

    `launch` starts a child and returns when it can take requests; `restore` brings a restarted one
    into the state that the dead one had, before it is READY. With `hang_timeout` a child that does
    not answer between two steps for so many seconds is killed, which restarts it.
    """

    def __init__(
        self,
        launch: Callable[[], Awaitable[EngineChild]],
        restore: Callable[[EngineSession], Awaitable[None]],
        policy: RestartPolicy,
        hang_timeout: float | None = None,
    ) -> None:
        self._launch = launch
        self._restore = restore
        self._policy = policy
        self._hang_timeout = hang_timeout
        self._state = EngineState.STARTING
        self._state_changed = asyncio.Event()
        self._child: EngineChild | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.restarts = 0  # since `start`

    @property
    def state(self) -> EngineState:
        """What the engine can do now; the death of a child shows at once."""
        if self._state is EngineState.READY and not (self._child and self._child.alive):
            return EngineState.RESTARTING
        return self._state

    @property
    def child(self) -> EngineChild:
        """The child that takes requests; raises EngineNotReadyError when there is none."""
        if self._child is None or self.state is not EngineState.READY:
            raise EngineNotReadyError(f"the engine is {self.state}; try again when it is ready")
        return self._child

    async def start(self) -> None:
        """Launch the first child; raises what `launch` raised, and does not try again."""
        try:
            child = await self._launch()
        except BaseException:
            self._set_state(EngineState.STOPPED)
            raise
        if self._state is EngineState.STOPPED:
            await child.kill()
            raise EngineNotReadyError("the engine was closed while it started")
        self._child = child
        self._set_state(EngineState.READY)
        self._watcher = asyncio.create_task(self._watch(child), name="engine-supervisor")

    async def wait_ready(self) -> None:
        """Return when the state is READY; raises EngineNotReadyError once it is STOPPED."""
        while self.state is not EngineState.READY:
            if self._state is EngineState.STOPPED:
                raise EngineNotReadyError("the engine was closed")
            await self._state_changed.wait()

    async def close(self, timeout: float) -> None:
        """End the child: live requests are cancelled; it is killed after `timeout` seconds."""
        self._set_state(EngineState.STOPPED)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        child, self._child = self._child, None
        if child is not None:
            error = EngineNotReadyError("the engine was closed")
            child.session.end(FinishReason.CANCELLED, error)
            await child.stop(timeout)

    def _set_state(self, state: EngineState) -> None:
        self._state = state
        changed, self._state_changed = self._state_changed, asyncio.Event()
        changed.set()

    async def _watch(self, child: EngineChild) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            started = clock()
            how = await self._outlive(child)
            self._child = None
            self._set_state(EngineState.RESTARTING)
            await child.kill()
            _logger.error("engine process %d %s, starting another%s", child.pid, how, child.tail())
            if clock() - started >= self._policy.stable_after:
                failures = 0
            failures += 1
            child = await self._relaunch(failures)
            self.restarts += 1
            self._child = child
            self._set_state(EngineState.READY)

    async def _outlive(self, child: EngineChild) -> str:
        """How the child ended, when it has."""
        watchdog: asyncio.Task[None] | None = None
        if self._hang_timeout is not None:
            watchdog = asyncio.create_task(_kill_when_hung(child, self._hang_timeout))
        try:
            return await child.wait()
        finally:
            if watchdog is not None:
                watchdog.cancel()

    async def _relaunch(self, failures: int) -> EngineChild:
        """Launch and restore until it works; `failures` have gone before."""
        while True:
            await asyncio.sleep(self._policy.delay(failures))
            try:
                return await self._launch_restored()
            except Exception as error:  # whatever it was, the next one may start
                _logger.error("the engine did not start again: %s", error)
                failures += 1

    async def _launch_restored(self) -> EngineChild:
        child = await self._launch()
        try:
            await self._restore(child.session)
        except BaseException:  # cancellation too: nobody else knows of this child yet
            await child.kill()
            raise
        return child


async def _kill_when_hung(child: EngineChild, timeout: float) -> None:
    while True:
        await asyncio.sleep(timeout / _LOOKS)
        try:
            async with asyncio.timeout(timeout):
                await child.session.merged()  # the cheapest question
        except TimeoutError:
            _logger.error("engine process %d gave no answer for %g s", child.pid, timeout)
            child.signal_kill()
            return
        except EngineError:
            return  # it died meanwhile
