"""Every model that cannot be served is refused in one line that names it and says what would do."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from router_engine.config import EngineConfig, ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.checkpoint import check_model
from router_engine.model.loader import described_by, load_model
from router_engine.model.tiny import save_tiny, tiny_model
from tests.router_engine.conftest import MakeHarness
from tests.support.bad_checkpoints import BAD, ODD, OLD_POINTER, POINTER, Bad, keys, sharded
from tests.support.gguf import save_gguf
from tests.support.tiny import save_family


def _require_line(error: UnsupportedModelError, words: tuple[str, ...]) -> None:
    told = str(error)
    assert "\n" not in told
    assert len(told) < 1000
    for word in words:
        assert word in told


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_files_that_will_not_do_are_seen_at_once(tmp_path: Path, bad: Bad) -> None:
    """By whoever looks first, and by the loader itself."""
    folder = save_tiny(tmp_path / "model")
    bad.spoil(folder)
    for look in (lambda: check_model(folder), lambda: load_model(ModelConfig(str(folder)))):
        with pytest.raises(UnsupportedModelError) as raised:
            look()
        _require_line(raised.value, (str(folder), *bad.words))


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_what_only_the_loader_sees_is_one_line_too(tmp_path: Path, odd: Bad) -> None:
    folder = save_tiny(tmp_path / "model")
    odd.spoil(folder)
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(ModelConfig(str(folder)))
    _require_line(raised.value, odd.words)


def test_a_sound_checkpoint_is_nothing_to_complain_of(tmp_path: Path) -> None:
    check_model(save_tiny(tmp_path / "model"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no GGUF file"),
        (b"GGU", "is no GGUF file"),
        (POINTER, "git-lfs pointer"),
        (OLD_POINTER, "git-lfs pointer"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40), "cannot be read"),
        (b"GGUF" + b"\xff" * 400, "cannot be read"),
    ],
)
def test_a_gguf_file_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=words) as raised:
        load_model(ModelConfig(str(file)))
    _require_line(raised.value, (str(file),))


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_half_a_gguf_file(tmp_path: Path, part: float) -> None:
    file = save_gguf(tmp_path / "model.gguf", tiny_model(), "smollm")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(ModelConfig(str(file)))
    _require_line(raised.value, (str(file),))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    file = folder / "model.safetensors"
    with pytest.raises(UnsupportedModelError, match=r"is no directory and no \.gguf file"):
        check_model(file)


def test_sixteen_bits_are_served_in_thirty_two_on_a_cpu(
    tmp_path: Path, make_harness: MakeHarness
) -> None:
    folder = save_tiny(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    harness = make_harness(folder, config=EngineConfig(model=ModelConfig(device="cpu")))
    assert harness.engine.info.dtype == "float32"
    assert load_model(ModelConfig(str(folder), device="cpu")).dtype == torch.float32


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [None, "absent"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_config_without_a_format_is_in_that_of_its_weights(
    tmp_path: Path, stored: torch.dtype, key: str, value: str | None, parts: int
) -> None:
    folder = save_tiny(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    if value is None:
        config[key] = None
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 2:
        sharded(folder)
    assert described_by(str(folder)).dtype == stored
    served = torch.float32 if stored == torch.float16 else stored
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    assert loaded.dtype == served
    assert all(one.dtype == served for one in loaded.model.parameters())


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        (2, None, (2,)),
        ([2, 7], None, (2, 7)),
        (2, 7, (7,)),
        (2, [7, 9], (7, 9)),
        (300, None, ()),
        ([2, 300, -1], None, (2,)),
        (2, [259, 7], (7,)),
        (None, None, ()),
        ([], None, ()),
    ],
)
def test_ids_that_the_model_has_no_row_for_end_nothing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: object,
    generation: object,
    ids: tuple[int, ...],
) -> None:
    folder = save_tiny(tmp_path / "model")
    keys(eos_token_id=config)(folder)
    told = folder / "generation_config.json"
    told.unlink(missing_ok=True)
    if generation is not None:
        told.write_text(json.dumps({"eos_token_id": generation}))
    assert load_model(ModelConfig(str(folder))).eos_token_ids == ids
    every = [one for value in (config, generation) for one in str(value).strip("[]").split(", ")]
    outside = [one for one in every if one in ("300", "-1", "259")]
    assert all(one in caplog.text for one in outside)
    assert ("these end no text" in caplog.text) == bool(outside)


def test_shards_that_are_as_their_index_says_are_loaded(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    whole = load_model(ModelConfig(str(folder))).model.state_dict()
    sharded(folder)
    check_model(folder)
    parts = load_model(ModelConfig(str(folder))).model.state_dict()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_an_index_may_name_a_tied_head_that_no_shard_holds(tmp_path: Path) -> None:
    """As converters of the hub leave it."""
    folder = save_family(tmp_path / "model", "llama-tied")
    sharded(folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"].setdefault("lm_head.weight", "model-00001-of-00002.safetensors")
    file.write_text(json.dumps(index))
    check_model(folder)
    model: Any = load_model(ModelConfig(str(folder))).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_masks_of_an_old_gpt2_are_no_weights(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "gpt2")
    file = folder / "model.safetensors"
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    save_file(load_file(file) | masks, file, metadata={"format": "pt"})
    check_model(folder)
    load_model(ModelConfig(str(folder)))
