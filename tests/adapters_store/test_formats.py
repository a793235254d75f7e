"""The registry of formats: ours, those of entry points, none twice."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from adapters_store.errors import StoreError
from adapters_store.formats import AdapterFolder, AdapterFormat, FormatRegistry, ParsedAdapter
from adapters_store.formats.native import NativeFormat
from adapters_store.formats.peft import PeftLoraFormat
from adapters_store.formats.registry import BUILT_IN, GROUP
from adapters_store.limits import StoreLimits
from tests.adapters_store.folders import BASE


class OtherFormat:
    """A format of a third party."""

    name = "other"
    files = frozenset({"other.json"})

    def recognises(self, given: AdapterFolder) -> bool:
        return "other.json" in given.files

    def read(self, given: AdapterFolder) -> ParsedAdapter:
        return ParsedAdapter(tensors=given.files["other.json"])


HERE = f"{__name__}:OtherFormat"


def given(*names: str) -> AdapterFolder:
    return AdapterFolder({name: Path(name) for name in names}, BASE, StoreLimits())


def test_the_first_that_recognises_reads() -> None:
    registry = FormatRegistry([*BUILT_IN, EntryPoint("other", HERE, GROUP)])
    assert isinstance(registry.recognise(given("adapter_config.json")), PeftLoraFormat)
    both = registry.recognise(given("adapter_model.safetensors", "adaptermix.json"))
    assert isinstance(both, NativeFormat)
    found = registry.recognise(given("other.json"))
    assert found is not None
    assert found.name == "other"
    assert registry.recognise(given("zebra")) is None
    assert registry.wanted("other.json")
    assert not registry.wanted("zebra")
    assert registry.all_files() == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adaptermix.json",
        "other.json",
    ]


def test_formats_are_imported_at_first_use() -> None:
    registry = FormatRegistry([EntryPoint("late", "tests.no_such_module:Format", GROUP)])
    assert registry.names == ("late",)
    assert "tests.no_such_module" not in sys.modules
    with pytest.raises(StoreError, match="no_such_module"):
        _ = registry.formats


def test_a_format_must_go_by_its_name() -> None:
    with pytest.raises(StoreError, match="calls itself 'other'"):
        _ = FormatRegistry([EntryPoint("mine", HERE, GROUP)]).formats


def installed(folder: Path, name: str) -> None:
    """A distribution on the path with one entry point."""
    info = folder / f"{name}_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {HERE}\n")


def test_entry_points_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "other")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert FormatRegistry().names == ("adaptermix", "peft", "other")


def test_entry_points_take_no_name_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "peft")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StoreError, match="two adapter formats are named 'peft'"):
        FormatRegistry()


def test_both_are_formats() -> None:
    formats: list[AdapterFormat] = [PeftLoraFormat(), OtherFormat()]
    assert EntryPoint("other", HERE, GROUP).load() is OtherFormat
    assert {known.name for known in formats} == {"peft", "other"}
