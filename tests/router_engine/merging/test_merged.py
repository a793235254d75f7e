"""Merged mode: folding a mixture in under traffic, correcting the others, restoring bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adapters_store.types import Combination, ResolvedMixture
from router_engine.config import EngineConfig, ModelConfig
from router_engine.errors import MixtureError
from router_engine.request import EngineRequest
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import ATTENTION, make_lora_folder

PROMPT = list(range(5, 30))


def base_weights(harness: EngineHarness) -> dict[str, torch.Tensor]:
    """A copy of the embedding and of every linear weight of the base, as it is computed with."""
    engine = harness.engine
    found = {path: engine.backend.read_weight(path).clone() for path in engine.base.linears}
    return found | {"embedding": engine.model.get_input_embeddings().weight.detach().clone()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def traffic(digests: list[str], tag: str) -> list[EngineRequest]:
    return [
        request(f"{tag} base", PROMPT),
        request(f"{tag} merged one", PROMPT[1:], {digests[0]: 0.5, digests[3]: 0.7}),
        request(f"{tag} other", PROMPT[2:], {digests[1]: 1.3}),
        request(f"{tag} overlap", PROMPT[3:], {digests[0]: -0.4, digests[2]: 1.0}),
        request(
            f"{tag} linear", PROMPT[4:], {digests[0]: 0.5, digests[3]: 0.7}, combination="linear"
        ),
    ]


def swap(
    harness: EngineHarness, folders: list[Path], combination: Combination, turns: int
) -> Iterator[tuple[Answer, Answer]]:
    """Merge and restore under mixed traffic, again and again; the weights are checked each time.

    Yields each answer beside that of the same request to the untouched base.
    """
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    mixture = ResolvedMixture((digests[0], digests[3]), (0.5, 0.7), combination)
    untouched = base_weights(harness)
    expected = harness.run(*traffic(digests, "before"))
    for turn in range(turns):
        requests = traffic(digests, f"turn {turn}")
        harness.add(*requests)
        for _ in range(3):
            harness.step()
        harness.wait(harness.engine.merge(mixture))
        assert not same(untouched, base_weights(harness))
        for _ in range(4):
            harness.step()
        harness.wait(harness.engine.merge(None))
        assert same(untouched, base_weights(harness))
        while any(harness.answers[r.request_id].final is None for r in requests):
            harness.step()
        yield from zip([harness.answers[r.request_id] for r in requests], expected, strict=True)


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_fifty_merges_and_restores_under_mixed_traffic(
    combination: Combination, make_harness: MakeHarness, folders: list[Path]
) -> None:
    for answer, before in swap(make_harness(), folders, combination, 50):
        assert answer.ids == before.ids
        assert answer.logprobs == pytest.approx(before.logprobs, abs=1e-4)


def test_bf16_does_not_drift(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=EngineConfig(model=ModelConfig(dtype="bfloat16")))
    assert len(list(swap(harness, folders, "sum", 10))) == 50


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_merged_equals_unmerged(
    combination: Combination, make_harness: MakeHarness, folders: list[Path]
) -> None:
    """Everything computed while merged, by an engine that never ran it unmerged."""
    plain, merged = make_harness(), make_harness()
    for harness in (plain, merged):
        digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    mixture = ResolvedMixture((digests[0], digests[3]), (0.5, 0.7), combination)
    state = merged.wait(merged.engine.merge(mixture))
    assert state.mode == "merged"
    assert state.mixture == mixture
    for one, other in zip(
        plain.run(*traffic(digests, "r")), merged.run(*traffic(digests, "r")), strict=True
    ):
        assert one.ids == other.ids
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_tied_and_transposed_weights_are_restored(
    family: str,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    targets = ("c_attn", "c_proj") if family == "gpt2" else (*ATTENTION, "lm_head")
    options = {"fan_in_fan_out": family == "gpt2"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT advises against adapters on tied layers
        folder = make_lora_folder(
            tmp_path / "lora", family=family, targets=targets, options=options
        )
    harness = make_harness(family_folder(family))
    digest = harness.publish("lora", folder)
    base, tuned = harness.run(request("b", PROMPT), request("t", PROMPT, {digest: 1.0}))
    assert base.ids != tuned.ids
    untouched = base_weights(harness)
    harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
    again, merged = harness.run(
        request("b2", [*PROMPT[:-1], 7]), request("t2", [*PROMPT[:-1], 7], {digest: 1.0})
    )
    harness.wait(harness.engine.merge(None))
    assert same(untouched, base_weights(harness))
    base3, tuned3 = harness.run(
        request("b3", [*PROMPT[:-1], 7]), request("t3", [*PROMPT[:-1], 7], {digest: 1.0})
    )
    assert (again.ids, merged.ids) == (base3.ids, tuned3.ids)


def test_a_merge_that_cannot_be_leaves_the_base_alone(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    untouched = base_weights(harness)
    unequal = ResolvedMixture((digests[0], digests[1]), (0.5, 0.5), "linear")
    with pytest.raises(MixtureError, match="of rank 4 with"):
        harness.wait(harness.engine.merge(unequal))
    assert harness.engine.merged().mode == "unmerged"
    assert same(untouched, base_weights(harness))
