"""What overflows, as a client sees it: its own clear error on every route; nothing for others."""

from __future__ import annotations

from typing import Any

import pytest

from router_engine.scheduling.request_validation import NOT_FINITE
from tests.server.live import Live
from tests.support.expert_adapters import LORA, edited, make_expert_folder

POISONED: list[dict[str, Any]] = [
    {"name": "poison", "weight": 1.0},
    {"name": "healthy", "weight": 3e38},
]
FAILED = {"error": NOT_FINITE, "error_type": "generation"}


@pytest.fixture(scope="module")
def served(bare: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    root = tmp_path_factory.mktemp("poison")
    folder = make_expert_folder(root / "healthy", LORA)
    assert bare.publish(folder, "healthy").status_code == 201
    poison = edited(folder, root / "poison", {".a": 3e38})
    assert bare.publish(poison, "poison").status_code == 201
    return bare


@pytest.mark.parametrize("adapter", POISONED, ids=lambda adapter: adapter["name"])
def test_a_request_that_overflows_hears_of_it(served: Live, adapter: dict[str, Any]) -> None:
    before = served.answer(mixture={"adapters": [{"name": "healthy"}]})
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"inputs": "a"},
        "/generate_stream": {"inputs": "a"},
        "/score": {"inputs": "a", "completions": ["b", "c"]},
    }
    for path, body in bodies.items():
        response = served.client.post(path, json={**body, "mixture": {"adapters": [adapter]}})
        assert response.status_code == 424, path
        assert response.json().items() >= FAILED.items()
    assert served.answer(mixture={"adapters": [{"name": "healthy"}]}) == before
    assert served.client.get("/health/ready").status_code == 200
