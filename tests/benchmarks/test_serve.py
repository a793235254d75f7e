"""The whole benchmark, small, on a real server with the tiny random model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.cases import CASES
from benchmarks.load import BenchmarkError
from benchmarks.process import server


@pytest.mark.slow
def test_one_round_of_every_case(tmp_path: Path) -> None:
    names = [case.name for case in CASES]
    small = ["--concurrency", "1", "--concurrency", "4", "--rounds", "1", "--max-new-tokens", "8"]
    small += ["--kernels", "reference"]
    out = ["--out", str(tmp_path / "serve")]
    completed = CliRunner().invoke(app, ["--model", "tiny-random", *small, *out])
    assert completed.exit_code == 0, completed.output
    result = json.loads((tmp_path / "serve.json").read_text())
    assert [cell["case"] for cell in result["cells"]] == [name for name in names for _ in range(2)]
    for cell in result["cells"]:
        assert cell["output_tokens_per_second"] > 0
        assert cell["ttft_seconds"]["p50"] <= cell["e2e_seconds"]["p99"]
    assert result["software"]["commit"]
    assert (tmp_path / "serve.png").stat().st_size > 10_000


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(BenchmarkError, match="nothing-here"), server(["--nothing-here"], log):
        pytest.fail("a server with an unknown option became ready")


def test_an_unknown_case_ends_with_the_ones_there_are() -> None:
    completed = CliRunner().invoke(app, ["--model", "tiny-random", "--case", "bass"])
    assert completed.exit_code == 1
    assert "token-routed" in completed.output
