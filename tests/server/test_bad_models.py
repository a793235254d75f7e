"""`serve` on a model that cannot be served: one error line that says what to do, and status 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.model.tiny import save_tiny
from tests.server.test_cli_edges import adaptermix
from tests.support.bad_checkpoints import BAD, ODD, Bad

# All of them are refused in tests/router_engine/test_bad_checkpoints.py.
NAMES = ("empty folder", "quantised by gptq")
SEEN = [bad for bad in BAD if bad.name in NAMES]
DEEP = [odd for odd in ODD if odd.name in ("layers that are not there", "epsilon as text")]


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


@pytest.mark.parametrize("model", ["/no/such", "model.gguf", "tests/nothing"])
def test_a_path_that_is_not_there_is_no_id_on_the_hub(tmp_path: Path, model: str) -> None:
    (line,) = _serve(model, tmp_path)
    assert f"model '{model}' is no directory or file" in line
