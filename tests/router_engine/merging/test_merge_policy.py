"""Merged mode `auto`: what dominates the traffic is merged, and let go when it no longer does."""

from __future__ import annotations

from pathlib import Path

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, MergeConfig
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request

PROMPT = list(range(5, 30))
AUTO = EngineConfig(cache=CacheConfig(num_blocks=512), merge=MergeConfig(mode="auto", half_life=32))


def _publish(harness: EngineHarness, folders: list[Path]) -> list[str]:
    return [harness.publish(f"a{index}", folder) for index, folder in enumerate(folders[:3])]


def _run(
    harness: EngineHarness, tag: str, mixture: dict[str, float], count: int
) -> list[list[int]]:
    answers = harness.run(*(request(f"{tag} {i}", PROMPT[i:], mixture) for i in range(count)))
    return [answer.ids for answer in answers]


def test_the_dominating_mixture_is_merged_and_let_go(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    auto, plain = make_harness(config=AUTO), make_harness()
    digests = _publish(auto, folders)
    _publish(plain, folders)
    main = {digests[1]: 0.5, digests[0]: 0.7}
    digests_in_order = tuple(sorted(main))
    merged = ResolvedMixture(digests_in_order, tuple(main[digest] for digest in digests_in_order))
    assert _run(auto, "first", main, 12) == _run(plain, "first", main, 12)
    assert auto.engine.merged().mixture == merged
    # A minority under other mixtures does not end it, and is answered as ever.
    few = request("few", PROMPT, {digests[2]: 1.0})
    auto.add(few)
    assert _run(auto, "second", main, 12) == _run(plain, "second", main, 12)
    assert auto.engine.merged().mixture == merged
    while auto.answers["few"].final is None:
        auto.step()
    (expected,) = plain.run(few)
    assert auto.answers["few"].ids == expected.ids
    # The base takes over.
    assert _run(auto, "base", {}, 16) == _run(plain, "base", {}, 16)
    assert auto.engine.merged().mode == "unmerged"
    assert auto.engine.stats().merges == 2


def test_an_even_mix_merges_nothing(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=AUTO)
    digests = _publish(harness, folders)
    harness.run(
        *(request(f"r{i}", PROMPT[i:], {digests[i % 3]: 1.0 + i}) for i in range(12)),
    )
    assert harness.engine.stats().merges == 0


def test_an_admin_s_merge_stays(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=AUTO)
    digests = _publish(harness, folders)
    chosen = ResolvedMixture((digests[2],), (1.0,))
    harness.wait(harness.engine.merge(chosen))
    _run(harness, "other", {digests[0]: 1.0}, 12)
    assert harness.engine.merged().mixture == chosen
    harness.wait(harness.engine.merge(None))
    _run(harness, "again", {digests[0]: 1.0}, 12)
    assert harness.engine.merged().mixture == ResolvedMixture((digests[0],), (1.0,))
