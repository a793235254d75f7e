"""The processes of a server: their memory, and the kills and stops that they are to survive."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp

from adaptermix.bench.machine import descendants

Role = Literal["server", "engine", "encoder"]
# What stands in a child's command line.
_MODULES: dict[Role, str] = {
    "engine": "router_engine.process.engine_main",
    "encoder": "router_engine.routers.encoder.worker",
}
# Samples of a life: those of the warm-up are left aside, the first fifth of the others is compared
# with the last.
_WARM_UP = 60
_PARTS = 5
LEAST_SAMPLES = _WARM_UP + 240
_KIB = 1024
_PAUSE_SECONDS = 0.1


@dataclass(slots=True)
class Incarnation:
    """One process from its first sample to its last. Bytes of resident memory."""

    role: Role
    pid: int
    samples: list[int] = field(default_factory=list)

    def growth(self) -> float | None:
        """The last window's median over that of the first after the warm-up, less one.

        None where it did not live long enough to say.
        """
        if len(self.samples) < LEAST_SAMPLES:
            return None
        warm = self.samples[_WARM_UP:]
        part = len(warm) // _PARTS
        return _median(warm[-part:]) / _median(warm[:part]) - 1


class Watch:
    """All processes of one server that were ever seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.seen: dict[int, Incarnation] = {}
        self._born: dict[int, str] = {}  # of all, compilers too: a number may be given out again

    def look(self) -> None:
        """Take one sample of each."""
        for role, pid in living(self._pid).items():
            size = resident(pid)
            if size is not None:
                self.seen.setdefault(pid, Incarnation(role, pid)).samples.append(size)
        with suppress(OSError):  # one that ended meanwhile
            for pid in descendants(self._pid):
                self._born.setdefault(pid, _birth(pid))

    def left(self) -> list[int]:
        """Those that still run."""
        return [pid for pid, born in self._born.items() if born and _birth(pid) == born]

    def left_after(self, seconds: float) -> list[int]:
        """Those that still run when so many seconds have passed."""
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        return self.left()


def living(server: int) -> dict[Role, int]:
    """Processes by what they are, as far as they run now."""
    pids: dict[Role, int] = {"server": server}
    for child in children(server):
        command = command_of(child)
        for role, module in _MODULES.items():
            if module in command:
                pids[role] = child
    return pids


def children(pid: int) -> list[int]:
    """Direct children; none of a process that has ended."""
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            pids += map(int, task.read_text().split())
    return pids


def command_of(pid: int) -> str:
    """The command line, empty where the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _birth(pid: int) -> str:
    """The moment at which a process began, in the kernel's own ticks; empty where it has ended."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def resident(pid: int) -> int | None:
    """Bytes of memory, or None where the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return _KIB * int(line.split()[1])
    return None


def send(pid: int, number: signal.Signals) -> bool:
    """Whether the process was there to get it."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


_POLL_SECONDS = 0.05
_FAULTS: tuple[tuple[Role, signal.Signals], ...] = (
    ("engine", signal.SIGKILL),
    ("engine", signal.SIGSTOP),
    ("encoder", signal.SIGKILL),
    ("encoder", signal.SIGSTOP),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal to one process, and its outcome."""

    role: Role
    what: Literal["SIGKILL", "SIGSTOP"]
    answers: int  # given before
    seconds: float | None  # until another process was there and ready; None where none came
    # Whether /health/ready was not 200 at some time between; None for the encoder, which it does
    # not speak of.
    ready_lost: bool | None

    @property
    def recovered(self) -> bool:
        return self.seconds is not None


class Order:
    """Faults in an order of chance in which each kind comes before any comes again."""

    def __init__(self, chooser: random.Random) -> None:
        self._chooser = chooser
        self._left: list[tuple[Role, signal.Signals]] = []

    @property
    def left(self) -> int:
        """The number of faults until each has come as often as the others."""
        return len(self._left)

    def take(self) -> tuple[Role, signal.Signals]:
        if not self._left:
            self._left = list(_FAULTS)
            self._chooser.shuffle(self._left)
        return self._left.pop()


async def strike(
    http: aiohttp.ClientSession,
    server: int,
    fault: tuple[Role, signal.Signals],
    works: Callable[[Role], Awaitable[bool]],
    answers: int,
    bound: float,
) -> Fault | None:
    """Send the signal and wait for the next process that `works`, `bound` seconds at most.

    One that does not come is helped on by a SIGKILL, so that the run may go on. None where there is
    no such process to begin with.
    """
    role, number = fault
    pid = living(server).get(role)
    if pid is None or not send(pid, number):
        return None
    began = time.perf_counter()
    lost = False
    seconds = None
    while time.perf_counter() - began < bound:
        ready = await is_ready(http)
        lost = lost or not ready
        if ready and living(server).get(role, pid) != pid and await works(role):
            seconds = time.perf_counter() - began
            break
        await asyncio.sleep(_POLL_SECONDS)
    else:
        send(pid, signal.SIGKILL)
    name: Literal["SIGKILL", "SIGSTOP"] = "SIGKILL" if number is signal.SIGKILL else "SIGSTOP"
    return Fault(role, name, answers, seconds, lost if role == "engine" else None)


async def is_ready(http: aiohttp.ClientSession) -> bool:
    async with http.get("/health/ready") as response:
        return response.ok
