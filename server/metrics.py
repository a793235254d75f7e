"""Prometheus metrics of one server. Owns its registry; the engine's counters come at a scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from router_engine.info import AdapterResidency, MergedState
from router_engine.stats import GATE_BOUNDS, EngineStats

# The bounds of vLLM, so that its dashboards can be reused.
LATENCY = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
INTER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
ENTROPY = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
INFORMATION = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SWITCHES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
OTHER = "other"


class CurrentState:
    """The gauges that are set when a scrape comes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(Gauge, namespace="adaptermix", registry=registry)
        self.http_waiting = gauge(
            "requests_without_token", "Requests that have no token yet (bounded by max_waiting)."
        )
        self.engine_ready = gauge("engine_ready", "1 while the engine takes requests.")
        self.restarts = gauge(
            "process_restarts", "How often a process came back after its end.", ["process"]
        )
        self.figures_age = gauge("engine_figures_age_seconds", "Age of the engine's figures.")


class Metrics:
    """The metrics that the server counts itself."""

    def __init__(self, max_adapter_labels: int) -> None:
        self.registry = CollectorRegistry()
        self._max_adapter_labels = max_adapter_labels
        self._masses: dict[str, Counter] = {}  # by name: to ask for one by its label takes long
        self.requests = self._counter(
            "requests", "Requests that ended.", "endpoint", "finish_reason"
        )
        self.refused = self._counter("requests_refused", "Requests answered with 429.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generated_tokens = self._counter("generated_tokens", "Tokens of answers.")
        self.weight_mass = self._counter(
            "adapter_weight_mass", "Sum of |weight| over generated tokens.", "adapter"
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From submission to the first token.", FIRST_TOKEN
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", INTER_TOKEN
        )
        self.latency = self._histogram(
            "request_latency_seconds", "From submission to the last token.", LATENCY
        )
        self.queue_time = self._histogram(
            "request_queue_seconds", "From submission to the first scheduled token.", LATENCY
        )
        self.entropy = self._histogram(
            "routing_entropy_nats",
            "Entropy of the weights of a routed token.",
            ENTROPY,
            "router",
            "level",
        )
        self.switches = self._histogram(
            "routing_switches",
            "How often the strongest adapter changed from token to token in a routed request.",
            SWITCHES,
            "router",
            "level",
        )
        self.fallback_tokens = self._counter(
            "routing_fallback_tokens",
            "Routed tokens at which all weights were 0: the base answered.",
            "router",
            "level",
        )
        self.ensemble_requests = self._counter(
            "ensemble_requests", "Requests that an ensemble of copies answered."
        )
        self.mutual_information = self._histogram(
            "mutual_information_nats",
            "What the members of an ensemble disagreed on at a token.",
            INFORMATION,
        )
        self.now = CurrentState(self.registry)

    def add_weights(self, masses: Mapping[str, float]) -> None:
        """Count weight mass by adapter name; adapters past the bound share one label."""
        unlabelled: list[float] = []
        for name, mass in masses.items():
            counter = self._masses.get(name)
            if counter is None and len(self._masses) < self._max_adapter_labels:
                counter = self._masses[name] = self.weight_mass.labels(name)
            if counter is None:
                unlabelled.append(mass)
            else:
                counter.inc(mass)
        if unlabelled:
            self.weight_mass.labels(OTHER).inc(sum(unlabelled))

    def render(self, engine: EngineMetrics | None) -> bytes:
        """The exposition text; `engine` None while the engine does not answer."""
        own = generate_latest(self.registry)
        return own if engine is None else own + generate_latest(_once(engine))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"adaptermix_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"adaptermix_{name}", text, labels, buckets=buckets, registry=self.registry
        )


