"""Keeps one child process running: starts it, watches it, and starts it again when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

_logger = logging.getLogger(__name__)

LONG_WORK_PATIENCE = 10  # times the patience, for a child that computes or has announced long work
_LOOKS = 8  # in the time after which a child counts as hung
_COMPUTES = 0.05  # of a core, from one look to the next: what waits or is stopped takes far less


class RunState(StrEnum):
    """Whether what is supervised can do its work."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Child(Protocol):
    """A process that was launched and can do its work."""

    @property
    def pid(self) -> int: ...

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        ...

    @property
    def long_work(self) -> str | None:
        """What it has announced to be busy with for long."""
        ...

    @property
    def cpu_seconds(self) -> float:
        """What its process has computed so far, on all cores together."""
        ...

    def tail(self) -> str:
        """The end of its output, as indented lines to put behind a message."""
        ...

    async def heartbeat(self) -> None:
        """Return when the loop that does its work has answered a question."""

    async def wait(self) -> str:
        """How the process ended, when it has: `was killed by SIGKILL`, `exited with code 1`."""
        ...

    async def stop(self, timeout: float) -> None:
        """Ask it to end, kill it after `timeout` seconds, free what it held."""

    async def kill(self) -> None:
        """Kill it if it still runs, and free what it held."""

    def signal_kill(self) -> None:
        """Send SIGKILL and do not wait: `wait` says when it has ended."""


