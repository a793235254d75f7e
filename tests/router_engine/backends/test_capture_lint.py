"""What captured code may not do is found without a card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from router_engine.config import SchedulerConfig
from tests.support.capture_lint import CaptureError, CaptureLint
from tests.support.card_engine import card_engine
from tests.support.fake_card import FakeCard

X = torch.arange(6.0).view(2, 3)
_BAD: dict[str, Callable[[], object]] = {
    "item": lambda: X.sum().item(),
    "branch": lambda: X.sum() > 3 and 1,
    "float": lambda: float(X[0, 0]),
    "tolist": lambda: X.tolist(),
    "host": lambda: X.cpu(),
    "device": lambda: X.to("cpu"),
    "named device": lambda: X.to(device=torch.device("cpu"), dtype=torch.float16),
    "numbers": lambda: torch.tensor([1, 2]),
    "nonzero": lambda: X.nonzero(),
    "mask": lambda: X[X > 2],
}


@pytest.mark.parametrize("name", _BAD)
def test_it_is_refused(name: str) -> None:
    with pytest.raises(CaptureError), CaptureLint():
        assert _BAD[name]() is not None


def test_what_a_graph_can_hold_is_not() -> None:
    with CaptureLint() as lint:
        y = (X[:1] @ X.T).to(torch.float16)
        y.copy_(X[torch.arange(1)][:, :2])
    assert ("matmul", ((1, 2),)) in lint.seen


def test_sizes_that_change_are_found() -> None:
    sizes = iter((2, 2, 3))

    def work() -> Tensor:
        return torch.zeros(next(sizes))

    card = FakeCard()
    card.lints = True
    with pytest.raises(AssertionError):
        card.capture(work)


def test_nothing_of_it_is_in_any_graph(tmp_path: Path) -> None:
    limits = SchedulerConfig(max_step_tokens=24, max_running=2)
    with card_engine(tmp_path, limits, lints=True) as (card, harness):
        assert harness.engine.backend.captures is not None
        assert card.captures == len(harness.engine.backend.captures)
