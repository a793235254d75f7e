"""Our own format: what is read of a folder, and every reason why one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.gating import ThresholdSpec
from adapters_store.manifest import manifest_to_json
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest, BaseModelSpec
from tests.adapters_store import folders
from tests.adapters_store.folders import HIDDEN, adapter
from tests.adapters_store.native_folders import (
    BASE,
    FUSED,
    LAYER,
    MANIFEST,
    MLP,
    OTHER,
    Q,
    document,
    folder,
    tensors,
)

Document = dict[str, Any]
UP, PARALLEL, SERIAL, PROMPT = 3, 4, 5, 6  # experts of MANIFEST; 0 to 2 are the LoRA on q


def problems(store: AdapterStore, files: dict[str, bytes], base: BaseModelSpec = BASE) -> list[str]:
    return [str(problem) for problem in store.check("x", files, base=base).problems]


def test_every_kind_is_read_as_it_was_written(store: AdapterStore) -> None:
    record = store.publish("x", folder(), base=BASE)
    assert record.manifest == MANIFEST
    assert store.resolve("x").manifest == MANIFEST
    held = store.blobs.fetch(record.digest)
    assert held.config is not None
    assert held.config.read_bytes() == folder()["adaptermix.json"]


def test_a_scope_is_kept_and_changes_no_manifest_that_does_not_state_it(
    store: AdapterStore,
) -> None:
    """Gates of whole prompts, as `train moa --variant instance` writes them."""
    assert b"scope" not in manifest_to_json(MANIFEST)
    made = document()
    made["routers"][0]["scope"] = "prompt"
    record = store.publish("x", folder(text=made), base=BASE)
    assert record.manifest.reads_whole_prompts
    assert store.resolve("x").manifest.routers[0].scope == "prompt"
    assert not MANIFEST.reads_whole_prompts


def test_gates_are_named_where_they_weigh_one_expert_of_a_layer() -> None:
    """Gate 1 weighs two experts of a layer in the second case, other ones by layer in the third."""
    assert MANIFEST.gate_labels == ("q_proj", "q_proj", "parallel", "prompt")
    expert = replace(MANIFEST.experts[PARALLEL], gate=1)
    for module, label in ((MLP, "1"), (f"{OTHER}.mlp", "1")):
        manifest = replace(
            MANIFEST, experts=(*MANIFEST.experts[:PARALLEL], replace(expert, module=module))
        )
        assert manifest.gate_labels == ("q_proj", label, "2", "3")
    assert replace(MANIFEST, routers=()).gate_labels == ()


def test_defaults_may_be_left_out_and_numbers_be_whole(checker: AdapterStore) -> None:
    lora = {
        "kind": "lora",
        "module": Q,
        "rank": 4,
        "scale": 2,
        "in_features": HIDDEN,
        "out_features": HIDDEN,
        "tensor_a": "q.0.a",
        "tensor_b": "q.0.b",
    }
    text = {"format": "adaptermix", "schema": 1, "experts": [lora]}
    made = {key: value for key, value in tensors().items() if key.startswith("q.0.")}
    report = checker.check("x", folder(made, text), base=BASE)
    expected = replace(MANIFEST.lora_experts[0], gate=None)
    assert report.manifest == AdapterManifest("adaptermix", (expected,))
    assert report.loads


def test_the_example_of_the_docs_is_read(checker: AdapterStore) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "adapters.md").read_text()
    text = json.loads(page.partition("```json\n")[2].partition("```")[0])
    report = checker.check("x", folder({}, text), base=replace(BASE, hidden_size=576))
    assert report.manifest is not None
    made = tensors(report.manifest)
    assert problems(checker, folder(made, text), replace(BASE, hidden_size=576)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it.update(schema=2), "adaptermix.json: schema: is 2: Input should be 1"),
        (lambda it: it.update(format="peft"), "format: is \"peft\": Input should be 'adaptermix'"),
        (lambda it: it.update(router=[]), "router: the key is unknown: leave it out; near names:"),
        (lambda it: it["experts"][0].update(gat=1), "experts[0].gat: the key is unknown"),
        (lambda it: it["routers"][0].update(temperature=1), "routers[0].temperature: the key"),
        (lambda it: it["experts"][0].update(kind="ia3"), "experts[0].kind: is 'ia3': kinds are"),
        (lambda it: it["experts"][0].pop("kind"), "experts[0].kind: is missing: kinds are"),
        (lambda it: it["experts"][0].pop("rank"), "experts[0].rank: is missing"),
        (lambda it: it["experts"][0].update(rank="4"), 'experts[0].rank: is "4": Input should be'),
        (lambda it: it["experts"][0].update(gate=True), "experts[0].gate: is true: Input should"),
        (lambda it: it["experts"][0].update(scale=float("nan")), "scale: is NaN: Input should"),
        (lambda it: it["experts"][UP]["copies"].update(mid=[]), "experts[3].copies.mid: the key"),
        (lambda it: it["experts"][UP]["copies"].update(up=["x"]), "experts[3].copies.up[0]: is"),
        (lambda it: it["experts"][PARALLEL].update(activation="tanh"), 'activation: is "tanh"'),
        (lambda it: it["experts"][SERIAL].update(placement="before"), 'placement: is "before"'),
        (lambda it: it["routers"][0].update(input="raw"), 'routers[0].input: is "raw"'),
        (lambda it: it["routers"][0].update(kind="mlp"), 'routers[0].kind: is "mlp"'),
        (lambda it: it["routers"][0].update(threshold=0.5), "routers[0].threshold: is 0.5"),
        (lambda it: it.update(experts=[]), "experts: are none"),
        (lambda it: it.update(experts="none"), 'experts: is "none"'),
    ],
)
def test_the_file_is_read_strictly(
    checker: AdapterStore, change: Callable[[Document], object], said: str
) -> None:
    text = document()
    change(text)
    found = problems(checker, folder(text=text))
    assert said in "\n".join(found)


def test_everything_wrong_is_told_at_once(checker: AdapterStore) -> None:
    text = document()
    text["a"] = text["routers"][1]["b"] = text["experts"][2]["c"] = 1
    report = checker.check("x", folder(text=text), base=BASE)
    assert report.unknown_keys == ("experts[2].c", "routers[1].b", "a")
    assert len(report.problems) == 3


def test_every_text_is_bounded(checker: AdapterStore) -> None:
    walked = [where for where, value in _leaves(document()) if isinstance(value, str)]
    assert len(walked) >= 40
    for where in walked:
        text = document()
        inner: Any = text
        for step in where[:-1]:
            inner = inner[step]
        inner[where[-1]] = "a." * 257
        found = problems(checker, folder(text=text))
        # Words of a list of its own are no texts.
        assert "at most 512 characters" in found[0] or len(found) == 1, (where, found)


def _leaves(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Where each value stands, and the value."""
    if not isinstance(value, dict | list):
        yield (), value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from (((key, *where), leaf) for where, leaf in _leaves(inner))


