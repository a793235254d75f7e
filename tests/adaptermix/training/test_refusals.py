"""What cannot be trained on, or measured, is told in one line, before anything is written."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from adaptermix.cli import train
from adaptermix.evaluation.scoring.models import Systems
from adaptermix.training.adamix.bottlenecks import CopiedBottlenecks
from adaptermix.training.adamix.draws import Draws
from adaptermix.training.base import check_base, read_base
from adaptermix.training.data import read_rows
from adaptermix.training.errors import DataError, TrainingError
from adaptermix.training.lora_model import lora_model
from adaptermix.training.moa.budget import shape_of_base
from adaptermix.training.moa.building import frozen_base
from adaptermix.training.recipes.lora import train_lora
from adaptermix.training.settings import AdamixSettings, MoaSettings, MoeLoraSettings
from router_engine.errors import UnsupportedModelError
from router_engine.model.tiny import save_tiny
from tests.adaptermix.training.conftest import MakeRun
from tests.support.bad_checkpoints import BAD, ODD, POINTER, Bad, keys, removed, written

RECIPES = ("lora", "adamix", "moa", "moe-lora")
Spoil = Callable[[Path], object]


def _odd(name: str) -> Bad:
    return next(bad for bad in (*BAD, *ODD) if bad.name == name)


def _told(arguments: list[str]) -> str:
    """The one line of a command that fails."""
    program = typer.Typer()
    train.register(program)
    result = CliRunner().invoke(program, ["train", *arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    [first] = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert first == len(lines) - 1, lines
    return lines[-1]


def _options(recipe: str, base: Path | str, rows: Path, out: Path) -> list[str]:
    return [
        *(recipe, "--base", str(base), "--data", str(rows), "--data-licence", "CC0"),
        *("--out", str(out), "--dtype", "float32", "--max-rows", "4", "--dev-rows", "2"),
    ]


TOKENIZER = Bad(
    "an empty tokenizer", written("tokenizer.json", b"{}"), ("its tokenizer cannot be loaded",)
)
BASES = [
    *map(
        _odd,
        (
            *("no tokenizer", "config of other bytes", "weights in LFS", "quantised by mxfp4"),
            *("an encoder", "layers that are not there", "unknown activation"),
            *("another vocabulary", "a dynamic rope", "no positions", "end 'x'", "no heads"),
        ),
    ),
    TOKENIZER,
]


@pytest.mark.parametrize("bad", BASES, ids=lambda bad: bad.name)
def test_a_base_that_is_not_served_is_not_trained_on(
    bad: Bad, rows_file: Path, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base")
    bad.spoil(folder)
    out = tmp_path / "out"
    told = _told(_options("lora", folder, rows_file, out))
    for word in bad.words:
        assert word in told
    assert not list(out.glob("*"))


@pytest.mark.parametrize("recipe", RECIPES[1:])
@pytest.mark.parametrize("name", ["quantised by mxfp4", "layers that are not there"])
def test_nor_by_another_recipe(name: str, recipe: str, rows_file: Path, tmp_path: Path) -> None:
    bad, folder = _odd(name), save_tiny(tmp_path / "base")
    bad.spoil(folder)
    told = _told(_options(recipe, folder, rows_file, tmp_path / "out"))
    assert bad.words[0] in told


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("x.gguf", "is a GGUF file, which is served but not trained on"),
        ("X.GGUF", "is a GGUF file, which is served but not trained on"),
        ("weights.bin", "is no directory and no .gguf file"),
    ],
)
def test_a_file_is_no_base(base: str, words: str, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / base).write_bytes(b"GGUF")
    assert words in _told(_options("lora", tmp_path / base, rows_file, tmp_path / "out"))


def test_a_hub_id_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, rows_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = _told(_options("lora", "noone/nothing", rows_file, tmp_path / "out"))
    assert "noone/nothing (an id on the hub: no such path): its config cannot be read" in told


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamixSettings(copies=2**70), "copies is"),
        (lambda: AdamixSettings(kind="bottleneck", size=2**70), "size is"),
        (lambda: MoaSettings(parallel=2**70), "parallel is"),
        (lambda: MoaSettings(prompt=2**70), "prompt is"),
        (lambda: MoaSettings(router_factor=2**70), "router_factor is"),
        (lambda: MoaSettings(ranks=("down_proj=99999",)), "ranks is"),
        (lambda: MoeLoraSettings(experts=2**70), "experts is"),
    ],
)
def test_sizes_have_an_end(make: Callable[[], object], words: str) -> None:
    with pytest.raises(TrainingError, match=f"^{words} .*at most 65536"):
        make()


@pytest.mark.parametrize("bad", [_odd("layers that are not there"), _odd("quantised by mxfp4")])
def test_every_way_to_read_a_base_has_the_checks(
    bad: Bad, make_run: MakeRun, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base")
    bad.spoil(folder)
    run = make_run(base=str(folder))
    adamix = AdamixSettings(kind="bottleneck")
    ways: list[Callable[[], object]] = [
        lambda: read_base(run.base, "float32", "cpu"),
        lambda: lora_model(run),
        lambda: frozen_base(run),
        lambda: CopiedBottlenecks(run, adamix, Draws("batch", 0)),
        lambda: train_lora(run, tmp_path / "out"),
        lambda: Systems(run.base, {"one": tmp_path}, "float32", "cpu"),
    ]
    for way in ways:
        with pytest.raises(UnsupportedModelError, match=bad.words[0].partition("(")[0]):
            way()


def test_a_shape_is_read_with_the_checks(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    keys(hidden_act="nope")(folder)
    with pytest.raises(UnsupportedModelError, match="its own code cannot run it: 'nope'"):
        shape_of_base(str(folder))


def test_a_sound_base_has_the_weights_of_its_file(tiny_base: Path) -> None:
    check_base(str(tiny_base))
    model = read_base(str(tiny_base), "bfloat16", "cpu")
    stored = load_file(tiny_base / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, stored[name].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        *(
            (["--device", name], f"device is '{name}'; it must be cpu, cuda or cuda:<number>")
            for name in ("foo", "cpu:1", "mps", "CUDA", "cuda:", "cuda:-1", "cuda:x", "")
        ),
        (["--device", "cuda:99"], "device is 'cuda:99', but torch sees"),
        *(
            (["--seed", str(seed)], f"seed is {seed}; it must be from -9223372036854775808 to 1844")
            for seed in (2**70, 2**64, -(2**63) - 1)
        ),
        *(
            ([option, value], f"{option[2:].replace('-', '_')} is {value}; it must be")
            for option, value in (
                *(("--alpha", "nan"), ("--alpha", "inf"), ("--learning-rate", "inf")),
                *(("--learning-rate", "nan"), ("--weight-decay", "inf")),
                *(("--checkpoint-every", "-1"), ("--rank", str(2**70)), ("--rank", "65537")),
            )
        ),
    ],
)
def test_settings_are_refused_by_name(
    wrong: list[str], words: str, tiny_base: Path, rows_file: Path, tmp_path: Path
) -> None:
    assert words in _told([*_options("lora", tiny_base, rows_file, tmp_path / "out"), *wrong])


def test_a_device_must_be_there(tiny_base: Path, rows_file: Path, tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    device = f"cuda:{count}" if count else "cuda"
    told = _told([*_options("moa", tiny_base, rows_file, tmp_path / "out"), "--device", device])
    assert f"device is '{device}', but torch sees {count} of CUDA here: use cpu" in told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "\\ud800", "completion": "x"}', "'prompt' holds half of a surro"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: no JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 9999 + b"}", "a.jsonl:1: no JSON"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999)[:-9], "cannot be read as JSON lines"),
        ("a.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 99, "cannot be read as JSON lines"),
    ],
)
def test_rows_that_are_none(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_rows(tmp_path / name)
    assert words in str(raised.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, rows_file: Path) -> Path:
    """An adapter of the tiny base; tests take copies."""
    out = tmp_path_factory.mktemp("trained") / "adapter"
    program = typer.Typer()
    train.register(program)
    options = ["train", *_options("lora", tiny_base, rows_file, out), "--rank", "2"]
    result = CliRunner().invoke(program, options)
    assert result.exit_code == 0, result.output
    return out


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = tensors[name][:, :5].contiguous()


def _halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(name for name in tensors if "lora_B" in name))


ADAPTERS: list[tuple[str, Spoil, str]] = [
    ("nothing", shutil.rmtree, "are not there: name a folder that PEFT has written"),
    ("no config", removed("adapter_config.json"), "adapter_config.json: is missing"),
    ("no weights", removed("adapter_model.safetensors"), "adapter_model.safetensors"),
    ("weights in LFS", written("adapter_model.safetensors", POINTER), "adapter_model.safetensors"),
    ("no JSON", written("adapter_config.json", b"{bad"), "adapter_config.json"),
    ("another kind", written("adapter_config.json", b'{"peft_type": "IA3"}'), "IA3"),
    ("one side", _tensors(_halve), "lora_B"),
    ("another width", _tensors(_narrow), "in 5] in the adapter, but [out"),
    ("no tensors", _tensors(dict.clear), "holds no LoRA tensors"),
]


@pytest.mark.parametrize(("name", "spoil", "words"), ADAPTERS, ids=[one[0] for one in ADAPTERS])
def test_an_adapter_that_is_not_served_is_not_measured(
    name: str, spoil: Spoil, words: str, trained: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    spoil(folder)
    told = _told(_measuring(tiny_base, tmp_path, folder))
    assert told.startswith(f"error: adapter {folder}: ")
    assert words in told


@pytest.mark.parametrize(
    "name", ["quantised by mxfp4", "layers that are not there", "config of other bytes"]
)
def test_nothing_is_measured_on_a_base_that_is_not_served(
    name: str, trained: Path, tmp_path: Path
) -> None:
    bad, folder = _odd(name), save_tiny(tmp_path / "base")
    bad.spoil(folder)
    assert bad.words[0] in _told(_measuring(folder, tmp_path, trained))


def test_two_adapters_need_two_names(trained: Path, tiny_base: Path, tmp_path: Path) -> None:
    told = _told(_measuring(tiny_base, tmp_path, trained, trained))
    assert "several adapters are called adapter: rename their folders" in told


def test_an_adapter_may_have_a_dot_in_its_name(
    trained: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "yes-v1.5"
    shutil.copytree(trained, folder)
    systems = Systems(str(tiny_base), {folder.name: folder}, "float32", "cpu")
    assert systems.names == ("base", "yes-v1.5")


def test_a_gguf_file_is_no_base_of_measured_adapters(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="served but not trained on"):
        Systems(str(tmp_path / "x.gguf"), {"one": trained}, "float32", "cpu")


def _measuring(base: Path, folder: Path, *adapters: Path) -> list[str]:
    named = [text for adapter in adapters for text in ("--adapters", str(adapter))]
    data = ["--data", str(folder), "--out", str(folder / "r.json"), "--tasks", "code"]
    return ["eval", "--base", str(base), "--dtype", "float32", *data, *named]
