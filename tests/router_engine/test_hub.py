"""Models of a hub: what is brought of them, what is refused before it is, and how they are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from router_engine.assets import AssetError, AssetProgress
from router_engine.config import ModelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.hub import bring_model, check_revision, kept, place_of
from router_engine.model.loader import described_by, load_model, read_checkpoint
from router_engine.model.tiny import save_tiny, tiny_model
from router_engine.model.tokenizer import read_tokenizer
from tests.support.hub import Hub

MODEL = "owner/tiny"
_DUPLICATES = ("pytorch_model.bin", "original/model.pth", "onnx/model.onnx", "README.md", "run.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with everything beside it that repositories hold."""
    made = save_tiny(tmp_path / "tiny")
    for name in _DUPLICATES:
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"the same again")
    return made


def _sharded(folder: Path) -> Path:
    """The checkpoint's weights in several files."""
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_all_that_serving_reads_is_brought_and_nothing_else(hub: Hub, folder: Path) -> None:
    commit = hub.publish(MODEL, folder)
    events: list[AssetProgress] = []
    here = bring_model(MODEL, None, events.append)
    assert here.name == commit
    served = {path.name for path in folder.iterdir() if path.is_file()} - set(_DUPLICATES)
    assert {str(path.relative_to(here)) for path in here.rglob("*")} == served
    assert hub.fetched()[0] == "config.json"
    assert hub.fetched()[-1] == "model.safetensors"
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["checking", "downloading", "done"]
    weights = [event for event in events if event.total == _size(folder, "model.safetensors")]
    assert [event.done for event in weights] == sorted(event.done for event in weights)
    assert weights[-1].done == weights[-1].total
    assert len(weights) > 10


