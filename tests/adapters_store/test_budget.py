"""The work on one upload is counted, and so is what is said of it, whatever it holds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select

import adapters_store
from adapters_store import near_names, texts
from adapters_store.errors import AdapterNotFoundError
from adapters_store.formats.patterns import Matcher, PatternError, Targets
from adapters_store.limits import StoreLimits
from adapters_store.metadata import Database
from adapters_store.metadata.schema import ADAPTERS, VERSIONS
from adapters_store.problems import MAX_PROBLEMS, bounded_problems, bounded_text
from adapters_store.store import AdapterStore
from adapters_store.types import CheckReport, Problem
from tests.adapters_store import native_folders
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


def native(**changes: Any) -> dict[str, bytes]:
    return native_folders.folder(text=native_folders.document() | changes)


def _expert(**changes: Any) -> dict[str, Any]:
    expert: dict[str, Any] = native_folders.document()["experts"][0]
    return expert | changes


MANY |= {
    "keys of a manifest": lambda: native(**{f"k{i}": 1 for i in range(65_000)}),
    "keys of its experts": lambda: native(
        experts=[_expert(**{f"rank{i}" * 20: 1 for i in range(50)})] * 90
    ),
    "long keys of a manifest": lambda: native(**{f"{i}{'k' * 20_000}": 1 for i in range(40)}),
    "wrong values": lambda: native(experts=[_expert(rank="x" * 200)] * 3000),
    "experts that are none": lambda: native(experts=[[]] * 4096, routers=[1] * 4096),
}
NEAR: dict[str, Callable[[], dict[str, bytes]]] = {
    "modules": lambda: adapter(modules(2000)),
    "keys": lambda: native(experts=[_expert(**{f"rank{i}": 1 for i in range(50)})] * 90),
    "long keys": lambda: native(rank=1, experts=[_expert(**{"k" * 90_000: 1, "rnk": 1})]),
    "modules of a manifest": lambda: native(
        experts=[_expert(module=f"model.layers.0.self_attn.q_proj{'x' * 400}")] * 40
    ),
}


@pytest.mark.parametrize("kind", MANY)
def test_a_report_stays_short(checker: AdapterStore, kind: str) -> None:
    report = checker.check("x", MANY[kind](), base=BASE)
    assert not report.loads
    assert len(report.problems) <= MAX_PROBLEMS
    assert told(report) <= MOST_TOLD


@pytest.mark.parametrize("made", NEAR.values(), ids=NEAR)
def test_near_names_are_sought_for_the_first_problems_only(
    checker: AdapterStore,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[], dict[str, bytes]],
) -> None:
    sought: list[tuple[str, list[str]]] = []
    seek = difflib.get_close_matches

    def counted(word: str, known: list[str], *rest: Any) -> list[str]:
        sought.append((word, known))
        return seek(word, known, *rest)

    monkeypatch.setattr(near_names, "get_close_matches", counted)
    report = checker.check("x", made(), base=native_folders.BASE)
    assert "near names" in str(report.problems)
    assert 0 < len(sought) <= 8
    assert all(len(word) <= 80 and len(known) <= 256 for word, known in sought)


def test_names_are_compared_in_one_place() -> None:
    root = Path(adapters_store.__file__).parent.parent
    found = {
        str(path.relative_to(root))
        for package in ("adapters_store", "router_engine", "server", "adaptermix", "deploy")
        for path in (root / package).rglob("*.py")
        if "difflib" in path.read_text(encoding="utf-8")
    }
    # Of a router's parameters there are as many as a program names.
    assert found == {"adapters_store/near_names.py"}


def test_near_names_among_thousands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str | None
) -> None:
    compared: list[int] = []
    seek = difflib.get_close_matches

    def counted(word: str, known: list[str], *rest: Any) -> list[str]:
        compared.append(len(known))
        return seek(word, known, *rest)

    monkeypatch.setattr(near_names, "get_close_matches", counted)
    store = AdapterStore.open(tmp_path, database_url=database_url)
    store.publish("zebra", adapter(), base=BASE)
    database = Database(database_url or tmp_path / "adapters.db")
    with database.write() as connection:
        row = connection.execute(select(VERSIONS)).one()._asdict()
        names = [{"name": f"a{index}"} for index in range(1000)]
        connection.execute(insert(ADAPTERS).values(last_version=1), names)
        connection.execute(insert(VERSIONS), [row | name for name in names])
    database.close()
    with pytest.raises(AdapterNotFoundError, match="near names: zebra"):
        store.resolve("zebar")
    store.close()
    assert compared == [256]


def test_patterns_are_tried_so_often_and_no_more() -> None:
    matcher = Matcher(most_matches=100)
    for index in range(33):
        assert matcher.first_key(["a", "b", "c"], f"module{index}") is None
    with pytest.raises(PatternError, match="too many"):
        matcher.first_key(["a", "b", "c"], "module")
    targets = Targets("nothing", matcher=matcher)
    with pytest.raises(PatternError, match="too many"):
        targets.include("module")


@pytest.mark.parametrize(
    ("pattern", "is_refused"),
    [
        ("(?i)[a-z0-9_.\u00e0-\u017f]+q_proj", False),
        (r"(?i)[\x00-\x7f\u0100-\uffff]*q_proj", False),
        (r"[\x41-\x5a\101-\132]*\.[\0-\U0000ffff]*q_proj", False),
        ("(?i)[\0-\uffff][\0-\uffff]" * 3, True),
        (r"(?i)[\0-\U0010ffff]", True),
        (r"(?i)[\0-\N{LATIN SMALL LETTER Z}]", True),
        (r"[\8-\9]", True),
    ],
)
def test_the_ranges_of_a_pattern_have_a_bound(pattern: str, *, is_refused: bool) -> None:
    with pytest.raises(PatternError) if is_refused else nullcontext():
        Matcher().match(pattern, "model.layers.0.self_attn.q_proj")


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
    assert bounded_text("a" * 400 + "b" * 400).startswith("aaa")
    assert bounded_text("a" * 400 + "b" * 400).endswith("bbb")
    assert len(bounded_text("x" * 10_000)) <= 640
    problems = [Problem("w" * 10_000, f"{i}") for i in range(100)]
    assert len(bounded_problems(problems)) == MAX_PROBLEMS
    assert bounded_problems(problems)[-1].message == "and 69 more problems"


@pytest.mark.parametrize(("tensors_sent", "is_refused"), [(16_384, False), (16_385, True)])
def test_the_number_of_tensors(
    checker: AdapterStore, tensors_sent: int, *, is_refused: bool
) -> None:
    made = {f"x{i}": np.zeros(0, np.float32) for i in range(tensors_sent - len(tensors()))}
    report = checker.check("x", adapter({**tensors(), **made}), base=BASE)
    assert ("at most 16384" in str(report.problems)) == is_refused
