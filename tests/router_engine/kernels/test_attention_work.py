"""The items of a step's attention: every token reads its context once, and none reads much more."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from router_engine.kernels.triton.attention_work import BLOCK_N, Cutting, HostWork, WorkRoom, cut

HEADS = 4


def _steps(seed: int) -> tuple[list[int], list[int]]:
    """Lengths and contexts of a random step."""
    draw = random.Random(seed)
    lengths = [draw.choice([0, 1, 1, 1, 3, 16, 17, 100]) for _ in range(draw.randint(1, 40))]
    past = [draw.choice([0, 5, 64, 1000, 30_000 if draw.random() < 0.1 else 200]) for _ in lengths]
    return lengths, [length + before for length, before in zip(lengths, past, strict=True)]


def _seen(work: HostWork) -> dict[int, list[tuple[int, int, int]]]:
    """By token: (begin, end, row of the parts) of the items that read for it."""
    seen: dict[int, list[tuple[int, int, int]]] = {}
    for _, first, tokens, _, begin, end, row in work.items.tolist():
        for token in range(tokens):
            own = row if row < 0 else row + token * HEADS
            seen.setdefault(first + token, []).append((begin, end, own))
    return seen


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("tile", [1, 16])
def test_every_token_reads_its_context_once(seed: int, window: int | None, tile: int) -> None:
    lengths, contexts = _steps(seed)
    cutting = Cutting(HEADS, tile, 33, window)
    work = cut(np.array(lengths), np.array(contexts), cutting)
    seen, token = _seen(work), 0
    joins = {join[0]: join[1:] for join in work.joins.tolist()}
    rows: set[int] = set()
    for length, context in zip(lengths, contexts, strict=True):
        for position in range(context - length, context):
            items = sorted(seen.pop(token))
            assert items[0][0] <= (0 if window is None else max(0, position - window + 1))
            assert items[-1][1] > position
            assert all(one[1] == other[0] for one, other in pairwise(items))
            if len(items) > 1:
                first, step, count = joins.pop(token)
                assert [row for _, _, row in items] == [first + n * step for n in range(count)]
                rows.update(r + head for _, _, r in items for head in range(HEADS))
            else:
                assert items[0][2] == -1
            token += 1
    assert not seen
    assert not joins
    assert rows == set(range(work.rows))
    room = cutting.room(sum(lengths), len(lengths))
    assert len(work.items) <= room.items
    within = cut(np.array(lengths), np.array(contexts), cutting, room)
    assert len(within.items) <= room.items
    assert len(within.joins) <= room.joins
    assert within.rows <= room.rows


def test_a_long_context_is_shared_among_all() -> None:
    """Of 32 requests one reads 32,768 positions: its items are no longer than a few others'."""
    lengths, contexts = np.ones(32, int), np.array([32_768, *(128,) * 31])
    work = cut(lengths, contexts, Cutting(HEADS, 1, 33))
    turns = -(-(work.items[:, 5] - work.items[:, 4]) // BLOCK_N)
    assert len(work.items) == 29 + 31
    assert turns.max() <= 18
    assert list(turns) == sorted(turns, reverse=True)
    assert work.joins.shape == (1, 4)


def test_short_contexts_are_not_shared() -> None:
    work = cut(np.ones(4, int), np.full(4, 4 * BLOCK_N), Cutting(HEADS, 1, 264))
    assert (work.items[:, 6] == -1).all()
    assert work.rows == len(work.joins) == 0


def test_of_too_many_joins_single_tokens_have_theirs() -> None:
    lengths, contexts = np.array([48, 1]), np.array([20_000, 20_000])
    cutting = Cutting(HEADS, 16, 33)
    assert len(cut(lengths, contexts, cutting).joins) == 49
    for room in (WorkRoom(99, 8, 10_000), WorkRoom(99, 99, 200)):
        assert cut(lengths, contexts, cutting, room).joins[:, 0].tolist() == [48]


def test_a_step_without_tokens_has_no_work() -> None:
    work = cut(np.zeros(3, int), np.zeros(3, int), Cutting(HEADS, 1, 33))
    assert (len(work.items), len(work.joins), work.rows) == (0, 0, 0)
