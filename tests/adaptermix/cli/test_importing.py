"""`adaptermix adapters import`, from a checkpoint to an answer; pickles stay off servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adaptermix.cli.test_main import ok, run
from tests.server.live import Live, serving, tiny_settings
from tests.support import moa_checkpoint as moa
from tests.support.adamix_bottleneck import bottleneck_model
from tests.support.adamix_checkpoint import adamix_model, save_checkpoint, state_of
from tests.support.tiny import save_family

IMPORT = ("adapters", "import")
COMMAND = (*IMPORT, "adamix")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AdaMix's trainer leaves at its end, base weights included."""
    folder = tmp_path_factory.mktemp("trained")
    return save_checkpoint(folder / "model.final.pt", state_of(adamix_model(), full=True))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of the tiny GPT-2, with no adapters."""
    root = tmp_path_factory.mktemp("gpt2")
    with serving(tiny_settings(root, model=str(save_family(root / "base", "gpt2")))) as server:
        yield server


def test_a_checkpoint_is_imported_published_and_served(
    gpt2: Live, checkpoint: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "e2e")
    said = ok(
        *COMMAND, str(checkpoint), "--alpha", "32", "--out", out, "--name", "e2e", "--url", gpt2.url
    )
    assert "averaged 8 of A and 1 of B in 2 layers: rank 4 on q and v, scale 8" in said
    assert "published e2e@1" in said
    assert "would load: rank 8" in ok("adapters", "check", out, "--url", gpt2.url)
    parameters = {"max_new_tokens": 8, "details": True}
    plain = gpt2.answer(parameters=parameters)
    adapted = gpt2.answer(parameters={**parameters, "adapter_id": "e2e"})
    assert adapted["details"]["tokens"] != plain["details"]["tokens"]


def test_without_a_name_no_server_is_asked(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    said = ok(*COMMAND, str(checkpoint), "--alpha", "32", "--out", str(out))
    assert str(out) in said
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_bottlenecks_are_imported_and_listed_with_what_they_hold(
    gpt2: Live, tmp_path: Path
) -> None:
    file = save_checkpoint(tmp_path / "model.pt", state_of(bottleneck_model()))
    out = str(tmp_path / "soup")
    said = ok(
        *(*COMMAND, str(file), "--keep-copies", "--out", out, "--name", "soup", "--url", gpt2.url)
    )
    assert "kept 8 of A and 1 of B in 2 layers: bottlenecks of size 6" in said
    listed = gpt2.client.get("/admin/adapters/soup").json()["adapters"]
    assert [adapter["kinds"] for adapter in listed] == [["bottleneck", "copies"]]
    assert "bottleneck copies" in ok("adapters", "ls", "--url", gpt2.url)


def test_moa_of_the_port_is_imported(tmp_path: Path) -> None:
    state = moa.state(moa.HF_PREFIX, moa.HF_NAMES, moa.SPARSE, swi=4, is_sparse=True)
    folder = moa.save_hf(tmp_path / "moa", state, moa.hf_config())
    out = tmp_path / "out"
    said = ok(*IMPORT, "moa-hf", str(folder), "--gamma-max", "0.2", "--out", str(out))
    assert "note: thresholds are at most 0.2, which the folder does not say" in said
    assert "imported sparse MoA: 12 experts in 2 layers, swiglu routers with 6 gates" in said
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "adapter_model.safetensors",
        "adaptermix.json",
    ]


def test_moa_of_the_original_is_imported_once_the_heads_are_told(tmp_path: Path) -> None:
    state = moa.state(moa.NATIVE_PREFIX, moa.NATIVE_NAMES, moa.SOFT)
    folder = str(moa.save_native(tmp_path / "moa", state, moa.native_params(moa.SOFT)))
    out = str(tmp_path / "out")
    result = run(*IMPORT, "moa-native", folder, "--out", out)
    assert result.exit_code == 1
    assert "--heads: is missing" in result.output
    assert "--kv-heads: is missing" in result.output
    said = ok(*IMPORT, "moa-native", folder, "--heads", "4", "--kv-heads", "2", "--out", out)
    assert "imported soft MoA: 14 experts in 2 layers, linear routers with 7 gates" in said


def test_without_alpha_it_says_which_there_are(checkpoint: Path, tmp_path: Path) -> None:
    result = run(*COMMAND, str(checkpoint), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "--alpha" in result.output
    assert "32 in the published scripts, 128" in result.output
    assert not (tmp_path / "out").exists()


def test_every_problem_is_told(tmp_path: Path) -> None:
    state = state_of(adamix_model())
    for layer in (0, 1):
        del state[f"module.transformer.h.{layer}.attn.c_attn.experts_lora_A.{layer + 2}"]
    file = save_checkpoint(tmp_path / "model.pt", state)
    result = run(*COMMAND, str(file), "--alpha", "32", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "lacks experts_lora_A.2 of 8" in result.output
    assert "lacks experts_lora_A.3 of 8" in result.output


def test_a_folder_that_cannot_be_written_is_told(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(*COMMAND, str(checkpoint), "--alpha", "32", "--out", str(tmp_path / "file" / "x"))
    assert result.exit_code == 1
    assert "error:" in result.output


def test_an_uploaded_checkpoint_is_refused_and_the_command_named(
    gpt2: Live, checkpoint: Path
) -> None:
    before = gpt2.client.get("/admin/adapters").json()
    result = run("adapters", "publish", str(checkpoint), "--name", "raw", "--url", gpt2.url)
    assert result.exit_code == 1
    assert "is a pickle" in result.output
    assert "`adaptermix adapters import`" in result.output
    assert gpt2.client.get("/admin/adapters").json() == before
