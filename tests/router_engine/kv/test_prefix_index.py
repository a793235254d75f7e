"""Keys of blocks: equal exactly when tokens and mixtures are."""

from __future__ import annotations

from itertools import combinations

from adapters_store.types import Combination
from router_engine.config import SchedulerConfig
from router_engine.kv.block_pool import BlockPool
from router_engine.kv.prefix_index import BlockKeys, longest_match
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.scheduling.weights_history import WeightsHistory
from router_engine.sparse_weights import SparseWeights
from tests.router_engine.scheduling.harness import Drive

TOKENS = tuple(range(12))
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def keys(
    digests: tuple[str, ...] = (),
    runs: tuple[tuple[int, tuple[float, ...]], ...] = ((12, ()),),
    *,
    tokens: tuple[int, ...] = TOKENS,
    combination: Combination = "sum",
    salt: bytes = b"",
) -> list[bytes]:
    """Keys of three blocks of 4 under runs of (number of tokens, weights)."""
    history, until = WeightsHistory(), 0
    for length, weights in runs:
        until += length
        history.extend(SparseWeights.from_dense(weights), until)
    return BlockKeys(4, digests, combination, salt).first(3, tokens, history)


def test_whatever_kv_depends_on_changes_the_keys() -> None:
    whole = {
        "base": keys(),
        "one": keys((A,), ((12, (1.0,)),)),
        "weight": keys((A,), ((12, (0.5,)),)),
        "other adapter": keys((B,), ((12, (1.0,)),)),
        "two": keys((A, B), ((12, (1.0, 0.5)),)),
        "weights swapped": keys((A, B), ((12, (0.5, 1.0)),)),
        "combination": keys((A,), ((12, (1.0,)),), combination="linear"),
        "salt": keys(salt=b"router"),
        "first token": keys(tokens=(99, *TOKENS[1:])),
    }
    for (one, first), (other, second) in combinations(whole.items(), 2):
        assert not set(first) & set(second), f"{one} and {other} share keys"


def test_a_change_leaves_the_keys_of_earlier_blocks() -> None:
    plain, changed = keys(), keys(tokens=(*TOKENS[:5], 99, *TOKENS[6:]))
    assert plain[0] == changed[0]
    assert plain[1] != changed[1]
    assert plain[2] != changed[2]


def test_what_kv_does_not_depend_on_leaves_the_keys() -> None:
    assert keys((A, B), ((12, (1.0, 0.0)),)) == keys((A,), ((12, (1.0,)),))
    assert keys((A, B), ((12, (1.0, 0.5)),)) == keys((B, A), ((12, (0.5, 1.0)),))
    assert keys((A,), ((12, (0.0,)),), combination="linear") == keys()
    assert keys((A,), ((12, (0.1,)),)) == keys((A,), ((12, (0.10000000001,)),))


def test_weights_count_token_by_token() -> None:
    one, other = (1.0, 0.0), (0.5, 0.5)
    early = keys((A, B), ((5, one), (7, other)))
    late = keys((A, B), ((6, one), (6, other)))
    assert early[0] == late[0]
    assert early[1] != late[1]
    assert early[2] != late[2]
    assert keys((A, B), ((12, one),))[0] == early[0]


def test_who_split_the_runs_does_not_count() -> None:
    """Runs that differ only in dropped zeros are one run, as a fixed mixture is."""
    split = ((2, (1.0, 0.0)), (10, (1.0, -0.0)))
    assert keys((A, B), split) == keys((A,), ((12, (1.0,)),))


def test_keys_are_computed_on_from_where_they_were() -> None:
    history = WeightsHistory.fixed(SparseWeights.from_dense((1.0,)))
    growing = BlockKeys(4, (A,), "sum")
    first = growing.first(1, TOKENS[:4], history)
    assert growing.first(3, TOKENS, history)[:1] == first
    assert growing.first(3, TOKENS, history) == keys((A,), ((12, (1.0,)),))
    assert growing.first(2, TOKENS, history) == keys((A,), ((12, (1.0,)),))[:2]
    growing.reset()
    other = WeightsHistory.fixed(SparseWeights.from_dense((2.0,)))
    assert growing.first(3, TOKENS, other) == keys((A,), ((12, (2.0,)),))


def test_the_longest_match_stops_at_the_first_gap() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for block, key in zip(blocks, (b"0", b"1", b"3"), strict=True):
        pool.publish(block, key)
    pool.release(blocks[:1])
    assert longest_match(pool, [b"0", b"1", b"2", b"3"]) == blocks[:2]
    assert longest_match(pool, [b"9"]) == []


def under(request_id: str, digest: str, weight: float = 1.0) -> EngineRequest:
    return EngineRequest(request_id, TOKENS, SamplingSpec(max_new_tokens=3), (digest,), (weight,))


def test_an_adapter_replaced_under_its_name_finds_nothing_of_the_old_one() -> None:
    """A name that moves is a new digest here, so no stale KV can be found under it."""
    drive = Drive(SchedulerConfig())
    drive.add(under("v1", A))
    drive.drain()
    drive.add(under("v2", B))
    drive.add(under("v1 again", A))
    drive.drain()
    drive.check_texts()
    assert drive.tokens["v1"] != drive.tokens["v2"]
    assert drive.finals["v2"].num_cached_tokens == 0
    assert drive.finals["v1 again"].num_cached_tokens == 8


def test_requests_of_different_mixtures_share_no_block_while_they_run() -> None:
    drive = Drive(SchedulerConfig())
    for i, weight in enumerate((1.0, 0.5, 0.0, -1.0)):
        drive.add(under(f"first{i}", A, weight))
    drive.drain()
    for i, weight in enumerate((1.0, 0.5, 0.0, -1.0)):
        drive.add(under(f"second{i}", A, weight))
    drive.add(EngineRequest("base", TOKENS, SamplingSpec(max_new_tokens=3)))
    plan = drive.step()
    assert plan is not None
    shared = {row.request_id: set(row.block_ids[:2]) for row in plan.rows}
    assert shared.pop("base") == shared["second2"]  # weight 0 is the base
    assert len(set().union(*shared.values())) == 8
    drive.drain()
    drive.check_texts()


def test_one_token_at_least_is_left_to_compute() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(under("a", A))
    drive.drain()
    drive.add(under("b", A))
    plan = drive.step()
    assert plan is not None
    assert (plan.rows[0].start, plan.rows[0].stop) == (8, 12)
