"""What /metrics tells: counters over the lives of several engines, and pools when all is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

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
    """What the pools hold, as soon as that is nothing, or after so many seconds."""
    deadline = time.perf_counter() + seconds
    while True:
        values = await scrape(http)
        held = {name.removeprefix("adaptermix_"): values[name] for name in POOLS if name in values}
        fresh = values.get(_AGE, 0.0) < _FRESH_SECONDS and len(held) == len(POOLS)
        if (fresh and not any(held.values())) or time.perf_counter() > deadline:
            return held
        await asyncio.sleep(_PAUSE_SECONDS)
