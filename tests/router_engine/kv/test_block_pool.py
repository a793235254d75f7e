"""The block pool against a model of it, and one case at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_engine.kv.block_pool import BlockPool
from router_engine.kv.block_table import BlockTable, blocks_for


def test_blocks_are_free_then_owned_then_free() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    assert (pool.num_available, pool.num_owned) == (1, 2)
    assert [pool.references(block) for block in blocks] == [1, 1]
    pool.release(blocks)
    assert (pool.num_available, pool.num_owned, pool.num_cached) == (3, 0, 0)


def test_a_released_block_with_a_key_stays_findable() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, b"k")
    pool.release([block])
    assert (pool.num_cached, pool.find(b"k")) == (1, block)
    pool.share(block)
    assert (pool.num_cached, pool.num_owned, pool.references(block)) == (0, 1, 1)
    pool.share(block)
    pool.release([block])
    assert pool.references(block) == 1


def test_cached_blocks_go_least_recently_released_first_and_after_free_ones() -> None:
    pool = BlockPool(3)
    first, second, third = pool.allocate(3)
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.release([second, third, first])
    assert pool.cached == (second, first)
    assert pool.allocate(1) == [third]
    assert pool.allocate(1) == [second]
    assert pool.find(b"2") is None
    assert pool.find(b"1") == first


def test_using_a_cached_block_makes_it_recent() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.release([first, second])
    pool.share(first)
    pool.release([first])
    assert pool.allocate(1) == [second]


def test_the_first_block_under_a_key_stays() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"k")
    pool.publish(second, b"k")
    pool.publish(first, b"other")
    assert pool.find(b"k") == first
    assert pool.find(b"other") is None
    pool.release([first, second])
    assert (pool.cached, pool.free) == ((first,), (second,))


def test_a_retracted_block_is_found_by_nobody_and_ends_free() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"k")
    pool.share(first)
    pool.retract(first)
    pool.retract(first)
    assert (pool.find(b"k"), pool.references(first)) == (None, 2)
    pool.publish(second, b"k")
    pool.release([first, first, second])
    assert (pool.free, pool.cached) == ((first,), (second,))


def test_a_retracted_block_that_is_cached_becomes_free() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    assert pool.publish(first, b"1")
    assert pool.publish(second, b"2")
    assert not pool.publish(second, b"3")  # it has a key
    pool.release([first, second])
    pool.retract(first)
    assert (pool.free, pool.cached, pool.find(b"1")) == ((first,), (second,), None)
    assert pool.allocate(2) == [first, second]


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(0)
    pool = BlockPool(1)
    with pytest.raises(ValueError, match="2 blocks asked for, 1 available"):
        pool.allocate(2)
    with pytest.raises(ValueError, match="not owned"):
        pool.publish(0, b"k")
    with pytest.raises(ValueError, match="not owned"):
        pool.retract(0)
    (block,) = pool.allocate(1)
    with pytest.raises(ValueError, match="no key"):
        pool.share(block)
    pool.release([block])
    with pytest.raises(ValueError, match="released more often"):
        pool.release([block])


@given(st.lists(st.tuples(st.sampled_from("apsrt"), st.integers(0, 9)), max_size=80))
def test_every_block_is_in_one_place_whatever_happens(operations: list[tuple[str, int]]) -> None:
    pool = BlockPool(5)
    held: list[int] = []
    for operation, number in operations:
        if operation == "a" and pool.num_available:
            held += pool.allocate(1)
        elif operation == "p" and held:
            pool.publish(held[number % len(held)], bytes([number]))
        elif operation == "s" and (block := pool.find(bytes([number]))) is not None:
            pool.share(block)
            held.append(block)
        elif operation == "t" and (known := [*held, *pool.cached]):
            pool.retract(known[number % len(known)])
        elif operation == "r" and held:
            pool.release([held.pop(number % len(held))])
        assert [pool.references(b) for b in range(5)] == [held.count(b) for b in range(5)]
        owned = [block for block in range(5) if pool.references(block)]
        assert sorted([*pool.free, *pool.cached, *owned]) == list(range(5))
        assert pool.num_owned == len(owned)
        assert all(pool.find(key) == block for block, key in pool.keys.items())
        assert not pool.keys.keys() & set(pool.free)
        assert set(pool.cached) <= pool.keys.keys()


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks


def test_a_table_knows_what_it_holds_and_lacks() -> None:
    table = BlockTable(4)
    table.extend([7, 3])
    assert (len(table), table.capacity) == (2, 8)
    assert [table.missing(tokens) for tokens in (1, 8, 9, 17)] == [0, 0, 1, 3]
    assert table.clear() == [3, 7]
    assert len(table) == 0
