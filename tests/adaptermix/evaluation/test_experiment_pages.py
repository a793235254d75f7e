"""The pages: what is computed from runs, and what a partial journal says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from sacrebleu import corpus_bleu
from sacrebleu.metrics.bleu import BLEU
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.cli import bench
from adaptermix.evaluation.recipes.harness import TrainingJob
from adaptermix.evaluation.recipes.report import write_pages
from adaptermix.evaluation.recipes.results import difference, nll, read_results, score, verdicts
from adaptermix.evaluation.settings import ExperimentSizes

ROWS = 20
SIZES = ExperimentSizes(tokens=100, nll_rows=ROWS, answer_rows=2, draw_rows=4)


def _run(
    arm: str, nats: float, seed: int = 0, sizes: ExperimentSizes = SIZES, **more: Any
) -> dict[str, Any]:
    """A run of which every row of two tokens has `nats` per token, a little apart."""
    losses = [2 * nats + 0.01 * (row % 3) for row in range(ROWS)]
    job = TrainingJob("adamix", arm, "e2e", seed, sizes, "tiny")
    counts = [[4, 3, 2, 1, 5, 4, 3, 2, 5, 5], [2, 0, 0, 0, 4, 3, 2, 1, 4, 6]]
    return {
        "job": asdict(job),
        "tokens": 100,
        "seconds": 9.0,
        "cpu_seconds": 5.0,
        "trained": 12_000,
        "served": 3_000,
        "ends": {"loss": nats},
        "nll": losses,
        "weights": [2] * ROWS,
        "answers": {"ROUGE-L": [0.5, 1.0], "BLEU": counts},
        "machine": {"processor": "P", "cores": 2, "gpu": None},
        "software": {"commit": "0123456789abcdef"},
        **more,
    }


def _journal(path: Path, *runs: dict[str, Any]) -> Path:
    lines = [{"key": json.dumps(run["job"], sort_keys=True), "answer": run} for run in runs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_verdicts_are_computed_from_paired_rows(tmp_path: Path) -> None:
    drawn: Any = {"draws": [1.2] * 9 + [0.9], "ensemble": [1.9] * 4}
    journal = _journal(
        tmp_path / "j.jsonl",
        _run("lora", 1.5),
        _run("lora", 1.7, seed=1),
        _run("adamix-lora", 1.0, **drawn),
        _run("adamix-lora-c0", 0.8),
        _run("bottleneck", 1.0),
        _run("adamix-bottleneck", 1.0),
    )
    results = read_results(journal, "adamix")
    lora = results.of("e2e", "lora")
    assert sorted(lora) == [0, 1]
    assert nll(lora).mean == pytest.approx(1.6, abs=0.01)
    gap = difference(results.of("e2e", "adamix-lora"), lora)  # of the seed that both have
    assert gap is not None
    assert gap.mean == pytest.approx(-0.5)
    said = {one.claim.partition(" (")[0]: one for one in verdicts(results)}
    assert said["merged LoRA is at least a single one"].said == "**holds**"
    assert said["consistency helps LoRA"].said == "**does not hold**"
    assert said["merged bottleneck is at least a single one"].said == "not told apart"
    assert "consistency helps bottlenecks" not in said
    near = said["merged is near the top of the draws"]
    assert (near.said, near.numbers) == ("**holds**", "better than 9 of 10 draws")
    assert said["an ensemble of draws beats merged"].said == "**holds**"


def test_bleu_is_that_of_all_texts_together(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat", "a dog is there now"]
    references = [["the cat sat on a mat", "there is a dog"], ["a cat is on the mat", "x y z"]]
    counts = []
    for place, text in enumerate(texts):
        one = BLEU(effective_order=True).sentence_score(text, [r[place] for r in references])
        counts.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    run = _run("lora", 1.0, answers={"BLEU": counts})
    expected = corpus_bleu(texts, references).score
    assert 100 * score({0: run}, "BLEU").mean == pytest.approx(expected)
    assert expected > 10


def test_a_partial_journal_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    failed = {"job": _run("adamix-lora-c0", 1.0)["job"], "failed": "exit code 1: no memory"}
    old = _run("lora", 9.0, sizes=ExperimentSizes(tokens=50))
    drawn: Any = {"draws": [1.2, 1.1, 1.3], "ensemble": [1.9] * 4}
    journal = _journal(
        tmp_path / "j.jsonl", old, _run("lora", 1.5), failed, _run("adamix-lora", 1.0, **drawn)
    )
    with journal.open("a") as file:
        file.write('{"key": "cut o')
    written = write_pages(journal, tmp_path / "pages")
    assert [path.name for path in written] == [
        *("adamix.md", "adamix-nll.png", "adamix-draws.png", "moa.md")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:3])
    assert "No run yet." in written[-1].read_text()
    page = written[0].read_text()
    assert "| `lora` | 1 | 12,000 | 3,000 | 1.5" in page
    assert "| **-0.500 [-0.500, -0.500]** |" in page
    assert "No run yet." in page  # of the other task
    assert "- failed: `adamix-lora-c0` on e2e, seed 0: exit code 1: no memory" in page
    assert "- not run on e2e: `adamix-lora-c0` (seed 0), `bottleneck` (seed 0)" in page
    assert "- left out: 1 runs of other sizes in the journal" in page
    assert "--tokens 100 --nll-rows 20 --answer-rows 2 --draw-rows 4 --seeds 0" in page
    assert "20 |" in page  # tokens a second of the processor


def test_without_a_journal_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="run an experiment first"):
        write_pages(tmp_path / "j.jsonl", tmp_path)


def test_the_command_writes_the_pages_or_says_what_to_do(tmp_path: Path) -> None:
    program = typer.Typer()
    bench.register(program)
    journal, pages = tmp_path / "j.jsonl", tmp_path / "pages"
    command = ["bench", "experiments", "report", "--journal", str(journal), "--pages", str(pages)]
    refused = CliRunner().invoke(program, command)
    assert refused.exit_code == 1
    assert "run an experiment first" in refused.output
    _journal(journal, _run("lora", 1.5))
    written = CliRunner().invoke(program, command)
    assert written.exit_code == 0, written.output
    assert (pages / "adamix.md").exists()
