"""Places in an arena: no byte has two owners, and as few as can be are moved."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from router_engine.experts.arena import Arena, Move


def _spread(draw: random.Random, count: int, end: int) -> dict[str, tuple[int, int]]:
    """Places with gaps between them, as (first byte, size)."""
    cuts = sorted(draw.sample(range(end + 1), 2 * count))
    return {
        str(i): (first, last - first)
        for i, (first, last) in enumerate(zip(cuts[::2], cuts[1::2], strict=True))
    }


def _arena(places: dict[str, tuple[int, int]], end: int) -> Arena:
    """An arena with just these places, made by taking all of it and freeing what is between."""
    arena = Arena(end)
    edges = [0, *(edge for first, size in places.values() for edge in (first, first + size)), end]
    for index, (first, last) in enumerate(pairwise(edges)):
        arena.take(str(index // 2) if index % 2 else f"gap {index}", last - first)
    for index in range(0, len(edges) - 1, 2):
        arena.free(f"gap {index}")
    return arena


def _fewest(places: dict[str, tuple[int, int]], size: int, end: int) -> int:
    """Bytes of the neighbours around which so many bytes are free, by trying all of them."""
    spans = sorted(places.values())
    best = end + 1
    for start, stop in combinations(range(len(spans) + 1), 2):
        low = sum(spans[start - 1]) if start else 0
        high = spans[stop][0] if stop < len(spans) else end
        taken = sum(length for _, length in spans[start:stop])
        if high - low - taken >= size:
            best = min(best, taken)
    return best


@pytest.mark.parametrize("seed", range(50))
def test_a_gap_is_opened_by_moving_the_fewest_bytes(seed: int) -> None:
    draw = random.Random(seed)
    end = 400
    places = _spread(draw, draw.randint(1, 9), end)
    arena = _arena(places, end)
    free = end - sum(size for _, size in places.values())
    assert arena.free_bytes == free
    size = draw.randint(1, free)
    first, moves = arena.take("new", size)
    now = places | {move.name: (move.target, move.size) for move in moves}
    spans = sorted([*now.values(), (first, size)])
    assert all(sum(low) <= high[0] for low, high in pairwise(spans))
    assert spans[-1][0] + spans[-1][1] <= end
    assert arena.free_bytes == free - size
    if moves:
        assert all(move.target < move.source == places[move.name][0] for move in moves)
        assert sum(move.size for move in moves) <= _fewest(places, size, end)


def test_what_is_free_is_one_gap_again() -> None:
    for order in ("abc", "acb", "bac", "bca", "cab", "cba"):
        arena = Arena(30)
        for name in "abc":
            arena.take(name, 10)
        for name in order:
            arena.free(name)
        assert arena.take("all", 30) == (0, ())


def test_moves_go_from_low_to_high() -> None:
    """So that none overwrites what a later one reads."""
    arena = Arena(30)
    for name, size in {"a": 4, "b": 10, "c": 4, "d": 8, "e": 4}.items():
        arena.take(name, size)
    for name in "ace":
        arena.free(name)
    assert arena.take("f", 12) == (18, [Move("b", 4, 0, 10), Move("d", 18, 10, 8)])


def test_nothing_takes_no_place() -> None:
    arena = Arena(10)
    assert arena.take("a", 10) == (0, ())
    arena.free("a")
    arena.take("empty", 0)
    arena.free("empty")
    assert arena.take("b", 10) == (0, ())
