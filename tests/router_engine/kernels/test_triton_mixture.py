"""The mixture kernels against the reference: dense, grouped by expert, and through tables."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.router_engine.kernels import triton_checks as checks
from tests.router_engine.kernels.triton_process import Run

DTYPES = tuple(checks.TOLERANCE)


@pytest.mark.parametrize("grouped", [False, True], ids=["dense", "grouped"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "shape", "rows", "fill"),
    [
        (1, (64, 64), 16, 1.0),
        (5, (48, 40), 22, 0.5),
        (33, (40, 72), 37, 0.1),
        (3, (32, 32), 8, 0.0),
        (4, (600, 16), 4, 1.0),
    ],
)
def test_mix_sum(
    run: Run,
    tokens: int,
    shape: tuple[int, int],
    rows: int,
    fill: float,
    dtype: str,
    *,
    grouped: bool,
) -> None:
    run(checks.check_mix_sum, dtype, tokens, shape, rows, fill, grouped=grouped)


def test_mix_sum_of_no_rows_and_of_no_tokens(run: Run) -> None:
    run(checks.check_mix_sum, "float32", 4, (32, 32), 0, 1.0, grouped=False)
    run(checks.check_mix_sum, "float32", 0, (32, 32), 4, 1.0, grouped=False)


def test_tokens_of_different_adapters_skip_each_others_rows(run: Run) -> None:
    run(checks.check_segments, 150, (4, 16, 8, 64, 2, 32))


def test_the_form_is_chosen_by_cost(run: Run) -> None:
    run(checks.check_choice_by_cost)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "ranks"), [(5, (4, 4)), (18, (8, 2, 8)), (1, (20, 3))])
def test_mix_linear(run: Run, tokens: int, ranks: Sequence[int], dtype: str) -> None:
    run(checks.check_mix_linear, dtype, tokens, ranks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "ranks"),
    [
        (4, ((4, 8), (4, 8), (4, 8))),
        (18, ((4, 16, 12), (), (1,))),
        (1, ((20,),)),
        (2, ((), (), ())),
        (70, ((64, 8, 40), (64, 8, 40))),
    ],
    ids=["equal", "one untouched", "one module", "none touched", "tiles of tokens"],
)
@pytest.mark.parametrize("linear", [False, True], ids=["sum", "linear"])
def test_mix_group(
    run: Run, tokens: int, ranks: Sequence[Sequence[int]], dtype: str, *, linear: bool
) -> None:
    run(checks.check_mix_group, dtype, tokens, ranks, linear=linear)
