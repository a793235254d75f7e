"""The record of a soak: the end of every request, and the counts of /metrics over all engines."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from adaptermix.bench.soak.answers import Comparison, Ended, Told, compare, unversioned
from adaptermix.bench.soak.questions import SoakRequest

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
                told, references = (
                    unversioned(told),
                    [unversioned(reference) for reference in references],
                )
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

    def _compared(self, name: str, comparison: Comparison) -> None:
        if comparison.match == "wrong":
            self.num_wrong += 1
            _keep(self.wrong, f"{name}: {comparison.why} (by {comparison.difference:.2e} nats)")
            return
        self.answers[name] += 1
        self.ties += comparison.match == "tie"
        self.largest = max(self.largest, comparison.difference)

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


# Of one engine each: after a restart they begin again.
COUNTERS = {
    "adaptermix_preemptions_total": "preemptions",
    "adaptermix_adapter_evictions_total": "evictions",
    "adaptermix_merges_total": "merges",
    "adaptermix_engine_steps_total": "steps",
    "adaptermix_engine_generated_tokens_total": "tokens",
    "adaptermix_prefix_cache_hits_total": "prefix hits",
}
# What must be 0 once nobody asks and every adapter was told to go.
POOLS = (
    "adaptermix_kv_cache_usage_ratio",
    "adaptermix_rank_rows_used",
    "adaptermix_requests_running",
    "adaptermix_requests_waiting",
    "adaptermix_requests_waiting_for_adapters",
    "adaptermix_requests_waiting_for_weights",
    "adaptermix_requests_without_token",
)
_AGE = "adaptermix_engine_figures_age_seconds"
_FRESH_SECONDS = 1.0
_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Figures:
    """Sums of counters that fall back to 0 with each engine."""

    totals: dict[str, float] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask once."""
        self.add(await scrape(http))

    def add(self, values: Mapping[str, float]) -> None:
        """Count what came on top of the last values."""
        for name, title in COUNTERS.items():
            if name in values:
                before = self._last.get(name, 0.0)
                rise = values[name] - before if values[name] >= before else values[name]
                self.totals[title] = self.totals.get(title, 0.0) + rise
                self._last[name] = values[name]


async def scrape(http: aiohttp.ClientSession) -> dict[str, float]:
    """Every sample without labels."""
    async with http.get("/metrics") as response:
        text = await response.text()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


async def pools_of(http: aiohttp.ClientSession, seconds: float) -> dict[str, float]:
    """The contents of the pools, as soon as they are empty, or after so many seconds."""
    deadline = time.perf_counter() + seconds
    while True:
        values = await scrape(http)
        held = {name.removeprefix("adaptermix_"): values[name] for name in POOLS if name in values}
        fresh = values.get(_AGE, 0.0) < _FRESH_SECONDS and len(held) == len(POOLS)
        if (fresh and not any(held.values())) or time.perf_counter() > deadline:
            return held
        await asyncio.sleep(_PAUSE_SECONDS)
