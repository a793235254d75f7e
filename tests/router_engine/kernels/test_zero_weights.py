"""Rows of weight 0 that hold poison, beside `test_conformance`: B as it is loaded, and the kernels
that Triton has beside the seven operations.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from router_engine.experts.base import ExpertRows
from router_engine.experts.contained import contained
from tests.router_engine.kernels import triton_checks as checks
from tests.router_engine.kernels.triton_process import Run

WIDTH, OUTPUTS = 32, 24
NUMBERS = (3e38, -3e38, torch.inf, -torch.inf, torch.nan)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_what_is_not_finite_in_b_is_kept_where_weights_select() -> None:
    a, b = torch.randn(4, WIDTH), torch.randn(4, OUTPUTS)
    healthy = ExpertRows(a, b, 1.0, torch.zeros(4))
    assert contained(healthy) is healthy
    for number in (torch.inf, -torch.inf, torch.nan):
        b[2, 3] = number
        found = contained(replace(healthy, b=b, bias=torch.ones(4), has_up_bias=True))
        assert found.bias is not None
        assert found.b.isfinite().all()
        for part in (found.a, found.bias[:, None]):
            assert part.isnan().all(1).tolist() == [False, False, True, False]
        kept = [0, 1, 3]
        assert torch.equal(found.a[kept], a[kept])
        assert torch.equal(found.b[kept], b[kept])


@pytest.mark.parametrize("number", NUMBERS)
def test_on_triton(run: Run, number: float) -> None:
    run(checks.check_zero_weights, number)
