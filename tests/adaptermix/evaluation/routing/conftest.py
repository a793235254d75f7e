"""A few rows of every set, as a data folder has them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from adaptermix.evaluation.routing.plan import Words

CHOICE = "Question: Which {}?\nChoices: A. a\nB. b\nC. c\n\nAnswer:"
SETS = {
    "gsm8k": ("Question: {} and 1?\n\nAnswer:", " It is {}.\n#### 7"),
    "arc_challenge": (CHOICE, " A"),
    "arc_easy": (CHOICE, " C"),
    "codealpaca": ("Write {}\n\nAnswer:", " x = {}"),
    "squad": ("Context:\nHere is {}.\n\nQuestion: What?\n\nAnswer:", " it is {}"),
}
ROWS = 6


def write_rows(path: Path, prompt: str, completion: str, mark: str) -> None:
    """ROWS rows whose texts hold `mark` and their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": prompt.format(f"{mark}{n}"), "completion": completion.format(f"{mark}{n}")}
        for n in range(ROWS)
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train rows are marked t, test rows e."""
    root = tmp_path_factory.mktemp("data")
    for name, (prompt, completion) in SETS.items():
        write_rows(root / name / "train.jsonl.gz", prompt, completion, "t")
        write_rows(root / name / "test.jsonl.gz", prompt, completion, "e")
    return root


@pytest.fixture
def words() -> Words:
    """A token a character."""
    return Words(lambda text: [ord(c) for c in text], lambda ids: "".join(map(chr, ids)))
