"""The arithmetic of the report, by hand-made samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.load import Round, Sample
from benchmarks.report import METRICS, percentile, plot, result_table, summarize, write_json


def sample(*tokens_at: float, sent: float = 0.0, prompt_tokens: int = 50) -> Sample:
    return Sample(sent, tokens_at, tokens_at[-1], prompt_tokens)


class TestPercentile:
    @pytest.mark.parametrize(
        ("percent", "expected"), [(0, 1), (25, 1.75), (50, 2.5), (90, 3.7), (100, 4)]
    )
    def test_is_linear_between_ranks(self, percent: float, expected: float) -> None:
        assert percentile([4, 1, 3, 2], percent) == pytest.approx(expected)

    def test_of_one_value_is_that_value(self) -> None:
        assert percentile([7], 99) == 7

    def test_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 50)

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
    def test_lies_within_the_values(self, values: list[float], percent: float) -> None:
        slack = 1e-6
        assert min(values) - slack <= percentile(values, percent) <= max(values) + slack


class TestSummary:
    def test_latencies_of_one_round(self) -> None:
        cell = summarize([Round((sample(1, 2, 4), sample(3, 4, 5)), seconds=2.0)])
        assert cell["ttft_seconds"]["p50"] == 2
        assert cell["inter_token_seconds"] == {
            "p50": 1,
            "p90": pytest.approx(1.7),
            "p99": pytest.approx(1.97),
        }
        assert cell["e2e_seconds"]["p50"] == 4.5
        assert cell["output_tokens_per_second"] == 3

    def test_the_median_of_the_rounds_counts(self) -> None:
        rounds = [Round((sample(first, 2 * first),), seconds=first) for first in (1.0, 10.0, 2.0)]
        cell = summarize(rounds)
        assert cell["rounds"] == 3
        assert cell["ttft_seconds"]["p99"] == 2
        assert cell["output_tokens_per_second"] == 1
        assert cell["output_tokens_per_second_range"] == [0.2, 2]

    def test_prompt_lengths_are_reported(self) -> None:
        samples = (sample(1, 2, prompt_tokens=48), sample(1, 2, prompt_tokens=80))
        assert summarize([Round(samples, 1.0)])["prompt_tokens"] == [48, 80]


def make_result() -> dict[str, Any]:
    rounds = [Round((sample(1, 2, 3), sample(2, 3, 4)), 4.0), Round((sample(1, 2, 4),), 4.0)]
    cells = [
        {"case": title, "title": title, "concurrency": level, **summarize(rounds)}
        for title in ("base model", "one adapter")
        for level in (1, 8)
    ]
    return {
        "model": "tiny",
        "machine": {"processor": "Example", "cores": 2},
        "software": {"commit": "0123456789abcdef", "date": "2026-01-01T00:00:00+00:00"},
        "cells": cells,
    }


def test_json_keeps_every_number(tmp_path: Path) -> None:
    result = make_result()
    write_json(tmp_path / "new" / "serve.json", result)
    assert json.loads((tmp_path / "new" / "serve.json").read_text()) == result


def test_table_has_a_row_a_cell() -> None:
    console = Console(record=True, width=200, quiet=True)
    console.print(result_table(make_result()))
    table = result_table(make_result())
    assert table.row_count == 4
    assert [str(column.header) for column in table.columns][:3] == ["case", "clients", "tokens/s"]


def test_plot_is_a_picture(tmp_path: Path) -> None:
    plot(tmp_path / "serve.png", make_result())
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_those_that_users_feel() -> None:
    assert set(METRICS) == {"ttft", "inter_token", "e2e"}