C = TypeVar("C", bound=Child)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How fast a child that ends is started again. Seconds."""

    initial_delay: float = 0.1
    factor: float = 2.0
    max_delay: float = 30.0
    stable_after: float = 60.0  # having run this long, it counts as sound again

    def delay(self, failures: int) -> float:
        """The wait before the next start after `failures` >= 1 failures in a row."""
        return min(self.max_delay, self.initial_delay * self.factor ** min(failures - 1, 64))


async def _nothing_to_restore(child: Child) -> None:
    """What a child without a state needs."""


class Supervisor(Generic[C]):
    """The state machine STARTING -> READY <-> RESTARTING -> STOPPED around one child.

    `launch` starts a child and returns when it can do its work; `restore` brings a restarted one
    into the state that the dead one had, before it is READY. With `patience` a child whose loop
    gives no heartbeat for so many seconds is killed, which restarts it; one that computes all the
    while, or has announced long work, is given LONG_WORK_PATIENCE times as long.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[C]],
        *,
        restore: Callable[[C], Awaitable[None]] = _nothing_to_restore,
        policy: RestartPolicy | None = None,
        patience: float | None = None,
    ) -> None:
        """`name` is what the logs call the child: "engine"."""
        self._name = name
        self._launch = launch
        self._restore = restore
        self._policy = policy or RestartPolicy()
        self._patience = patience
        self._state = RunState.STARTING
        self._state_changed = asyncio.Event()
        self._child: C | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.restarts = 0  # since the first start

    @property
    def state(self) -> RunState:
        """What the child can do now; its death shows at once."""
        if self._state is RunState.READY and not (self._child and self._child.alive):
            return RunState.RESTARTING
        return self._state

    @property
    def child(self) -> C | None:
        """The child that does the work; None while there is none."""
        return self._child if self.state is RunState.READY else None

    async def start(self) -> bool:
        """Launch the first child; False when `close` came first.

        Raises what `launch` raised, and does not try again.
        """
        try:
            child = await self._launch()
        except BaseException:
            self._set_state(RunState.STOPPED)
            raise
        if self._state is RunState.STOPPED:
            await child.kill()
            return False
        self._keeper = asyncio.create_task(self._keep(child), name=f"{self._name}-supervisor")
        self._put(child)
        return True

    def start_soon(self) -> None:
        """Launch the first child behind the caller, again and again until it works."""
        self._keeper = asyncio.create_task(self._keep(None), name=f"{self._name}-supervisor")

    async def wait_ready(self) -> bool:
        """Return True when the state is READY, False once it is STOPPED."""
        while self.state is not RunState.READY:
            if self._state is RunState.STOPPED:
                return False
            await self._state_changed.wait()
        return True

    async def close(self, timeout: float) -> None:
        """End the child; it is killed after `timeout` seconds."""
        if self._closing is None:
            self._set_state(RunState.STOPPED)
            self._closing = asyncio.create_task(self._close(timeout), name=f"{self._name}-close")
        await asyncio.shield(self._closing)  # a second caller, too, returns when it has ended

    async def _close(self, timeout: float) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        child, self._child = self._child, None
        if child is not None:
            await child.stop(timeout)

    def _put(self, child: C) -> None:
        self._child = child
        self._set_state(RunState.READY)

    def _set_state(self, state: RunState) -> None:
        self._state = state
        changed, self._state_changed = self._state_changed, asyncio.Event()
        changed.set()

    async def _keep(self, child: C | None) -> None:
        """Look after `child`, which is READY, or None, and after those that follow it."""
        clock = asyncio.get_running_loop().time
        failures = 0
        if child is None:
            child = await self._launch_until_it_works(0)
            self._put(child)
        while True:
            started = clock()
            try:
                await self._see_out(child)
            except Exception as error:  # whatever it was, another must follow
                self._lose(child)
                self._tell("the %s's end cannot be seen to: %r", self._name, error)
            if clock() - started >= self._policy.stable_after:
                failures = 0
            failures += 1
            child = await self._launch_until_it_works(failures)
            self.restarts += 1
            self._put(child)

    async def _see_out(self, child: C) -> None:
        """Wait for the child's end, free what it held and tell of it."""
        how = await self._outlive(child)
        self._child = None
        self._set_state(RunState.RESTARTING)
        await child.kill()
        self._tell("%s process %d %s, starting another%s", self._name, child.pid, how, child.tail())

    def _lose(self, child: C) -> None:
        """Leave a child that cannot be seen out, dead if possible."""
        self._child = None
        self._set_state(RunState.RESTARTING)
        with suppress(Exception):
            child.signal_kill()

    def _tell(self, message: str, *args: object) -> None:
        """Log an error. A log that cannot be written must not end the keeping."""
        with suppress(Exception):
            _logger.error(message, *args)

    async def _outlive(self, child: C) -> str:
        """How the child ended, when it has."""
        watchdog = asyncio.create_task(self._watch(child))
        try:
            return await child.wait()
        finally:
            watchdog.cancel()

    async def _watch(self, child: C) -> None:
        """Kill a child that hangs."""
        if self._patience is None:
            return
        try:
            await until_hung(child, self._patience)
        except Exception:  # a question that fails tells less than the end of the process will
            _logger.debug("%s process %d cannot be asked", self._name, child.pid, exc_info=True)
            return
        self._tell(
            "%s process %d gave no heartbeat for %g s", self._name, child.pid, self._patience
        )
        child.signal_kill()

    async def _launch_until_it_works(self, failures: int) -> C:
        """Launch and restore; `failures` have gone before."""
        while True:
            if failures:
                await asyncio.sleep(self._policy.delay(failures))
            try:
                return await self._launch_restored()
            except Exception as error:  # whatever it was, the next one may start
                self._tell("the %s did not start: %s", self._name, error)
                failures += 1

    async def _launch_restored(self) -> C:
        child = await self._launch()
        watchdog = asyncio.create_task(self._watch(child))
        try:
            await self._restore(child)
        except BaseException:  # cancellation too: nobody else knows of this child yet
            await child.kill()
            raise
        finally:
            watchdog.cancel()
        return child


async def until_hung(child: Child, patience: float) -> None:
    """Return when the child has given no heartbeat for `patience` seconds, or ten times as long.

    The latter where it has computed meanwhile: one step of a large model, or of a long prompt that
    is read as a whole, may take minutes. A process that is stopped or waits for ever does not
    compute. The time is counted in looks, so that a stall of this process is one look at most.
    """
    look = patience / _LOOKS
    while True:
        await asyncio.sleep(look)
        computed = child.cpu_seconds
        answer = asyncio.ensure_future(child.heartbeat())
        try:
            looks = still = 0  # since the question; since it last computed
            while not (await asyncio.wait({answer}, timeout=look))[0]:
                looks += 1
                before, computed = computed, child.cpu_seconds
                still = 0 if computed - before >= _COMPUTES * look else still + 1
                patient = child.long_work is not None
                if looks >= _LOOKS * LONG_WORK_PATIENCE or (still >= _LOOKS and not patient):
                    return
            await answer
        finally:
            answer.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await answer
