"""`serve` on a model that cannot be served: one error line that says what to do, and status 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router_engine.assets import AssetError
from router_engine.model.tiny import save_tiny, tiny_model
from server.models import base_files
from server.settings import load_settings
from tests.adaptermix.cli.test_edges import adaptermix
from tests.support.bad_checkpoints import BAD, ODD, Bad
from tests.support.gguf import save_gguf

# tests/router_engine/model/test_bad_checkpoints.py refuses all of them. Here: each way to tell.
SEEN = [bad for bad in BAD if bad.name == "quantised by mxfp4"]
DEEP = [odd for odd in ODD if odd.name == "layers that are not there"]


def _serve(model: str, root: Path) -> list[str]:
    """The error lines on stderr; nothing else there is one."""
    options = ("--encoder", "none", "--kernels", "reference", "--port", "0", "--cache", str(root))
    done = adaptermix("serve", "--model", model, *options)
    told = done.stderr.decode()
    assert done.returncode == 1, told
    assert "Traceback" not in told
    assert done.stdout == b""
    return [line for line in told.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    "bad",
    [*SEEN, *(pytest.param(odd, marks=pytest.mark.slow) for odd in DEEP)],
    ids=lambda bad: bad.name,
)
def test_what_files_show_or_the_engine_finds_is_one_line(tmp_path: Path, bad: Bad) -> None:
    folder = save_tiny(tmp_path / "model")
    bad.spoil(folder)
    (line,) = _serve(str(folder), tmp_path)
    assert all(word in line for word in (str(folder), *bad.words))


@pytest.mark.slow
def test_what_a_gguf_file_has_and_nothing_reads_is_one_line(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)}
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", tensors=bias)
    (line,) = _serve(str(file), tmp_path)
    assert f"{file}: tensors that LlamaForCausalLM has no place for: blk.0.attn_q.bias" in line


@pytest.mark.parametrize("model", ["/no/such", "model.gguf", "tests/nothing"])
def test_a_path_that_is_not_there_is_no_id_on_the_hub(tmp_path: Path, model: str) -> None:
    with pytest.raises(AssetError, match=f"model '{model}' is no directory or file"):
        base_files(load_settings(model=model, cache=tmp_path))
