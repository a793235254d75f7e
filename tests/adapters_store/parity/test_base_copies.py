"""Copies of the base's embeddings in an adapter: the base's own are noted, changed ones refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters_store.store import AdapterStore
from adapters_store.types import BaseModelSpec, CheckReport
from router_engine.model.embeddings import embedding_specs
from tests.adapters_store.parity.test_peft_parity import spec_of
from tests.support.tiny import family_model, make_lora_folder

FORMATS = (torch.float32, torch.float16, torch.bfloat16)
LLAMA = "base_model.model.model.embed_tokens.weight"
HEAD = "base_model.model.lm_head.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora_folder(tmp_path_factory.mktemp("copies") / "plain")


def base_of(family: str = "llama", dtype: torch.dtype = torch.float32) -> BaseModelSpec:
    return spec_of(family_model(family).to(dtype))


def own(name: str, dtype: torch.dtype = torch.float32, family: str = "llama") -> Tensor:
    made: Tensor = family_model(family).to(dtype).state_dict()[name]
    return made.detach().clone()


def check(
    store: AdapterStore, folder: Path, into: Path, extra: dict[str, Tensor], base: BaseModelSpec
) -> CheckReport:
    shutil.copytree(folder, into)
    file = into / "adapter_model.safetensors"
    save_file(load_file(file) | extra, file)
    return store.check("x", into, base=base)


@pytest.mark.parametrize("sent", FORMATS, ids=str)
@pytest.mark.parametrize("served", FORMATS, ids=str)
def test_an_own_weight_is_known_in_every_format(
    checker: AdapterStore, folder: Path, tmp_path: Path, served: torch.dtype, sent: torch.dtype
) -> None:
    copy = own("model.embed_tokens.weight", served).to(sent)
    report = check(checker, folder, tmp_path / "x", {LLAMA: copy}, base_of(dtype=served))
    assert report.loads, report.problems
    assert any(LLAMA in note and "base's own" in note for note in report.notes)


@pytest.mark.parametrize("sent", FORMATS, ids=str)
@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_number_is_refused_by_name(
    checker: AdapterStore, folder: Path, tmp_path: Path, sent: torch.dtype, place: int
) -> None:
    copy = own("lm_head.weight").to(sent)
    copy.view(-1)[place] *= 1.5
    report = check(checker, folder, tmp_path / "x", {HEAD: copy}, base_of())
    (problem,) = report.problems
    assert problem.where == HEAD
    assert "other numbers than the base's lm_head" in problem.message


@pytest.mark.parametrize(
    "key",
    [
        *(HEAD, "lm_head.weight", "base_model.model.lm_head.base_layer.weight"),
        *(
            "base_model.model.lm_head.modules_to_save.default.weight",
            "lm_head.original_module.weight",
        ),
    ],
)
@pytest.mark.parametrize("change", [0.0, 1.0])
def test_whatever_peft_calls_it(
    checker: AdapterStore, folder: Path, tmp_path: Path, key: str, change: float
) -> None:
    copy = own("lm_head.weight") + change
    report = check(checker, folder, tmp_path / "x", {key: copy}, base_of())
    assert report.loads == (change == 0)
    assert key in (str(report.problems) if change else str(report.notes))


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        (torch.zeros(300, 64), "resized"),
        (torch.zeros(64, 259), "resized"),
        (torch.zeros(259, 64, dtype=torch.float64), "other numbers"),
        (torch.zeros(259, 64, dtype=torch.int8), "other numbers"),
        (torch.full((259, 64), torch.nan), "other numbers"),
    ],
)
def test_other_shapes_and_kinds(
    checker: AdapterStore, folder: Path, tmp_path: Path, copy: Tensor, said: str
) -> None:
    report = check(checker, folder, tmp_path / "x", {HEAD: copy}, base_of())
    assert [said in str(problem) for problem in report.problems] == [True]


def test_the_embedding_of_each_family_and_both_names_of_a_tied_one() -> None:
    tied = embedding_specs(family_model("llama-tied"))
    assert tied["lm_head"] == tied["model.embed_tokens"]
    assert set(embedding_specs(family_model("gpt2"))) == {"transformer.wte", "lm_head"}
    assert (
        len({spec.digests["F32"] for spec in embedding_specs(family_model("llama")).values()}) == 2
    )


def test_other_weights_of_the_base_stay_refused(
    checker: AdapterStore, folder: Path, tmp_path: Path
) -> None:
    extra = {"base_model.model.model.norm.weight": own("model.norm.weight")}
    (problem,) = check(checker, folder, tmp_path / "x", extra, base_of()).problems
    assert "modules_to_save" in problem.message
