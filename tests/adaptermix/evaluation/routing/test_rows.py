"""Rows, the prompts that are made of two, and where completions are divided."""

from pathlib import Path

import pytest

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.routing.plan import Rows, Words, mixed_cases, plain_cases
from adaptermix.evaluation.scoring.tasks import task_named
from adaptermix.training.data import Row

SQUAD = Row("Context:\nIt was 308.\n\nQuestion: How many?\n\nAnswer:", " 308")
GSM8K = Row("Question: What is 2 * 9?\n\nAnswer:", " 2 * 9 = 18\n#### 18")


def test_a_mixed_prompt_is_as_documented() -> None:
    (case,) = mixed_cases([SQUAD], [GSM8K])
    assert case.prompt == (
        "Context:\nIt was 308.\n\nQuestion: How many?\n\nQuestion: What is 2 * 9?\n\nAnswer:"
    )
    assert case.completion == " 308\n\nAnswer: 2 * 9 = 18\n#### 18"
    first, between = case.cuts
    assert case.completion[:first] == SQUAD.completion
    assert case.completion[first:between] == "\n\nAnswer:"
    assert case.completion[between:] == GSM8K.completion


def test_mixed_prompts_are_the_same_each_time_and_join_equal_places(data: Path) -> None:
    def made() -> list[str]:
        rows = Rows(data, "test")
        first, second = (rows.test(task_named(name), 4, 0) for name in ("reading", "math"))
        cases = mixed_cases(first, second)
        assert [case.completion for case in cases] == [
            f"{one.completion}\n\nAnswer:{two.completion}"
            for one, two in zip(first, second, strict=True)
        ]
        return [case.prompt for case in cases]

    assert made() == made()
    assert len(set(made())) == 4


def test_a_prompt_without_its_last_line_cannot_be_joined() -> None:
    with pytest.raises(BenchmarkError, match="does not end in"):
        mixed_cases([Row("Question: What?", " x")], [GSM8K])


def test_a_completion_is_divided_after_32_tokens(words: Words) -> None:
    long, short = Row("p", "x" * 40), Row("p", "x" * 8)
    cases = plain_cases(task_named("math"), [long, short], words)
    assert [case.cuts for case in cases] == [(32,), (8,)]
    assert [case.options for case in cases] == [(), ()]


def test_a_beginning_is_made_of_the_first_tokens_of_the_whole() -> None:
    # Pairs of characters are a token, and so is a character that is left over.
    def ids(text: str) -> list[int]:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [sum(ord(c) << 8 * i for i, c in enumerate(pair)) for pair in pairs]

    def text(given: object) -> str:
        assert isinstance(given, list)
        return "".join(chr(n & 255) + (chr(n >> 8) if n >> 8 else "") for n in given)

    words = Words(ids, text)
    assert words.prefix("abcdefg", 2) == "abcd"
    assert words.prefix("abcdefg", 9) == "abcdefg"
    # Where the decoded tokens are no beginning of the text, fewer are taken.
    cut = Words(ids, lambda given: text(given) if len(list(given)) < 3 else "?")
    assert cut.prefix("abcdefg", 3) == "abcd"
    with pytest.raises(BenchmarkError, match="whole tokens"):
        Words(ids, lambda given: "?").prefix("abc", 2)


def test_options_are_completions(words: Words) -> None:
    row = Row("Question: Which?\nChoices: A. x\nB. y\n\nAnswer:", " B")
    (case,) = plain_cases(task_named("science"), [row], words)
    assert case.options == (" A", " B")
    with pytest.raises(BenchmarkError, match="no option"):
        plain_cases(task_named("science"), [Row(row.prompt, " D")], words)


def test_fewer_rows_are_the_first_of_more(data: Path) -> None:
    rows = Rows(data, "test")
    task = task_named("science")
    assert rows.test(task, 3, 0) == rows.test(task, 12, 0)[:3]
    assert rows.test(task, 12, 0) != rows.test(task, 12, 1)
    assert set(rows.files) == {"arc_challenge/test.jsonl.gz", "arc_easy/test.jsonl.gz"}


def test_test_and_train_rows_are_kept_apart(data: Path) -> None:
    test, train = Rows(data, "test"), Rows(data, "train")
    task = task_named("math")
    with pytest.raises(BenchmarkError, match="train rows were asked"):
        test.tuning(task, 1)
    with pytest.raises(BenchmarkError, match="test rows were asked"):
        train.test(task, 1, 0)
    assert all("t" in row.prompt.partition(" and")[0][-3:] for row in train.tuning(task, 3))


def test_tuning_rows_come_from_the_end_of_the_order_of_training(data: Path) -> None:
    task = task_named("code")
    order = task.rows(data, None, 0, "train")
    assert Rows(data, "train").tuning(task, 2) == order[-2:]


def test_a_folder_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"gsm8k/test\.jsonl\.gz is not there"):
        Rows(tmp_path, "test").test(task_named("math"), 1, 0)
