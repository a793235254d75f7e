"""/metrics: what is counted, and that the number of labels is bounded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics
from tests.server.live import Live
from tests.support.waiting import wait_for

ASKED = {"max_new_tokens": 5, "ignore_eos_token": True}
FAMILIES = (
    "adaptermix_requests",
    "adaptermix_prompt_tokens",
    "adaptermix_generated_tokens",
    "adaptermix_time_to_first_token_seconds",
    "adaptermix_inter_token_latency_seconds",
    "adaptermix_request_latency_seconds",
    "adaptermix_request_queue_seconds",
    "adaptermix_requests_refused",
    "adaptermix_requests_running",
    "adaptermix_requests_waiting",
    "adaptermix_kv_cache_usage_ratio",
    "adaptermix_prefix_cache_hits",
    "adaptermix_preemptions",
    "adaptermix_adapters_resident",
    "adaptermix_adapter_load_seconds",
    "adaptermix_merged",
    "adaptermix_routing_entropy_nats",
    "adaptermix_routing_switches",
    "adaptermix_adapter_weight_mass",
    "adaptermix_engine_ready",
    "adaptermix_gate_value",
)


def page(live: Live) -> str:
    """The page once the engine's figures are on it, which no scrape waits for."""
    wait_for(lambda: "adaptermix_requests_running" in live.client.get("/metrics").text)
    return live.client.get("/metrics").text


def samples(live: Live) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = live.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def increase(live: Live, name: str, before: Any, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return float(samples(live)[key] - before.get(key, 0.0))


def test_every_family_is_there_and_parses(live: Live) -> None:
    text = page(live)
    found = {family.name for family in text_string_to_metric_families(text)}
    assert set(FAMILIES) <= found


def test_a_request_is_counted_once(live: Live) -> None:
    before = samples(live)
    live.answer(parameters=ASKED)
    labels = {"endpoint": "generate", "finish_reason": "length"}
    assert increase(live, "adaptermix_requests_total", before, **labels) == 1
    assert increase(live, "adaptermix_prompt_tokens_total", before) == 5
    assert increase(live, "adaptermix_generated_tokens_total", before) == 5
    assert increase(live, "adaptermix_time_to_first_token_seconds_count", before) == 1
    assert increase(live, "adaptermix_inter_token_latency_seconds_count", before) == 4
    assert increase(live, "adaptermix_request_latency_seconds_count", before) == 1
    assert increase(live, "adaptermix_request_queue_seconds_count", before) == 1


def test_weight_mass_and_entropy(live: Live) -> None:
    before = samples(live)
    mixture = {"adapters": [{"name": "math", "weight": 0.5}, {"name": "code", "weight": -2}]}
    live.answer(parameters=ASKED, mixture=mixture)
    mass = "adaptermix_adapter_weight_mass_total"
    assert increase(live, mass, before, adapter="math") == pytest.approx(2.5)
    assert increase(live, mass, before, adapter="code") == pytest.approx(10)
    router = {"name": "similarity", "level": "token", "candidates": ["math", "code"]}
    live.answer(parameters=ASKED, mixture={"router": router})
    labels = {"router": "similarity", "level": "token"}
    assert increase(live, "adaptermix_routing_entropy_nats_count", before, **labels) == 5
    total = increase(live, mass, before, adapter="math") + increase(
        live, mass, before, adapter="code"
    )
    assert total == pytest.approx(12.5 + 5, rel=1e-4)


def test_switches_of_a_request(live: Live) -> None:
    before = samples(live)
    rows = [[1, 0], [0, 1], [0.5, 0.5], [0, 0], [0.25, 0.75]]  # code, math, the base, code: 4
    router = {"name": "given", "level": "token", "candidates": ["math", "code"], "weights": rows}
    live.answer(parameters=ASKED, mixture={"router": router})
    labels = {"router": "given", "level": "token"}
    name = "adaptermix_routing_switches"
    assert increase(live, f"{name}_count", before, **labels) == 1
    assert increase(live, f"{name}_sum", before, **labels) == 4
    assert increase(live, f"{name}_bucket", before, **labels, le="2.0") == 0
    assert increase(live, f"{name}_bucket", before, **labels, le="4.0") == 1
    entropies = (0, 0, math.log(2), 0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    measured = increase(live, "adaptermix_routing_entropy_nats_sum", before, **labels)
    assert measured == pytest.approx(sum(entropies))
    live.answer(parameters=ASKED, mixture={"adapters": [{"name": "math"}]})
    live.answer(parameters=ASKED)
    assert increase(live, f"{name}_count", before, **labels) == 1  # only routed ones count


def test_residency_and_prefix_hits_come_from_the_engine(live: Live) -> None:
    live.client.post("/admin/adapters/math/load")
    before = samples(live)
    assert before[("adaptermix_adapters_resident", (("level", "device"), ("pinned", "false")))] >= 1
    assert before[("adaptermix_adapter_load_seconds_count", ())] >= 1
    assert before[("adaptermix_engine_ready", ())] == 1
    prompt = "the same long prompt " * 4
    for _ in range(2):
        live.answer(prompt, parameters=ASKED)
    assert increase(live, "adaptermix_prefix_cache_hits_total", before) > 0


def test_what_computes_is_said(live: Live) -> None:
    """The server of these tests runs on the reference."""
    assert 'adaptermix_kernels_info{name="torch"} 1.0' in page(live)


def test_adapter_labels_are_bounded() -> None:
    metrics = Metrics(max_adapter_labels=2)
    for number in range(10):
        metrics.add_weights({f"adapter-{number}": 1.0})
    text = metrics.render(None).decode()
    assert text.count("adaptermix_adapter_weight_mass_total{") == 3
    assert 'adaptermix_adapter_weight_mass_total{adapter="other"} 8.0' in text


def test_info(live: Live, folders: dict[str, Path]) -> None:
    info = live.client.get("/info").json()
    assert info["model_id"] == "tiny-random"
    assert info["max_model_len"] == 1024
    assert "similarity" in info["routers"]