def test_errors_beyond_those_told_are_counted(checker: AdapterStore) -> None:
    text = document()
    text["experts"] = [text["experts"][0] | {f"k{i}": 1 for i in range(50)}] * 40
    text["zebra"] = 1
    report = checker.check("x", folder(text=text), base=BASE)
    assert str(report.problems[-1]) == f"adaptermix.json: and {40 * 50 + 1 - 24} more errors"
    assert len(report.problems) == 25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": 1, "a": 2}', "names a key twice: a"),
        (b'{"\\ud800": 1}', "adaptermix.json"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'"' + b" " * (1 << 20) + b'"', "at most 1048576 are accepted"),
    ],
)
def test_what_is_no_json_object(checker: AdapterStore, text: bytes, said: str) -> None:
    (found,) = problems(checker, folder(text=text))
    assert "adaptermix.json" in found
    assert said in found


def test_the_tensors_must_be_there_and_be_named(checker: AdapterStore) -> None:
    files = folder()
    del files["adapter_model.safetensors"]
    assert problems(checker, files) == [
        "adapter_model.safetensors: is missing beside adaptermix.json"
    ]
    files["adapter_model.safetensors"] = b"no"
    assert "too short" in problems(checker, files)[0]
    stray = {**tensors(), "q.9.a": np.zeros(1, np.float32)}
    (found,) = problems(checker, folder(stray))
    assert "q.9.a: is a tensor that nothing in adaptermix.json names" in found


