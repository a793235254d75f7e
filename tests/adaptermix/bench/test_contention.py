"""Busy loops, and what is told of systems beside them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptermix.bench.contention import GOAL, busy, lines, over_best_peer
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import LLAMA, OURS, PEFT
from adaptermix.bench.peers.settings import ContentionSettings
from adaptermix.cli.main import app
from router_engine.model.tiny import save_tiny


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_loops_run_during_the_block_and_end_with_it() -> None:
    with busy(2) as pids:
        assert len(set(pids)) == 2
        assert all(map(_alive, pids))
    assert not any(map(_alive, pids))


def test_loops_end_with_what_goes_wrong_beside_them() -> None:
    pids: list[int] = []

    def fail() -> None:
        with busy(1) as started:
            pids.extend(started)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(map(_alive, pids))


def test_shares_are_those_of_medians() -> None:
    found = lines(OURS, {0: [10.0, 20.0, 30.0], 8: [5.0, 5.0, 8.0]})
    assert [line["share_of_alone"] for line in found] == [1.0, 0.25]
    assert lines(OURS, {8: [5.0]})[0]["share_of_alone"] is None


def test_the_best_peer_is_the_one_that_loses_least() -> None:
    rates = {
        OURS: {0: [100.0, 100.0], 8: [50.0, 25.0]},
        PEFT: {0: [10.0, 10.0], 8: [5.0, 5.0]},
        LLAMA: {0: [40.0, 40.0], 8: [10.0, 10.0]},
    }
    assert over_best_peer(rates) == {GOAL.scalar: [1.0, 2.0]}
    assert over_best_peer({OURS: rates[OURS], PEFT: {0: [10.0]}}) == {}


def test_what_cannot_be_asked_is_refused() -> None:
    for wrong in ({"peer": ("vllm",)}, {"loops": (0,)}, {"isa": "sse9"}):
        with pytest.raises(BenchmarkError):
            ContentionSettings(**wrong)


@pytest.mark.slow
def test_the_command_measures_ours_alone(tmp_path: Path) -> None:
    model = ["--model", str(save_tiny(tmp_path / "model")), "--kernels", "reference"]
    small = ["--threads", "1", "--loops", "1", "--clients", "2", "--rounds", "1"]
    work = ["--new-tokens", "4", "--peer", "none", "--out", str(tmp_path / "contention")]
    done = CliRunner().invoke(app, ["bench", "contention", *model, *small, *work])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "contention.json").read_text())
    assert [(cell["system"], cell["loops"]) for cell in result["cells"]] == [(OURS, 0), (OURS, 1)]
    assert result["goals"][0]["status"] == "open"
    assert f"| {OURS} | 1 |" in (tmp_path / "contention.md").read_text()
