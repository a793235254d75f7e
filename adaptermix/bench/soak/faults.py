"""Kills and stops the processes of a server at random, and watches them come back."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import aiohttp

from adaptermix.bench.soak.processes import Role, living, send

_POLL_SECONDS = 0.05
_FAULTS: tuple[tuple[Role, signal.Signals], ...] = (
    ("engine", signal.SIGKILL),
    ("engine", signal.SIGSTOP),
    ("encoder", signal.SIGKILL),
    ("encoder", signal.SIGSTOP),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to one process, and what came of it."""

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
        """How many are to come before each has come as often as the others."""
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
