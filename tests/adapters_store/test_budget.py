"""The work on one upload is counted, and so is what is said of it, whatever it holds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adapters_store import texts
from adapters_store.formats.patterns import Matcher, PatternError, Targets
from adapters_store.limits import StoreLimits
from adapters_store.problems import MAX_PROBLEMS, cut, shortened
from adapters_store.store import AdapterStore
from adapters_store.types import CheckReport, Problem
from adapters_store.validation import fit
from tests.adapters_store.folders import BASE, PREFIX, adapter, config, raw_safetensors, tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
MOST_TOLD = 32 << 10  # characters of a whole report


def modules(count: int, name: str = "model.layers.{}.self_attn.q_proj") -> dict[str, Any]:
    """Pairs for modules that the base has not."""
    made = {}
    for index in range(count):
        module = f"{PREFIX}{name.format(1000 + index)}"
        made[f"{module}.lora_A.weight"] = np.zeros((4, 16), np.float32)
        made[f"{module}.lora_B.weight"] = np.zeros((16, 4), np.float32)
    return made


def told(report: CheckReport) -> int:
    return sum(map(len, [*map(str, report.problems), *report.notes, *report.unknown_keys]))


def files(**changes: Any) -> dict[str, bytes]:
    return {**adapter(), CONFIG: json.dumps(config(**changes)).encode()}


MANY: dict[str, Callable[[], dict[str, bytes]]] = {
    "modules that are not there": lambda: adapter(modules(4000)),
    "modules of long names": lambda: adapter(modules(2000, "m" * 400 + ".{}")),
    "modules without a partner": lambda: adapter(
        {key: value for key, value in modules(4000).items() if "lora_A" in key}
    ),
    "strays": lambda: adapter({f"x{i}": np.zeros(1, np.float32) for i in range(9000)}),
    "adapters in one file": lambda: adapter(
        {f"{PREFIX}a.lora_A.{i}.weight": np.zeros((4, 16), np.float32) for i in range(3000)}
    ),
    "tensors that lie": lambda: {
        **adapter(),
        TENSORS: raw_safetensors({f"{i}" * 60: {"dtype": "x"} for i in range(9000)}),
    },
    "unknown keys": lambda: files(**{f"key{i}" * 5: i for i in range(20_000)}),
    "one long key": lambda: files(**{"k" * 900_000: 1}),
    "long values": lambda: files(zebra="x" * 900_000, base_model_name_or_path="y" * 5000),
    "rank patterns": lambda: files(rank_pattern={f"x{i}": 4 for i in range(20_000)}),
    "wrong rank patterns": lambda: files(rank_pattern={f"x{i}": -4 for i in range(4000)}),
    "target modules": lambda: files(target_modules=[f"x{i}" for i in range(20_000)]),
    "wrong targets": lambda: files(target_modules=list(range(20_000))),
    "files to leave out": lambda: {**adapter(), **{f"{i}.bin": b"" for i in range(250)}},
    "files by odd names": lambda: {**adapter(), **{f"../{'x' * 200}{i}": b"" for i in range(250)}},
    "texts": lambda: {**adapter(), "texts.jsonl": b"x\n" * 1_000_000},
    "texts that are empty": lambda: {**adapter(), "texts.jsonl": b'""\n' * 4000},
}


@pytest.mark.parametrize("kind", MANY)
def test_a_report_stays_short(checker: AdapterStore, kind: str) -> None:
    report = checker.check("x", MANY[kind](), base=BASE)
    assert not report.loads
    assert len(report.problems) <= MAX_PROBLEMS
    assert told(report) <= MOST_TOLD


def test_near_names_are_sought_for_the_first_problems_only(
    checker: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[str] = []
    seek = difflib.get_close_matches

    def counted(word: str, *rest: Any, **more: Any) -> list[str]:
        sought.append(word)
        return seek(word, *rest, **more)

    monkeypatch.setattr(fit, "get_close_matches", counted)
    report = checker.check("x", adapter(modules(2000)), base=BASE)
    assert "near names" in str(report.problems)
    assert len(sought) <= 8


def test_patterns_are_tried_so_often_and_no_more() -> None:
    matcher = Matcher(most_matches=100)
    for index in range(33):
        assert matcher.first_key(["a", "b", "c"], f"module{index}") is None
    with pytest.raises(PatternError, match="too many"):
        matcher.first_key(["a", "b", "c"], "module")
    targets = Targets("nothing", matcher=matcher)
    with pytest.raises(PatternError, match="too many"):
        targets.include("module")


def test_a_large_model_with_a_pattern_for_each_module_fits_the_budget() -> None:
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(126) for p in "qkvogud"]
    matcher = Matcher(budget_seconds=1e9)
    assert all(matcher.first_key(names, name) == name for name in names)
    assert all(Targets(names, matcher=matcher).include(name) for name in names)


def test_names_in_lists_are_looked_up_and_not_matched() -> None:
    targets = Targets(
        [f"x{i}" for i in range(4000)],
        exclude_modules=[f"y{i}" for i in range(4000)],
        matcher=Matcher(most_matches=0),
    )
    assert targets.include("a.b.x7")
    assert not targets.include("a.b.y7")


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (b"not json\n" * 100_000, 8),
        (b'"a"\n' * 100_000, 10),
        (b"\n" * 1_000_000, 0),
        (b"[" + b"1," * 1_000_000, 0),
    ],
)
def test_lines_are_read_until_the_limit(
    monkeypatch: pytest.MonkeyPatch, data: bytes, most: int
) -> None:
    read: list[str] = []
    parse = json.loads

    def counted(text: str, **options: Any) -> Any:
        read.append(text)
        return parse(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    _, problems = texts.parse_texts(data, StoreLimits(max_texts=10))
    assert problems
    assert len(read) <= most


def test_what_is_cut_keeps_both_ends() -> None:
    assert cut("a" * 400 + "b" * 400).startswith("aaa")
    assert cut("a" * 400 + "b" * 400).endswith("bbb")
    assert len(cut("x" * 10_000)) <= 640
    problems = [Problem("w" * 10_000, f"{i}") for i in range(100)]
    assert len(shortened(problems)) == MAX_PROBLEMS
    assert shortened(problems)[-1].message == "and 69 more problems"


@pytest.mark.parametrize(("tensors_sent", "is_refused"), [(16_384, False), (16_385, True)])
def test_the_number_of_tensors(
    checker: AdapterStore, tensors_sent: int, *, is_refused: bool
) -> None:
    made = {f"x{i}": np.zeros(0, np.float32) for i in range(tensors_sent - len(tensors()))}
    report = checker.check("x", adapter({**tensors(), **made}), base=BASE)
    assert ("at most 16384" in str(report.problems)) == is_refused
