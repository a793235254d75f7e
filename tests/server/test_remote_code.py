"""No code that comes with a model is ever run, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from router_engine.config import ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.loader import load_model
from router_engine.model.tiny import save_tiny
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder
from server.models import BaseFiles, load_tokenizer

ROOT = Path(__file__).parents[2]
PRODUCT = ("adapters_store", "router_engine", "server", "adaptermix/training")
LOADERS = ("from_pretrained", "from_config")


def _loads() -> Iterator[tuple[str, int, str]]:
    """Where a class that chooses by a config is named as a loader, and the source around it."""
    for package in PRODUCT:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            for function in functions:
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Attribute)
                        and node.attr in LOADERS
                        and isinstance(node.value, ast.Name)
                        and node.value.id.startswith("Auto")
                    ):
                        yield str(file.relative_to(ROOT)), node.lineno, ast.unparse(function)


def test_every_loader_is_told_to_run_no_code() -> None:
    found = list(_loads())
    assert len(found) > 5
    for file, line, source in found:
        said = "trust_remote_code=False" in source or "'trust_remote_code': False" in source
        assert said, f"{file}:{line}"


def _with_code(folder: Path, name: str, auto_map: object, **more: object) -> Path:
    """The folder, of which a config names code that would leave a file behind."""
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: pass\n")
    file = folder / name
    config = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(config | {"auto_map": auto_map, **more}))
    return folder


MAPS = [["mine.Mine", "mine.Mine"], {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}]


@pytest.mark.parametrize("auto_map", MAPS)
@pytest.mark.parametrize("named", ["Mine", "PreTrainedTokenizerFast"])
def test_code_of_a_tokenizer(tmp_path: Path, auto_map: object, named: str) -> None:
    folder = save_tiny(tmp_path / "model")
    _with_code(folder, "tokenizer_config.json", auto_map, tokenizer_class=named)
    files = BaseFiles("model", str(folder))
    with suppress(UnsupportedModelError):
        load_tokenizer(files)
    assert not (folder / "ran").exists()


def test_code_of_a_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    _with_code(folder, "config.json", {"AutoModelForCausalLM": "mine.Mine"})
    with pytest.raises(UnsupportedModelError, match="auto_map"):
        load_model(ModelConfig(str(folder)))
    assert not (folder / "ran").exists()


def test_code_of_an_encoder(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    _with_code(folder, "config.json", {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"})
    SentenceEncoder(folder)
    assert not (folder / "ran").exists()


def test_a_tokenizer_that_its_library_panics_of_is_one_line(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    described["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    file.write_text(json.dumps(described))
    with pytest.raises(UnsupportedModelError, match="its tokenizer cannot be loaded") as raised:
        load_tokenizer(BaseFiles("model", str(folder)))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
