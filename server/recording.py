"""Times one request and counts it, however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from router_engine.events import FinalEvent, TokenEvent
from server.metrics import Metrics, routing_entropy
from server.mixtures import Plan


class Recorder:
    """The clock of one request. `begun` is told the wait at the first token."""

    def __init__(
        self, metrics: Metrics, plan: Plan, endpoint: str, begun: Callable[[float], None]
    ) -> None:
        self._metrics = metrics
        self._plan = plan
        self._endpoint = endpoint
        self._begun = begun
        self._started = time.perf_counter()
        self._last: float | None = None
        self._tokens = 0
        self._masses = dict.fromkeys(plan.names, 0.0)
        self._routing = plan.router and metrics.entropy.labels(plan.router, plan.level)
        self._fallback = plan.router and metrics.fallback_tokens.labels(plan.router, plan.level)

    def token(self, event: TokenEvent) -> None:
        """A token came."""
        now = time.perf_counter()
        if self._last is None:
            self._begun(now - self._started)
            self._metrics.first_token.observe(now - self._started)
        else:
            self._metrics.inter_token.observe(now - self._last)
        self._last = now
        self._tokens += 1
        weights = event.weights if self._plan.routing else self._plan.weights
        for name, weight in zip(self._plan.names, weights, strict=False):
            self._masses[name] += abs(weight)
        if self._routing:
            self._routing.observe(routing_entropy(weights))
        if self._fallback and not any(weights):
            self._fallback.inc()

    def final(self, event: FinalEvent) -> None:
        """The engine's own account of the request."""
        self._metrics.queue_time.observe(event.queue_seconds)

    def end(self, reason: str, prompt_tokens: int) -> None:
        """The request is over; `reason` is a finish reason, "cancelled" or "error"."""
        metrics = self._metrics
        metrics.requests.labels(self._endpoint, reason).inc()
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.generated_tokens.inc(self._tokens)
        metrics.latency.observe(time.perf_counter() - self._started)
        metrics.add_weights(self._masses)
