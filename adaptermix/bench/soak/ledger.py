"""Counts what became of every request, and says whether a soak held."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from adaptermix.bench.soak.answers import Comparison, Told, compare, unversioned
from adaptermix.bench.soak.asking import Ended
from adaptermix.bench.soak.questions import SoakRequest

MEMORY_GROWTH = 0.05
_MOST_KEPT = 20  # examples of one kind of trouble

# What a server may say while processes die and pools are full. A 500 is never among them.
EXPECTED = {
    "engine_not_ready": "the engine starts",
    "engine_died": "the engine died under the request",
    "router_unavailable": "the encoder starts, or died under the request",
    "overloaded": "too many wait",
}
_GONE = "not_found"
_LATE = "timeout"
# What it may say at any time, of a request that asks for it.
ASKED_FOR = {_GONE: "an adapter that was deleted", _LATE: "its own `timeout` was over"}
_ALWAYS = ("overloaded",)


@dataclass(slots=True)
class SoakRecord:
    """Every request ends in here, once. `begun` less all ends must be 0 when it is over."""

    tolerance: float
    begun: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # right or tied, by kind and route
    ties: int = 0
    left: int = 0  # ended by the client itself
    errors: Counter[str] = field(default_factory=Counter)  # expected ones
    admin: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)
    num_wrong: int = 0
    num_lost: int = 0
    num_undocumented: int = 0
    largest: float = 0.0  # nats between an answer and its reference
    longest: float = 0.0  # seconds of a request
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_answers(self) -> int:
        return sum(self.answers.values())

    @property
    def unaccounted(self) -> int:
        """Requests that have begun and not ended."""
        ends = self.num_answers + self.left + sum(self.errors.values())
        return self.begun - ends - self.num_wrong - self.num_lost - self.num_undocumented

    def note(
        self, question: SoakRequest, references: Sequence[Told], ended: Ended, *, calm: bool = False
    ) -> None:
        """One request has ended; `calm`: nothing was broken while it ran."""
        name = f"{question.kind} on {question.route}"
        self.longest = max(self.longest, ended.seconds)
        if ended.told is not None:
            told = ended.told
            if question.comes_and_goes:
                told, references = unversioned(told), [unversioned(one) for one in references]
            self._compared(name, compare(told, references, self.tolerance))
        elif ended.left:
            self.left += 1
        elif ended.lost is not None:
            self.note_lost(f"{name}: {ended.lost}")
        else:
            self._refused(question, name, ended, calm=calm)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def note_lost(self, what: str) -> None:
        """A request has no known end."""
        self.num_lost += 1
        _keep(self.lost, what)

    def note_undocumented(self, what: str) -> None:
        """A server said what it may not say."""
        self.num_undocumented += 1
        _keep(self.undocumented, what)

    async def until(self, answers: int, seconds: float) -> None:
        """Return once there are so many answers, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.num_answers < answers:
                    await self._grown.wait()

    def _compared(self, name: str, found: Comparison) -> None:
        if found.match == "wrong":
            self.num_wrong += 1
            _keep(self.wrong, f"{name}: {found.why} (by {found.difference:.2e} nats)")
            return
        self.answers[name] += 1
        self.ties += found.match == "tie"
        self.largest = max(self.largest, found.difference)

    def _refused(self, question: SoakRequest, name: str, ended: Ended, *, calm: bool) -> None:
        told = f"{ended.status or 'in a stream'} {ended.error}"
        expected = set(_ALWAYS if calm else EXPECTED)
        if question.comes_and_goes:
            expected.add(_GONE)
        if ended.hurried:
            expected.add(_LATE)
        if ended.error in expected:
            self.errors[told] += 1
        else:
            self.note_undocumented(f"{name}: {told}{' though nothing was broken' * calm}")


def _keep(examples: list[str], what: str) -> None:
    if len(examples) < _MOST_KEPT:
        examples.append(what)


@dataclass(frozen=True, slots=True)
class SoakVerdict:
    """One promise, and whether the run kept it; None where the run cannot say."""

    promise: str
    found: str
    holds: bool | None


def verdicts(result: dict[str, Any]) -> list[SoakVerdict]:
    """What a soak promises, from its result as written to JSON."""
    counts, after = result["requests"], result["after"]
    faults = result["faults"]
    away = [fault for fault in faults if not fault["recovered"]]
    unseen = [fault for fault in faults if fault["ready_lost"] is False]
    return [
        _none("wrong answers", counts["wrong"]),
        _none("lost requests", counts["lost"] + counts["unaccounted"]),
        _none("errors that are not documented for it", counts["undocumented"]),
        _forced(result["counters"]),
        SoakVerdict(
            "a process that was killed or stopped is replaced",
            f"{len(faults) - len(away)} of {len(faults)}",
            not away if faults else None,
        ),
        _none("engines that were away while /health/ready said 200", len(unseen)),
        *(_memory(line) for line in result["memory"] if line["judged"]),
        _none(
            "KV blocks and rank rows in use, requests in the engine", sum(after["pools"].values())
        ),
        _none("processes left behind", len(after["processes"])),
        _none("temporary files left behind", len(after["files"])),
        _none("exceptions in the log", after["exceptions"]),
        SoakVerdict("the server ends with 0 after SIGTERM", str(after["exit"]), after["exit"] == 0),
    ]


def _forced(counters: dict[str, float]) -> SoakVerdict:
    """A soak without them would have kept its promises too easily."""
    found = {name: counters.get(name, 0.0) for name in ("preemptions", "evictions", "merges")}
    told = ", ".join(f"{count:,.0f}" for count in found.values())
    return SoakVerdict(f"there were {', '.join(found)}", told, all(found.values()))


def _none(what: str, count: float) -> SoakVerdict:
    return SoakVerdict(f"no {what}", f"{count:g}", count == 0)


def _memory(line: dict[str, Any]) -> SoakVerdict:
    growth = line["growth"]
    promise = f"memory of the {line['role']} within {MEMORY_GROWTH:.0%}"
    if growth is None:
        return SoakVerdict(promise, "too short a run", None)
    return SoakVerdict(promise, f"{growth:+.1%}", growth <= MEMORY_GROWTH)
