"""An adapter against a base model: names, shapes, ranks, dtypes, values, limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapters_store.limits import StoreLimits
from adapters_store.store import AdapterStore
from adapters_store.types import BaseModelSpec, LinearShape
from tests.adapters_store.folders import (
    BASE,
    PREFIX,
    Tensors,
    adapter,
    entry,
    raw_safetensors,
    tensors,
)

Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


def problems(store: AdapterStore, files: dict[str, bytes], base: BaseModelSpec = BASE) -> list[str]:
    return [str(problem) for problem in store.check("x", files, base=base).problems]


def test_an_adapter_for_a_wider_base_names_both_shapes(checker: AdapterStore) -> None:
    wider = {name: LinearShape(64, shape.out_features) for name, shape in BASE.linears.items()}
    found = problems(checker, adapter(), replace(BASE, name="other", linears=wider))
    assert len(found) == 4
    assert "[out 16, in 16] in the adapter, but [out 16, in 64] in other" in found[0]


def test_an_adapter_for_another_architecture_gets_near_names(checker: AdapterStore) -> None:
    renamed = {name.replace("model.", "backbone."): shape for name, shape in BASE.linears.items()}
    found = problems(checker, adapter(), replace(BASE, linears=renamed))
    assert "near names: backbone.layers.0.self_attn.q_proj" in found[0]


def test_an_adapter_for_a_deeper_base(checker: AdapterStore) -> None:
    first = {name: shape for name, shape in BASE.linears.items() if ".1." not in name}
    assert "is no module of tiny" in problems(checker, adapter(), replace(BASE, linears=first))[0]


def test_an_adapter_for_a_shallower_base(checker: AdapterStore) -> None:
    made = {key: value for key, value in tensors().items() if ".1." not in key}
    (found,) = problems(checker, adapter(made))
    assert "model.layers.1.self_attn.q_proj" in found
    assert "layers_to_transform" in found
    assert problems(checker, adapter(made, layers_to_transform=[0])) == []


def test_a_module_that_is_not_linear(checker: AdapterStore) -> None:
    made = {key.replace("layers.0.self_attn.q_proj", "norm"): v for key, v in tensors().items()}
    found = problems(checker, adapter(made, target_modules=r".*(norm|proj)"))
    assert any("model.norm: is no linear layer" in problem for problem in found)


def test_half_a_pair(checker: AdapterStore) -> None:
    made = tensors()
    del made[f"{Q}.lora_B.weight"]
    (found,) = problems(checker, adapter(made))
    assert found == "model.layers.0.self_attn.q_proj: has lora_A but no lora_B"


def test_a_rank_other_than_the_config_says(checker: AdapterStore) -> None:
    found = problems(checker, adapter(tensors(rank=3)))
    assert "[3, 16]" in found[0]
    assert "gives it rank 4" in found[0]


def test_a_and_b_of_different_ranks(checker: AdapterStore) -> None:
    made = tensors()
    made[f"{Q}.lora_B.weight"] = np.zeros((16, 5), np.float32)
    assert "lora_B [16, 5]" in problems(checker, adapter(made))[0]


def test_lora_on_a_convolution(checker: AdapterStore) -> None:
    made = tensors()
    made[f"{Q}.lora_A.weight"] = np.zeros((4, 16, 3, 3), np.float32)
    assert "other layers are not supported" in problems(checker, adapter(made))[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes_that_work(checker: AdapterStore, dtype: type[np.floating]) -> None:
    made = {key: value.astype(dtype) for key, value in tensors().items()}
    assert problems(checker, adapter(made)) == []


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_dtypes_that_do_not(checker: AdapterStore, dtype: type[np.generic]) -> None:
    made: Tensors = {key: value.astype(dtype) for key, value in tensors().items()}
    assert "accepted are F32, F16, BF16" in problems(checker, adapter(made))[0]


def test_bfloat16(checker: AdapterStore) -> None:
    header, data = {}, b""
    for key, value in tensors().items():
        bits = (value.view("<u4") >> 16).astype("<u2").tobytes()
        header[key] = entry(len(data), len(data) + len(bits), "BF16", value.shape)
        data += bits
    files = {**adapter(), "adapter_model.safetensors": raw_safetensors(header, data)}
    assert problems(checker, files) == []
    data = data[:-2] + b"\x80\x7f"
    files["adapter_model.safetensors"] = raw_safetensors(header, data)
    assert "holds 1 values that are NaN or infinite" in problems(checker, files)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(checker: AdapterStore, value: float) -> None:
    made = tensors()
    made[f"{Q}.lora_A.weight"][2, 3] = value
    (found,) = problems(checker, adapter(made))
    assert found == f"{Q}.lora_A.weight: holds 1 values that are NaN or infinite"


def test_limits(tmp_path: Path) -> None:
    limits = StoreLimits(max_rank=3, max_texts=1, max_text_bytes=4, max_tags=1)
    small = AdapterStore.open(tmp_path / "store", limits=limits)
    report = small.check("x", adapter(), base=BASE, texts=["much too long"], tags=["a", "b"])
    text = " ".join(map(str, report.problems))
    assert "at most 3 is accepted" in text
    assert "at most 4 are accepted" in text
    assert "tags: are 2, at most 1" in text
    assert "are 2, at most 1" in str(small.check("x", adapter(), base=BASE, texts=["a", "b"]))
    small.close()


def test_many_problems_are_counted(checker: AdapterStore) -> None:
    other = BaseModelSpec(
        "deep",
        "LlamaForCausalLM",
        {f"model.layers.{i}.self_attn.q_proj": LinearShape(8, 8) for i in range(40)},
    )
    made = {}
    for name in other.linears:
        made[f"{name}.lora_A.weight"] = np.zeros((4, 16), np.float32)
        made[f"{name}.lora_B.weight"] = np.zeros((16, 4), np.float32)
    found = problems(checker, adapter(made, target_modules=["q_proj"]), other)
    assert len(found) == 32
    assert found[-1] == "adapter: and 9 more problems"


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a" * 200, "ä", "a/b", "a@b"])
def test_names(checker: AdapterStore, name: str) -> None:
    (problem,) = checker.check(name, adapter(), base=BASE).problems
    assert problem.where == "name"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_texts(checker: AdapterStore, text: str) -> None:
    report = checker.check("x", adapter(), base=BASE, texts=["good", text])
    assert [problem.where for problem in report.problems] == ["texts[1]"]


def test_another_base_by_name_is_only_a_note(checker: AdapterStore) -> None:
    report = checker.check("x", adapter(base_model_name_or_path="meta/llama"), base=BASE)
    assert report.loads
    assert "meta/llama" in report.notes[0]


def test_texts_in_the_folder(store: AdapterStore) -> None:
    lines = json.dumps({"text": "one"}) + '\n\n"two"\n'
    files = {**adapter(), "texts.jsonl": lines.encode()}
    record = store.publish("x", files, base=BASE)
    assert (record.num_texts, store.texts(record.digest)) == (2, ["one", "two"])
    record = store.publish("x", files, base=BASE, texts=["three"])
    assert store.texts(record.digest) == ["three"]
    assert "not used" in store.check("x", files, base=BASE, texts=["three"]).notes[0]


@pytest.mark.parametrize(
    "line",
    [
        *(b"7", b"{", b'{"text": 7}', b'{"x": "y"}', b"\xff", b"[]", b"{}"),
        *(b'{"text": "a", "text": "b"}', b'[["text", "a"]]'),
    ],
)
def test_texts_that_are_none(checker: AdapterStore, line: bytes) -> None:
    report = checker.check("x", {**adapter(), "texts.jsonl": b'"good"\n' + line}, base=BASE)
    assert report.problems[0].where.startswith("texts")
