"""Importing AdaMix: what is read of a pickle, what is not, and the folder that comes of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adaptermix.training.importing.adamix.importer import import_adamix
from adapters_store.errors import InvalidAdapterError
from adapters_store.store import AdapterStore
from tests.adapters_store.parity.test_peft_parity import spec_of
from tests.support.adamix_checkpoint import (
    ALPHA,
    HIDDEN,
    LAYERS,
    RANK,
    adamix_model,
    save_checkpoint,
    state_of,
)
from tests.support.tiny import family_model

A0 = "module.transformer.h.0.attn.c_attn.experts_lora_A.0"

KINDS: dict[str, dict[str, Any]] = {
    "zip": {},
    "before torch 1.6": {"_use_new_zipfile_serialization": False},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return adamix_model(evaluated=True)


def refused(tmp_path: Path, file: Path, alpha: float | None = ALPHA) -> str:
    with pytest.raises(InvalidAdapterError) as raised:
        import_adamix(file, alpha, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


def test_the_folder_is_published_and_says_what_it_is(model: Any, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path / "model.26289.pt", state_of(model))
    imported = import_adamix(file, ALPHA, tmp_path / "made" / "e2e")
    card = (imported.folder / "README.md").read_text()
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for said in (
        f"model.26289.pt, sha256 `{sha256}`",
        "8 experts of A, the only copy (shared) of B, in each of 2 layers, by equal weights",
        "rank 4 on q and v each, alpha 32 (given at import), scale 8",
        "rank 8 on the fused `attn.c_attn`, alpha 64",
    ):
        assert said in card
    store = AdapterStore.open(tmp_path / "store")
    record = store.publish("e2e", imported.folder, base=spec_of(family_model("gpt2")))
    store.close()
    assert len(record.manifest.lora_experts) == LAYERS
    for expert in record.manifest.lora_experts:
        assert (expert.rank, expert.scale) == (2 * RANK, ALPHA / RANK)
        assert (expert.in_features, expert.out_features) == (HIDDEN, 3 * HIDDEN)


def test_equal_checkpoints_give_equal_bytes(model: Any, tmp_path: Path) -> None:
    """Whatever the layout in memory, the number format or the pickle's age."""
    state: Any = state_of(model)
    file = save_checkpoint(tmp_path / "plain.pt", state)
    folder = import_adamix(file, ALPHA, tmp_path / "plain").folder
    state[A0] = state[A0].t().contiguous().t()
    name = A0.replace("A.0", "A.1")
    state[name] = torch.nn.Parameter(state[name].double())
    torch.save({"model_state_dict": state}, file, **KINDS["before torch 1.6"])
    other = import_adamix(file, ALPHA, tmp_path / "other").folder
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / part).read_bytes() == (other / part).read_bytes()


def test_half_precision_is_averaged_in_float32(model: Any, tmp_path: Path) -> None:
    state = state_of(model)
    for name in state:
        state[name] = state[name].bfloat16()
    folder = import_adamix(save_checkpoint(tmp_path / "x.pt", state), ALPHA, tmp_path / "x").folder
    made = load_file(folder / "adapter_model.safetensors")
    experts = [tensor for name, tensor in state.items() if ".h.0." in name and "lora_A." in name]
    expected = torch.stack(experts).float().mean(0)
    found = made["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"]
    torch.testing.assert_close(found, expected)


class Malicious:
    """A pickle of it creates a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_pickle_is_refused_and_never_run(model: Any, tmp_path: Path, kind: str) -> None:
    mark, file = tmp_path / "mark", tmp_path / "model.pt"
    state = {**state_of(model), "module.transformer.x": Malicious(mark)}
    torch.save({"model_state_dict": state}, file, **KINDS[kind])
    said = refused(tmp_path, file)
    assert "mkdir, not only tensors" in said
    assert "can run code" in said
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the control: elsewhere it would have been run
    assert mark.exists()


def test_objects_beside_the_tensors_are_refused_by_name(model: Any, tmp_path: Path) -> None:
    torch.save({"model_state_dict": state_of(model), "args": Path()}, tmp_path / "model.pt")
    assert "Path, not only tensors" in refused(tmp_path, tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04", pickle.dumps([1])])
def test_what_torch_did_not_save_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    said = refused(tmp_path, tmp_path / "model.pt")
    assert said.endswith("is no file of torch.save, or is damaged")  # without torch's advice


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(POINTER)
    said = refused(tmp_path, tmp_path / "model.pt")
    assert "is a Git LFS pointer" in said
    assert "git lfs pull" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_refused(model: Any, tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    checkpoint = {"model_state_dict": state_of(model)}
    torch.save(checkpoint, whole, **KINDS[kind])
    (tmp_path / "model.pt").write_bytes(whole.getvalue()[: whole.tell() // 2])
    assert "or is damaged" in refused(tmp_path, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "is a int, expected a dense tensor"),
        (torch.eye(8, HIDDEN).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(8, HIDDEN, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(8, HIDDEN, device="meta"), "on meta"),
        (torch.zeros(8, HIDDEN, dtype=torch.int64), "is int64"),
    ],
)
def test_values_that_are_no_dense_floats_are_refused(
    model: Any, tmp_path: Path, value: Any, said: str
) -> None:
    state: Any = state_of(model)
    state[A0] = value
    answer = refused(tmp_path, save_checkpoint(tmp_path / "model.pt", state))
    assert A0.removeprefix("module.") in answer
    assert said in answer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_store(
    model: Any, tmp_path: Path, value: float
) -> None:
    state = state_of(model)
    state[A0][1, 2] = value
    state[A0.replace("A.0", "A.1")][1, 2] = -value
    folder = import_adamix(save_checkpoint(tmp_path / "x.pt", state), ALPHA, tmp_path / "x").folder
    store = AdapterStore.open(tmp_path / "store")
    with pytest.raises(InvalidAdapterError, match=r"lora_A.weight: holds 1 values that are NaN"):
        store.publish("x", folder, base=spec_of(family_model("gpt2")))
    store.close()


def test_alpha_is_asked_for(model: Any, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path / "model.pt", state_of(model))
    assert "--alpha: is missing" in refused(tmp_path, file, None)


def test_nothing_is_written_over(model: Any, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path / "model.pt", state_of(model))
    with pytest.raises(InvalidAdapterError, match=r"--out: .* exists already"):
        import_adamix(file, ALPHA, tmp_path)
    (tmp_path / "empty").mkdir()
    folder = import_adamix(file, ALPHA, tmp_path / "empty").folder
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2 * RANK