def _size(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


def test_shards_are_those_that_the_index_names(hub: Hub, folder: Path) -> None:
    _sharded(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    hub.publish(MODEL, folder)
    here = bring_model(MODEL)
    names = {path.name for path in folder.glob("model-*.safetensors")}
    assert {path.name for path in here.glob("*.safetensors")} == names
    load_model(ModelConfig(MODEL, device="cpu"))


def test_what_is_there_whole_is_read_without_asking_anybody(hub: Hub, folder: Path) -> None:
    hub.publish(MODEL, folder)
    assert place_of(MODEL) == (MODEL, {})
    bring_model(MODEL)
    hub.asked.clear()
    assert bring_model(MODEL) == kept(MODEL)
    assert place_of(MODEL) == (str(kept(MODEL)), {})
    loaded = load_model(ModelConfig(MODEL, device="cpu"))
    assert read_tokenizer(MODEL).decode([70, 71]) == read_tokenizer(str(folder)).decode([70, 71])
    assert hub.asked == []
    expected = load_model(ModelConfig(str(folder), device="cpu"))
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert loaded.eos_token_ids == expected.eos_token_ids
    assert loaded.model.config._name_or_path == MODEL


@pytest.mark.parametrize("pulled", [True, False])
def test_a_revision_is_that_of_config_tokenizer_and_weights(
    hub: Hub, folder: Path, tmp_path: Path, *, pulled: bool
) -> None:
    """Whether it was brought before, or comes as it is read."""
    first = hub.publish(MODEL, shutil.copytree(folder, tmp_path / "first"), "v1")
    tiny_model(seed=1).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    (folder / "chat_template.jinja").write_text("second")
    second = hub.publish(MODEL, folder, "v2")
    chosen = {"v1": first, first: first, "v2": second, None: second}
    for revision, commit in chosen.items():
        if pulled:
            assert bring_model(MODEL, revision).name == commit
        is_second = commit == second
        length = described_by(MODEL, revision).max_position_embeddings
        assert (length == 64) == is_second
        assert (read_tokenizer(MODEL, revision).chat_template == "second") == is_second
        expected = tiny_model(seed=int(is_second)).state_dict()
        loaded = load_model(ModelConfig(MODEL, device="cpu", dtype="float32", revision=revision))
        read = read_checkpoint(MODEL, torch.float32, revision)
        for model in (loaded.model, read):
            assert all(torch.equal(one, expected[at]) for at, one in model.state_dict().items())


def test_what_a_branch_points_to_later_is_not_mixed_in(hub: Hub, folder: Path) -> None:
    first = hub.publish(MODEL, folder)
    bring_model(MODEL)
    (folder / "generation_config.json").write_text("{}")
    hub.publish(MODEL, folder)
    assert Path(place_of(MODEL)[0]).name == first


@pytest.mark.parametrize("model", ["default", "all-minilm-l6-v2", "tiny-random", "/dev", "x.gguf"])
def test_only_a_hub_id_has_a_revision(model: str) -> None:
    told = f"revision is 'v1', which only a hub id .* has, and the model is {model}: leave"
    looks: list[Callable[[], object]] = [
        lambda: check_revision(model, "v1"),
        lambda: place_of(model, "v1"),
        lambda: described_by(model, "v1"),
        lambda: read_tokenizer(model, "v1"),
        lambda: load_model(ModelConfig(model, device="cpu", revision="v1")),
    ]
    for look in looks:
        with pytest.raises(UnsupportedModelError, match=told):
            look()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture 'MambaForCausalLM' is not supp"),
        ({"quantization_config": {"quant_method": "hqq"}}, r"quantised \(hqq\)"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ],
)
def test_what_is_not_served_is_refused_by_its_config_alone(
    hub: Hub, folder: Path, keys: dict[str, object], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    hub.publish(MODEL, folder)
    with pytest.raises(UnsupportedModelError, match=words):
        bring_model(MODEL)
    assert hub.fetched() == ["config.json"]


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("config.json", "owner/tiny has no config.json"),
        ("model.safetensors", "has no weights: neither model.safetensors nor"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_what_is_not_whole_on_the_hub_is_said(
    hub: Hub, folder: Path, without: str, words: str
) -> None:
    (folder / without).unlink()
    hub.publish(MODEL, folder)
    with pytest.raises(EngineError, match=words):
        bring_model(MODEL)
    assert kept(MODEL) is None


def test_a_connection_that_ends_early_is_taken_up_where_it_ended(hub: Hub, folder: Path) -> None:
    hub.publish(MODEL, folder)
    size = _size(folder, "model.safetensors")
    hub.cut = 2 * size // 3
    events: list[AssetProgress] = []
    bring_model(MODEL, None, events.append)
    resumed = [one for one in hub.asked if "model.safetensors from" in one]
    assert len(resumed) == 1
    assert max(event.done for event in events if event.total == size) == size
    load_model(ModelConfig(MODEL, device="cpu"))


def test_a_download_that_failed_keeps_the_files_that_were_whole(hub: Hub, folder: Path) -> None:
    _sharded(folder)
    hub.publish(MODEL, folder)

    def break_it(event: AssetProgress) -> None:
        hub.broken = hub.broken or event.total == shards

    shards = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with pytest.raises(AssetError, match=r"owner/tiny could not be brought .*500.*try again"):
        bring_model(MODEL, None, break_it)
    assert kept(MODEL) is None
    hub.broken = False
    before = set(hub.fetched())
    hub.asked.clear()
    bring_model(MODEL)
    assert "tokenizer.json" in before - set(hub.fetched())
    assert kept(MODEL) is not None


def test_a_disk_that_is_too_small_is_told_before_it_is_full(hub: Hub, folder: Path) -> None:
    hub.publish(MODEL, folder)
    hub.models[MODEL].sizes["model.safetensors"] = 1 << 60
    with pytest.raises(AssetError, match=r"there is no room for owner/tiny in .*HF_HOME") as raised:
        bring_model(MODEL)
    assert str(1 << 60) in str(raised.value)
    assert "model.safetensors" not in hub.fetched()
