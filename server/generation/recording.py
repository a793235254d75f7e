"""Times one request and counts it, however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from router_engine.events import FinalEvent, TokenEvent
from server.generation.mixtures import PlannedMixture
from server.generation.weight_statistics import entropy, strongest, switches
from server.metrics import Metrics


class Recorder:
    """The clock of one request. `on_first_token` is called with the seconds to the first token."""

    def __init__(
        self,
        metrics: Metrics,
        plan: PlannedMixture,
        endpoint: str,
        on_first_token: Callable[[float], None],
    ) -> None:
        self._metrics = metrics
        self._plan = plan
        self._endpoint = endpoint
        self._on_first_token = on_first_token
        self._started = time.perf_counter()
        self._last: float | None = None
        self._tokens = 0
        self._masses = dict.fromkeys(plan.names, 0.0)
        self._entropy = plan.router and metrics.entropy.labels(plan.router, plan.level)
        self._fallback = plan.router and metrics.fallback_tokens.labels(plan.router, plan.level)
        self._winners: list[int | None] = []  # the strongest adapter of each routed token

    def token(self, event: TokenEvent) -> None:
        """A token came."""
        now = time.perf_counter()
        if self._last is None:
            self._on_first_token(now - self._started)
            self._metrics.first_token.observe(now - self._started)
        else:
            self._metrics.inter_token.observe(now - self._last)
        self._last = now
        self._tokens += 1
        weights = self._plan.weights_at(event)
        for name, weight in zip(self._plan.names, weights, strict=False):
            self._masses[name] += abs(weight)
        if self._entropy and weights:
            self._entropy.observe(entropy(weights))
            self._winners.append(strongest(weights))
        if self._fallback and weights and not any(weights):
            self._fallback.inc()
        if event.uncertainty is not None and event.uncertainty.mutual_information is not None:
            self._metrics.mutual_information.observe(event.uncertainty.mutual_information)

    def final(self, event: FinalEvent) -> None:
        """The engine's own account of the request."""
        self._metrics.queue_time.observe(event.queue_seconds)

    def end(self, reason: str, prompt_tokens: int) -> None:
        """The request is over; `reason` is a finish reason, "cancelled" or "error"."""
        metrics = self._metrics
        metrics.requests.labels(self._endpoint, reason).inc()
        if self._plan.ensemble:
            metrics.ensemble_requests.inc()
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.generated_tokens.inc(self._tokens)
        metrics.latency.observe(time.perf_counter() - self._started)
        metrics.add_weights(self._masses)
        if self._winners:
            routed = metrics.switches.labels(self._plan.router, self._plan.level)
            routed.observe(switches(self._winners))
