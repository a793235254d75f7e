"""Paged attention and the fused layer kernels against torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.router_engine.kernels import triton_checks as checks
from tests.router_engine.kernels.triton_process import Run

DTYPES = tuple(checks.TOLERANCE)

MIXED = ((0, 5), (70, 1), (0, 1), (20, 30))
DECODES = ((70, 1), (0, 1), (15, 1))


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "spans"),
    [((4, 2, 16), MIXED), ((6, 2, 24), DECODES), ((3, 3, 32), DECODES), ((7, 1, 16), ((0, 20),))],
    ids=["mixed batch", "decodes, groups of three", "decodes, no groups", "groups of seven"],
)
def test_attention(
    run: Run,
    heads: tuple[int, int, int],
    spans: Sequence[tuple[int, int]],
    dtype: str,
    window: int | None,
) -> None:
    run(checks.check_attention, dtype, heads, spans, window, None)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("programs", [2, 4])
@pytest.mark.parametrize("spans", [((200, 1), (3, 1)), ((150, 40), (3, 1))], ids=str)
def test_a_context_that_is_shared(
    run: Run, spans: Sequence[tuple[int, int]], programs: int, window: int | None
) -> None:
    run(checks.check_attention, "float32", (4, 2, 16), spans, window, programs)


def test_places_without_work(run: Run) -> None:
    run(checks.check_places_without_work)


# Rows of a program: one, as on a GPU; some, of which the last program has fewer; all.
ROWS = [1, 2, None]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add", [False, True])
def test_norm(run: Run, dtype: str, rows: int | None, *, add: bool) -> None:
    run(checks.check_norm, dtype, rows, add=add)


@pytest.mark.parametrize("rows", [1, 8, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
def test_rotation(run: Run, dtype: str, rows: int | None, *, norm: bool) -> None:
    """28 heads of four tokens: eight of them are of two tokens, or of q and k, or of k and v."""
    run(checks.check_rotation, dtype, rows, norm=norm)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(run: Run, dtype: str, rows: int | None) -> None:
    run(checks.check_silu, dtype, rows)