def test_two_configs_are_one_too_many(checker: AdapterStore) -> None:
    files = {**folder(), "adapter_config.json": adapter()["adapter_config.json"]}
    (found,) = problems(checker, files)
    assert "holds adapter_config.json, PEFT's, beside adaptermix.json" in found


def spoiled(index: int, **changes: Any) -> AdapterManifest:
    """MANIFEST with one expert changed."""
    experts = list(MANIFEST.experts)
    experts[index] = replace(experts[index], **changes)
    return replace(MANIFEST, experts=tuple(experts))


def rerouted(index: int, **changes: Any) -> AdapterManifest:
    """MANIFEST with one router changed."""
    routers = list(MANIFEST.routers)
    routers[index] = replace(routers[index], **changes)
    return replace(MANIFEST, routers=tuple(routers))


def found_in(store: AdapterStore, manifest: AdapterManifest, base: BaseModelSpec = BASE) -> str:
    """Its problems, with tensors of the shapes that it says."""
    text = manifest_to_json(manifest)
    return "\n".join(problems(store, folder(tensors(manifest), text), base))


EXPERTS: list[tuple[int, dict[str, Any], str]] = [
    (0, {"rank": 600}, f"{Q}: has rank 600, at most 512 is accepted"),
    (PARALLEL, {"size": 513}, f"{MLP}#parallel: has size 513, at most 512 is accepted"),
    (PROMPT, {"length": 513}, "self_attn#prompt: has length 513, at most 512 is accepted"),
    (0, {"rank": 0}, f"{Q}: has rank 0: give a number above 0"),
    (SERIAL, {"size": 0}, "has size 0: give a number above 0"),
    (PROMPT, {"length": 0}, "has length 0: give a number above 0"),
    (0, {"module": f"{LAYER}.self_attn.q"}, "self_attn.q: is no module of tiny"),
    (0, {"module": "model.norm"}, "model.norm: is no linear layer of tiny"),
    (0, {"out_features": 8}, "is [out 8, in 16] in the adapter, but [out 16, in 16] in tiny"),
    (PARALLEL, {"module": f"{LAYER}.ffn"}, f"{LAYER}.ffn is no feed-forward module of tiny"),
    (PARALLEL, {"module": Q}, f"{Q} is no feed-forward module of tiny"),
    (PARALLEL, {"features": 8}, "has 8 features in the adapter, but 16 in tiny"),
    (PROMPT, {"module": f"{LAYER}.attn"}, f"near names: {LAYER}.self_attn"),
    (PROMPT, {"features": 8}, "#prompt: has 8 features in the adapter, but 16 in tiny"),
    (PROMPT, {"heads": 2}, "has 2 heads in the adapter, but 4 in tiny"),
    (0, {"gate": 4}, f"{Q}: has gate 4, but the router of {LAYER} has 4 outputs: give 0 to 3"),
    (0, {"gate": -1}, f"{Q}: has gate -1, but the router of {LAYER} has 4 outputs"),
    (UP, {"gate": 3}, "has gate 3, but the router of model.layers.1 has 3 outputs"),
    (0, {"gate": 1}, f"{Q}: has 2 LoRA with gate 1; give each a gate of its own"),
    (0, {"gate": None}, f"{Q}: has more than one LoRA; an adapter may hold one, and more where"),
    (SERIAL, {"module": MLP, "placement": "parallel"}, "has 2 experts; an adapter may hold one"),
]


@pytest.mark.parametrize(("index", "changes", "said"), EXPERTS)
def test_experts_that_cannot_be(
    checker: AdapterStore, index: int, changes: dict[str, Any], said: str
) -> None:
    assert said in found_in(checker, spoiled(index, **changes))


