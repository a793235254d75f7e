"""The processes of a server, as Linux tells of them: who they are, and what memory they hold."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adaptermix.bench.peers.memory import descendants

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
    found: dict[Role, int] = {"server": server}
    for child in children(server):
        command = command_of(child)
        for role, module in _MODULES.items():
            if module in command:
                found[role] = child
    return found


def children(pid: int) -> list[int]:
    """Direct children; none of a process that has ended."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def command_of(pid: int) -> str:
    """The command line, empty where the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _birth(pid: int) -> str:
    """When a process began, in the kernel's own ticks; empty where it has ended."""
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
