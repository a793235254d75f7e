"""Reading, splitting, tokenizing and batching of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptermix.training.data import Example, Row, plan_batches, read_rows, split_rows, tokenize
from adaptermix.training.errors import DataError, TrainingError
from adaptermix.training.settings import DataSettings, LoopSettings, LoraSettings
from router_engine.model.tiny import tiny_tokenizer


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_rows_are_read_plain_and_gzipped(tmp_path: Path, rows_file: Path) -> None:
    line = json.dumps({"prompt": "a", "completion": " b", "references": ["c"]})
    assert read_rows(_file(tmp_path, line, "", line)) == [Row("a", " b")] * 2
    assert len(read_rows(rows_file)) == 64


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "rows.jsonl:2: no JSON"),
        ("[1]", "rows.jsonl:2: 'prompt'"),
        ('{"prompt": "a"}', "rows.jsonl:2: 'completion'"),
        ('{"prompt": "a", "completion": 3}', "rows.jsonl:2: 'completion'"),
        ('{"prompt": "", "completion": "b"}', "rows.jsonl:2: 'prompt'"),
    ],
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path: Path, line: str, named: str) -> None:
    path = _file(tmp_path, '{"prompt": "a", "completion": "b"}', line)
    with pytest.raises(DataError, match=named):
        read_rows(path)


def test_an_absent_or_broken_file_is_refused_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl.gz"
    broken.write_bytes(b"no gzip")
    for path in (tmp_path / "absent.jsonl", broken):
        with pytest.raises(DataError, match=path.name):
            read_rows(path)


def test_dev_prompts_are_never_trained_on() -> None:
    rows = [Row(f"p{number % 10}", f" c{number}") for number in range(40)]
    split = split_rows(rows, dev_rows=3, max_rows=12, seed=0)
    assert len(split.dev) == 3
    assert len(split.train) == 12
    assert not {row.prompt for row in split.dev} & {row.prompt for row in split.train}
    assert split.unused == 40 - 15


def test_a_split_depends_on_its_seed_only() -> None:
    rows = [Row(f"p{number}", " c") for number in range(40)]
    first, again, other = (
        split_rows(rows, dev_rows=4, max_rows=None, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.digest == again.digest != other.digest


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="1 rows leave none"):
        split_rows([Row("a", "b")], dev_rows=1, max_rows=None, seed=0)


def test_tokens_are_prompt_completion_and_end() -> None:
    tokenizer = tiny_tokenizer()
    [example], left_out = tokenize([Row("ab", " cd")], tokenizer, 6)
    assert left_out == 0
    assert tokenizer.decode(example.tokens[: example.prompt_length]) == "ab"
    assert tokenizer.decode(example.tokens[example.prompt_length : -1]) == " cd"
    assert example.tokens[-1] == tokenizer.eos_token_id
    assert example.completion_length == 4
    assert example.without_end() == Example(example.tokens[:-1], 2)


def test_rows_that_are_too_long_are_left_out_whole() -> None:
    rows = [Row("ab", " cd"), Row("ab", " cde")]
    examples, left_out = tokenize(rows, tiny_tokenizer(), 6)
    assert (len(examples), left_out) == (1, 1)


def test_batches_hold_each_row_once_an_epoch_within_the_budget() -> None:
    lengths = [3 + (7 * index) % 41 for index in range(200)] + [900]
    plan = plan_batches(lengths, batch_tokens=256, epochs=2, seed=3)
    seen = sorted(index for batch in plan for index in batch)
    assert seen == sorted([*range(201), *range(201)])
    for batch in plan:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= 256 or batch == [200]
    assert plan == plan_batches(lengths, batch_tokens=256, epochs=2, seed=3)
    assert plan != plan_batches(lengths, batch_tokens=256, epochs=2, seed=4)


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = [10, 100] * 50
    for batch in plan_batches(lengths, batch_tokens=400, epochs=1, seed=0):
        assert len({lengths[index] for index in batch}) == 1


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (LoraSettings, {"rank": 0}),
        (LoraSettings, {"alpha": 0.0}),
        (LoraSettings, {"targets": ()}),
        (LoraSettings, {"dropout": 1.0}),
        (DataSettings, {"max_rows": 0}),
        (DataSettings, {"max_length": 1}),
        (DataSettings, {"dev_rows": -1}),
        (DataSettings, {"batch_tokens": 0}),
        (DataSettings, {"epochs": 0}),
        (DataSettings, {"sample_texts": -1}),
        (LoopSettings, {"learning_rate": 0.0}),
        (LoopSettings, {"warmup_ratio": 1.5}),
        (LoopSettings, {"max_grad_norm": 0.0}),
        (LoopSettings, {"weight_decay": -0.1}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    part: Callable[..., object], values: dict[str, object]
) -> None:
    with pytest.raises(TrainingError, match=f"{next(iter(values))} is "):
        part(**values)