class EngineMetrics:
    """A collector over one snapshot of the engine, with the engine's own counters as they are."""

    def __init__(
        self,
        stats: EngineStats,
        residency: Sequence[AdapterResidency],
        merged: MergedState,
    ) -> None:
        self._stats = stats
        self._residency = residency
        self._merged = merged

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of the page."""
        yield from self._gauges()
        yield from self._counters()
        yield InfoMetricFamily(
            "adaptermix_kernels",
            "What computes steps: an instruction set of the C++ decoder, torch, or triton.",
            value={"name": self._stats.kernels},
        )
        yield self._memory_family()
        yield self._gate_family()
        yield self._residency_family()
        yield SummaryMetricFamily(
            "adaptermix_adapter_load_seconds",
            "Time to bring an adapter to the device.",
            count_value=self._stats.adapter_loads,
            sum_value=self._stats.adapter_load_seconds,
        )

    def _memory_family(self) -> Metric:
        family = GaugeMetricFamily(
            "adaptermix_memory_bytes", "Memory of the device by what it is for.", labels=["part"]
        )
        for part in self._stats.memory:
            family.add_metric([part.name], part.num_bytes)
        return family

    def _gauges(self) -> Iterable[Metric]:
        stats = self._stats
        used = stats.blocks_owned / stats.blocks_total if stats.blocks_total else 0.0
        for name, text, value in (
            ("requests_running", "Requests that own KV blocks.", stats.running),
            ("requests_waiting", "Requests in the engine's queue.", stats.waiting),
            (
                "requests_waiting_for_adapters",
                "Requests whose adapters are being loaded.",
                stats.waiting_for_adapters,
            ),
            (
                "requests_waiting_for_weights",
                "Requests that wait for a router.",
                stats.waiting_for_weights,
            ),
            ("kv_cache_usage_ratio", "Share of KV blocks that requests own.", used),
            ("kv_blocks_total", "KV blocks.", stats.blocks_total),
            ("kv_blocks_cached", "Free KV blocks kept for their prefix.", stats.blocks_cached),
            (
                "adapter_memory_bytes",
                "Memory for adapters on the device.",
                stats.adapter_memory_bytes,
            ),
            (
                "adapter_memory_used_bytes",
                "Memory for adapters that adapters have.",
                stats.adapter_memory_used_bytes,
            ),
            ("rank_rows_used", "Rank rows that adapters own.", stats.rank_rows_used),
            (
                "merged",
                "1 while a mixture is folded in.",
                self._merged.mixture is not None,
            ),
            ("merge_seconds", "What the last merge or restore took.", self._merged.seconds),
        ):
            yield GaugeMetricFamily(f"adaptermix_{name}", text, value=float(value))

    def _counters(self) -> Iterable[Metric]:
        stats = self._stats
        for name, text, value in (
            ("engine_steps", "Steps of the engine.", stats.steps),
            ("engine_step_seconds", "Time spent in steps.", stats.step_seconds),
            ("engine_prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens),
            ("engine_generated_tokens", "Tokens generated.", stats.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queried_tokens),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit_tokens),
            ("preemptions", "Requests that gave up their blocks.", stats.preemptions),
            (
                "steps_without_memory",
                "Steps that found no memory on the device and were run again with fewer tokens.",
                stats.steps_without_memory,
            ),
            ("adapter_evictions", "Adapters that left the device.", stats.adapter_evictions),
            ("merges", "Merges and restores of the base.", stats.merges),
        ):
            yield CounterMetricFamily(f"adaptermix_{name}", text, value=float(value))

    def _gate_family(self) -> Metric:
        at_most = accumulate(self._stats.gate_counts)
        bounds = (*map(str, GATE_BOUNDS), "+Inf")
        return HistogramMetricFamily(
            "adaptermix_gate_value",
            "Gates of the experts inside layers at tokens that yield one; those at 0 are closed.",
            buckets=[(bound, float(count)) for bound, count in zip(bounds, at_most, strict=True)],
            sum_value=self._stats.gate_total,
        )

    def _residency_family(self) -> Metric:
        family = GaugeMetricFamily(
            "adaptermix_adapters_resident",
            "Adapters by where their weights are.",
            labels=["level", "pinned"],
        )
        counts: dict[tuple[str, str], int] = {
            (level, pinned): 0 for level in ("host", "device") for pinned in ("false", "true")
        }
        for entry in self._residency:
            key = (entry.residency.value, "true" if entry.pinned else "false")
            counts[key] = counts.get(key, 0) + 1
        for labels, count in counts.items():
            family.add_metric(labels, count)
        return family


def _once(collector: EngineMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
