"""The arithmetic of the report, by hand-made samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptermix.bench.load import Load, Round, Sample
from adaptermix.bench.plots import plot, plot_curves, plot_kernels
from adaptermix.bench.report import (
    METRICS,
    cell_of,
    goodput,
    markdown,
    percentile,
    provenance,
    result_table,
    summarize,
    write_json,
)
from adaptermix.bench.rounds import Cell


def sample(*arrivals: float, sent: float = 0.0, prompt_tokens: int = 50) -> Sample:
    return Sample(sent, arrivals, arrivals[-1], prompt_tokens, len(arrivals))


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

    def test_lengths_are_reported(self) -> None:
        samples = (sample(1, 2, prompt_tokens=48), sample(1, 2, 3, prompt_tokens=80))
        cell = summarize([Round(samples, 1.0)])
        assert (cell["prompt_tokens"], cell["output_tokens"]) == ([48, 80], [2, 3])

    def test_answers_in_one_piece_have_no_gaps(self) -> None:
        cell = summarize([Round((Sample(0, (1.0,), 1.0, 5, 9),), 1.0)])
        assert cell["inter_token_seconds"]["p99"] == 0


class TestGoodput:
    # Two requests: first tokens after 1 s and 3 s, later ones 1 s and 0.5 s apart.
    ROUND = Round((sample(1, 2, 3), sample(3, 3.5, 4)), seconds=4.0)

    @pytest.mark.parametrize(
        ("ttft", "itl", "share"),
        [
            (None, None, 1),
            (1000, None, 0.5),
            (999, None, 0),
            (None, 500, 0.5),
            (2000, 500, 0),
            (3000, 1000, 1),
        ],
    )
    def test_by_hand(self, ttft: float | None, itl: float | None, share: float) -> None:
        good = goodput([self.ROUND], ttft, itl)
        assert good == {"requests_per_second": 2 * share / 4, "share": share}

    def test_the_mean_of_a_request_counts_not_its_longest_gap(self) -> None:
        uneven = Round((sample(1, 1.1, 2),), 1.0)
        assert goodput([uneven], None, 500)["share"] == 1

    def test_is_the_median_of_the_rounds(self) -> None:
        late = Round((sample(9, 10), sample(9, 10)), 10.0)
        assert goodput([self.ROUND, late, late], 3000, None)["share"] == 0


def make_result(slo_ttft: float | None = None) -> dict[str, Any]:
    rounds = [Round((sample(1, 2, 3), sample(2, 3, 4)), 4.0), Round((sample(1, 2, 4),), 4.0)]
    cells = [
        cell_of(case, Cell("adaptermix", case, load, 2), rounds, slo_ttft)
        for case in ("base", "one")
        for load in (Load(clients=1), Load(rate=2.5))
    ]
    return {
        "kind": "serve",
        "model": "tiny",
        "machine": {"processor": "Example", "cores": 2, "gpu": None},
        "software": {"commit": "0123456789abcdef", "date": "2026-01-01T00:00:00+00:00"},
        "serving": {"dtype": "bfloat16", "kernels": "cpu", "threads": 2},
        "cells": cells,
    }


def test_json_keeps_every_number(tmp_path: Path) -> None:
    result = make_result()
    write_json(tmp_path / "new" / "serve.json", result)
    assert json.loads((tmp_path / "new" / "serve.json").read_text()) == result


def test_table_has_a_row_a_cell() -> None:
    table = result_table(make_result())
    assert table.row_count == 4
    assert [str(column.header) for column in table.columns][:3] == ["case", "load", "tokens/s"]


def test_a_page_names_machine_commit_date_format_threads_and_kernels() -> None:
    page = markdown(make_result())
    for part in ("Example, 2 cores", "0123456789", "2026-01-01", "bfloat16", "2 threads", "cpu"):
        assert part in page
    assert page.count("| base |") == 2
    assert "2.5/s" in page
    assert "goodput" not in page


def test_what_is_not_known_is_said_so() -> None:
    unknown = make_result() | {"serving": {"dtype": None, "kernels": None, "threads": None}}
    assert "kernels unknown" in provenance(unknown)


def test_a_page_with_objectives_has_the_goodput() -> None:
    page = markdown(make_result(slo_ttft=1500))
    assert "goodput requests/s" in page
    rows = [line for line in page.splitlines() if line.startswith("| base")]
    assert all(line.count("|") == page.splitlines()[4].count("|") for line in rows)


def test_plots_are_pictures(tmp_path: Path) -> None:
    points = [
        {
            "curve": "requests",
            "axis": "requests",
            "x": x,
            "case": "base",
            "step_ms": 2.0 * x,
            "step_ms_range": [x, 3.0 * x],
            "floor_ms": 1.0,
        }
        for x in (1, 8)
    ]
    products = [{"product": "o", "rows": 1, "us": {"cpu": 1.0, "reference": 2.0}}]
    pictures = (plot, plot_curves, plot_kernels)
    result = make_result() | {"points": points, "products": products}
    for draw in pictures:
        draw(tmp_path / "new" / "one.png", result)
        assert (tmp_path / "new" / "one.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "new" / "one.png").unlink()


def test_metrics_are_those_that_users_feel() -> None:
    assert set(METRICS) == {"ttft", "inter_token", "e2e"}