ROUTERS: list[tuple[int, dict[str, Any], str]] = [
    (0, {"layer": "model.layers.7"}, "model.layers.7 is no layer of tiny"),
    (0, {"layer": OTHER}, f"router of {OTHER}: comes twice; a layer has one router at most"),
    (0, {"layer": OTHER}, f"{Q}: has gate 0, but the adapter has no router of its layer"),
    (1, {"features": 8}, f"router of {OTHER}: has 8 features in the adapter, but 16 in tiny"),
    (1, {"outputs": 0}, "has outputs 0: give a number above 0"),
    (0, {"hidden": 0}, "has hidden 0: give a number above 0"),
    (1, {"hidden": 2}, "is linear and has hidden 2: only swiglu has it"),
    (1, {"top_k": 0}, "has top_k 0: give 1 to 3 (outputs)"),
    (1, {"top_k": 4}, "has top_k 4: give 1 to 3 (outputs)"),
    (0, {"top_k": 2}, "has top_k 2 with sigmoid: softmax can have it"),
    (1, {"threshold": ThresholdSpec(0.5, None)}, "has a threshold with softmax: sigmoid can have"),
    (0, {"threshold": ThresholdSpec(1.5, None)}, "has a threshold of maximum 1.5: give 0 to 1"),
    (0, {"threshold": ThresholdSpec(-0.1, None)}, "has a threshold of maximum -0.1: give 0 to 1"),
]


@pytest.mark.parametrize(("index", "changes", "said"), ROUTERS)
def test_routers_that_cannot_be(
    checker: AdapterStore, index: int, changes: dict[str, Any], said: str
) -> None:
    assert said in found_in(checker, rerouted(index, **changes))


@pytest.mark.parametrize(
    ("copies", "said"),
    [
        (Copies((), (1.0,)), "copies.down is empty"),
        (Copies((0.5, 0.5), (0.5, 0.4)), "copies.up adds up to 0.9: weights add up to 1"),
        (Copies((0.5, 0.501), (1.0,)), "copies.down adds up to 1.001"),
    ],
)
def test_weights_of_copies_that_cannot_be(checker: AdapterStore, copies: Copies, said: str) -> None:
    assert said in found_in(checker, spoiled(SERIAL, copies=copies))


def test_what_almost_adds_up_is_taken(checker: AdapterStore) -> None:
    thirds = Copies((0.33333, 0.33333, 0.33333), (1.5, -0.5))
    assert found_in(checker, spoiled(SERIAL, copies=thirds)) == ""


def test_a_gate_outside_the_layers_has_no_router(checker: AdapterStore) -> None:
    head = replace(
        MANIFEST.lora_experts[0], module="lm_head", out_features=folders.VOCABULARY, gate=0
    )
    manifest = replace(MANIFEST, experts=(*MANIFEST.experts, head))
    assert "lm_head: has gate 0, but the adapter has no router" in found_in(checker, manifest)


def test_prompts_need_keys_and_values_of_their_own(checker: AdapterStore) -> None:
    """GPT-2 makes both in one linear layer."""
    (found,) = problems(checker, folder(), FUSED)
    assert "#prompt: needs a k_proj and a v_proj" in found
    assert "(GPT2LMHeadModel) has none there: prompt experts work on Llama" in found


def test_an_adapter_of_a_wider_base(checker: AdapterStore) -> None:
    found = problems(checker, folder(), replace(BASE, name="other", hidden_size=64))
    assert len(found) == 5  # two bottlenecks, the prompt, two routers
    assert all("has 16 features in the adapter, but 64 in other" in problem for problem in found)


NAMED = tensors()


@pytest.mark.parametrize("key", NAMED)
def test_every_tensor_is_checked(checker: AdapterStore, key: str) -> None:
    """Its presence, shape, dtype and values."""
    made = {name: value for name, value in NAMED.items() if name != key}
    (found,) = problems(checker, folder(made))
    assert f"the tensor {key!r} is missing" in found
    value = NAMED[key]
    (found,) = problems(checker, folder({**made, key: value[:-1]}))
    shape = list(value.shape)
    assert found == f"{key}: has shape {[shape[0] - 1, *shape[1:]]}, expected {shape}"
    (found,) = problems(checker, folder({**made, key: value.astype(np.float64)}))
    assert found == f"{key}: has dtype F64, accepted are F32, F16, BF16"
    spoilt = value.copy()
    spoilt.flat[-1] = np.nan
    (found,) = problems(checker, folder({**made, key: spoilt}))
    assert found == f"{key}: holds 1 values that are NaN or infinite"
