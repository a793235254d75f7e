"""`adaptermix doctor`, on a tiny model's shape and where nothing can be compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptermix.cli.main import app
from router_engine.backends.cpu.build import ISAS_OF, architecture, build, known_isas
from router_engine.config import KernelConfig
from tests.support.isas import here
from tests.support.tiny import save_family


def _doctor(cache: Path, model: Path, **environment: str) -> str:
    """What it prints on an empty cache, but for the kernels, which are common to all tests."""
    compiled = build(KernelConfig().cache)
    kernels = cache / "kernels"
    kernels.mkdir(parents=True)
    (kernels / compiled.name).symlink_to(compiled)
    variables = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", **environment}
    variables["ADAPTERMIX_CACHE"] = str(cache)
    result = CliRunner().invoke(app, ["doctor", "--model", str(model)], env=variables)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_it_says_what_runs_and_what_to_expect(tmp_path: Path) -> None:
    text = _doctor(tmp_path / "cache", save_family(tmp_path / "model", "llama"))
    assert f"kernels       {', '.join(here())}" in text
    assert "chosen" in text
    assert text.count("tokens/s") == 3
    assert "reading prompts" in text
    assert "faster        more cores" in text


@pytest.mark.slow
def test_a_limit_is_said(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llama")
    text = _doctor(tmp_path / "cache", model, ADAPTERMIX_CPU_ISA=here()[0])
    assert f"kernels       {here()[0]} (" in text
    assert f"without ADAPTERMIX_CPU_ISA={here()[0]}" in text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden_act": "nope"}, "nope"),
        ({"num_attention_heads": 0}, "model's shape could not be read"),
        ({"architectures": 5}, "architectures is 5"),
        ({"architectures": {"a": 1}}, "architectures is "),
        ({"dtype": "float64"}, "nothing is measured in torch.float64"),
    ],
)
def test_a_model_that_has_no_shape_is_a_problem(
    tmp_path: Path, keys: dict[str, object], words: str
) -> None:
    model = save_family(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | keys))
    text = _doctor(tmp_path / "cache", model)
    assert words in " ".join(text.split())
    assert "cores" in text


@pytest.mark.parametrize(
    "keys",
    [
        {"head_dim": 40},
        {"head_dim": 320},
        {"hidden_size": 72},
        {"intermediate_size": 404},
        {"hidden_size": 1040, "num_attention_heads": 65, "num_key_value_heads": 1, "head_dim": 16},
    ],
)
def test_layers_that_the_decoder_cannot_run_are_told_before_they_are_measured(
    tmp_path: Path, keys: dict[str, object]
) -> None:
    """The decoder checks no bounds: it would read and write beyond its memory."""
    model = save_family(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | keys))
    text = " ".join(_doctor(tmp_path / "cache", model).split())
    assert "the C++ decoder cannot run such layers" in text
    assert "chosen torch" in text


@pytest.mark.slow
def test_what_is_asked_for_is_what_it_says_runs(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llama")
    text = _doctor(tmp_path / "cache", model, ADAPTERMIX_KERNELS="reference")
    assert "chosen torch, for" in " ".join(text.split())
    text = _doctor(tmp_path / "other", model, ADAPTERMIX_KERNELS="cpu")
    assert "chosen torch" not in " ".join(text.split())


def test_a_set_of_another_architecture_is_refused() -> None:
    other = next(isas[0] for name, isas in ISAS_OF.items() if name != architecture())
    result = CliRunner().invoke(app, ["doctor"], env={"ADAPTERMIX_CPU_ISA": other})
    assert result.exit_code == 2
    assert known_isas()[0] in result.output


def test_layers_larger_than_the_memory_are_a_problem(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 1 << 42}))
    text = " ".join(_doctor(tmp_path / "cache", model).split())
    assert "its layers cannot be measured on this machine" in text
    assert "chosen torch" in text


def test_an_unknown_set_is_refused_by_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"], env={"ADAPTERMIX_CPU_ISA": "sse9"})
    assert result.exit_code == 2
    assert "cpu_isa (ADAPTERMIX_CPU_ISA) = 'sse9'" in result.output
