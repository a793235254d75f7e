"""`make demo`, on the tiny random model with tiny adapters, and as a newcomer runs it."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from adaptermix.bench.forced import environment as forced_environment
from scripts.demo import app, bar, weights_table
from tests.support.copies import make_copies
from tests.support.expert_adapters import SOFT, make_expert_folder
from tests.support.isas import here
from tests.support.tiny import make_lora_folder

NAMES = ("math", "code", "science", "reading")


def printed(routing: dict[str, object]) -> str:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(weights_table(routing))
    return capture.get()


def test_weights_that_move_are_shown_token_by_token() -> None:
    text = printed({"adapters": ["a@1", "b@1"], "weights": [[1.0, 0.0], [0.25, 0.75]]})
    assert "1.00" in text
    assert "0.75" in text
    assert len(text.splitlines()) == 3


def test_weights_that_stay_are_shown_once() -> None:
    text = printed({"adapters": ["a@1"], "weights": [[0.5]] * 20})
    assert len(text.splitlines()) == 2
    assert "all" in text


def test_an_answer_without_tokens_has_no_weights() -> None:
    assert len(printed({"adapters": ["a@1"], "weights": []}).splitlines()) == 1


def test_a_bar_is_divided_by_the_weights() -> None:
    spans = bar([0.75, 0.25], width=8).spans
    assert [span.end - span.start for span in spans] == [6, 2]
    assert bar([0.0, 0.0]).plain == ""


@pytest.mark.slow
def test_it_runs_on_the_tiny_model(tmp_path: Path, tiny_encoder: Path) -> None:
    for seed, name in enumerate(NAMES):
        folder = make_lora_folder(tmp_path / name, seed=seed)
        texts = [json.dumps(f"{name} text number {number}") for number in range(3)]
        (folder / "texts.jsonl").write_text("\n".join(texts))
    make_expert_folder(tmp_path / "moa-math", SOFT)
    make_copies(tmp_path / "restaurants")
    options = ["--model", "tiny-random", "--adapters", str(tmp_path)]
    # No proxy leads to this machine: the one that the environment names is not there.
    proxies = dict.fromkeys(("HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {**proxies, "ADAPTERMIX_ENCODER": str(tiny_encoder)}
    completed = CliRunner().invoke(app, options, env=environment)
    assert completed.exit_code == 0, completed.output
    assert "q_proj" in completed.output  # a column of the gates
    assert "the draws disagree about" in completed.output
    assert completed.output.count("weights from the prompt") == 2
    assert "science@1" in completed.output


def test_without_adapters_it_says_so(tmp_path: Path) -> None:
    completed = CliRunner().invoke(app, ["--adapters", str(tmp_path)])
    assert completed.exit_code == 1
    assert "example adapters" in completed.output


@pytest.mark.real_model
def test_it_runs_as_a_newcomer_runs_it() -> None:
    """On the narrowest instruction set; on this machine's own the README's commands are run."""
    completed = CliRunner().invoke(app, [], env=forced_environment(here()[0]))
    assert completed.exit_code == 0, completed.output
    assert all(f"{name}@1" in completed.output for name in NAMES)
