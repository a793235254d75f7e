"""Merged equals unmerged on every path that can merge: single, mixed and token-routed requests."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig
from router_engine.request import EngineRequest, SamplingSpec, TokenRouting
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import CPU, CUDA, REFERENCE, TRITON, EnginePath, path_params
from tests.support.harness import Answer, request

# int8 takes no mixture in, which test_quantized shows.
MERGING = path_params(REFERENCE, CPU, TRITON, CUDA)
PROMPT = list(range(5, 30))
# Prefixes that were computed unmerged would answer for the merged base.
CONFIG = EngineConfig(cache=CacheConfig(num_blocks=64, prefix_cache=False))


def _mixtures(digests: tuple[str, ...]) -> dict[str, ResolvedMixture]:
    return {
        "mixed": ResolvedMixture((digests[0], digests[1], digests[2]), (0.5, -0.3, 0.8)),
        "single": ResolvedMixture((digests[0],), (1.0,)),
        "linear": ResolvedMixture((digests[0], digests[3]), (0.5, 0.7), "linear"),
    }


def _traffic(path: EnginePath, digests: tuple[str, ...], tag: str) -> list[EngineRequest]:
    """The base, each mixture, and routed weights that pass by the one called mixed."""
    mixtures = _mixtures(digests)
    prompt = tuple(path.short(PROMPT))
    sampling = SamplingSpec(max_new_tokens=path.tokens)
    rows = [[0.9, 0.0, 0.4], list(mixtures["mixed"].weights), [-0.6, 0.2, 1.0]]
    routing = TokenRouting("given", {"weights": [rows[i % 3] for i in range(path.tokens)]})
    return [
        request(f"{tag} base", prompt, max_new_tokens=path.tokens),
        *(
            EngineRequest.from_mixture(mixture, f"{tag} {name}", prompt, sampling)
            for name, mixture in mixtures.items()
        ),
        EngineRequest(f"{tag} routed", prompt, sampling, digests[:3], routing=routing),
    ]


def _assert_equal(answers: list[Answer], expected: list[Answer], tolerance: float) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert answer.ids == other.ids
        assert answer.logprobs == pytest.approx(other.logprobs, abs=tolerance)


@pytest.mark.parametrize("path", MERGING, indirect=True)
def test_merged_equals_unmerged(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """All requests under one merged mixture after another; `merge` looks at the base's weights."""
    engine = make_engine(config=CONFIG)
    digests = tuple(engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:4]))
    unmerged = engine.run(*_traffic(path, digests, "unmerged"))
    first = sorted(answer.logprobs[0] for answer in unmerged)
    # Negative control: the prompt is one, so whatever is taken for another shows.
    assert min(high - low for low, high in pairwise(first)) > 100 * path.tolerance
    for name, mixture in list(_mixtures(digests).items())[:: path.every]:
        assert engine.merge(mixture).mixture == mixture
        _assert_equal(engine.run(*_traffic(path, digests, name)), unmerged, path.tolerance)
    assert engine.merge(None).mode == "unmerged"
    again = engine.run(*_traffic(path, digests, "again")[:2])
    _assert_equal(again, unmerged[:2], path.tolerance)
