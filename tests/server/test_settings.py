"""Settings: one place, every variable known, every value checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from router_engine.processors import usable_cores
from server.engine_config import engine_config
from server.settings import Settings, SettingsError, load_settings, variable_of


def test_a_variable_is_read_and_a_flag_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERMIX_PORT", "9000")
    monkeypatch.setenv("ADAPTERMIX_DTYPE", "float32")
    assert load_settings().port == 9000
    assert load_settings(port=9001, dtype=None).port == 9001
    assert load_settings(port=9001, dtype=None).dtype == "float32"


def test_an_unknown_variable_is_named_with_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERMIX_MAX_RUNING", "3")
    with pytest.raises(SettingsError, match=r"ADAPTERMIX_MAX_RUNING.*ADAPTERMIX_MAX_RUNNING"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "x"),
        ("dtype", "float8"),
        ("quantization", "int4"),
        ("max_running", "0"),
        ("kv_memory", "much"),
    ],
)
def test_a_bad_value_names_field_variable_and_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(variable_of(name), value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert name in str(caught.value)
    assert variable_of(name) in str(caught.value)
    assert value in str(caught.value)


def seconds() -> list[str]:
    """The settings that are numbers with a fraction: all are seconds."""
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    return [name for name, kind in kinds.items() if float in _within(kind)]


def _within(kind: Any) -> Iterator[Any]:
    """A type, and those that it is made of."""
    yield kind
    for part in get_args(kind):
        yield from _within(part)


@pytest.mark.parametrize("name", seconds())
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300", "86401", "-1", "-1e-300"])
def test_seconds_are_a_time_that_can_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(variable_of(name), value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_seconds_are_of_several_settings() -> None:
    assert {"drain_seconds", "database_patience", "default_timeout"} <= set(seconds())


def test_a_short_admin_key_is_refused_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERMIX_ADMIN_KEY", "hush")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_sizes_are_read_as_people_write_them() -> None:
    assert load_settings(kv_memory="512MiB").kv_memory == 512 << 20


def test_memory_for_adapters_is_bytes_or_a_share() -> None:
    sizes = {"4GiB": (4 << 30, None), "20%": (None, 0.2), " 7.5 % ": (None, 0.075)}
    for written, meant in (*sizes.items(), (None, (None, None))):
        pool = engine_config(load_settings(adapter_memory=written), "m").adapters
        assert (pool.memory_bytes, pool.memory_share) == meant
    for wrong in ("0%", "101%", "-1%", "20%%", "much", "0", 0, -1):
        with pytest.raises(SettingsError, match=r"adapter_memory \(ADAPTERMIX_ADAPTER_MEMORY\) = "):
            load_settings(adapter_memory=wrong)


def test_every_setting_is_described_and_reaches_its_component() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    settings = load_settings(
        block_size=8, kv_blocks=9, prefix_cache=False, max_step_tokens=10, max_running=11
    )
    config = engine_config(settings, "tiny-random")
    assert (config.cache.block_size, config.cache.num_blocks) == (8, 9)
    assert config.cache.prefix_cache is False
    assert (config.scheduler.max_step_tokens, config.scheduler.max_running) == (10, 11)


def test_a_child_gets_its_threads_and_not_the_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERMIX_ADMIN_KEY", "a-long-enough-admin-key")
    environment = load_settings().child_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "ADAPTERMIX_ADMIN_KEY" not in environment


def test_a_child_gets_the_usable_cores_where_nothing_is_chosen() -> None:
    environment = load_settings().child_environment(None)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == str(usable_cores())


@pytest.mark.parametrize("name", ["engine_threads", "encoder_threads"])
def test_more_threads_than_usable_cores_are_refused(name: str) -> None:
    cores = usable_cores()
    assert getattr(load_settings(**{name: cores}), name) == cores
    with pytest.raises(SettingsError, match=rf"{name} is {cores + 1}; it must be at most {cores}"):
        load_settings(**{name: cores + 1})


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host: str, is_loopback: bool) -> None:  # noqa: FBT001
    assert load_settings(host=host).is_loopback is is_loopback


def test_the_store_lies_in_the_cache(tmp_path: Path) -> None:
    assert load_settings(cache=tmp_path).store_dir == tmp_path / "store"
    assert load_settings(store=tmp_path / "s").store_dir == tmp_path / "s"


def test_a_revision_is_of_a_hub_id(tmp_path: Path) -> None:
    settings = load_settings(model="owner/name", revision="v1")
    assert engine_config(settings, "owner/name").model.revision == "v1"
    for model in ("owner/name", "default"):
        assert load_settings(model=model, revision="").revision is None
    for model in ("default", "tiny-random", str(tmp_path), "x.gguf"):
        with pytest.raises(SettingsError, match=r"revision \(ADAPTERMIX_REVISION\) = 'v1'.*hub id"):
            load_settings(model=model, revision="v1")


def test_the_traffic_cannot_merge_into_a_quantized_base() -> None:
    assert engine_config(load_settings(quantization="int8"), "m").model.quantization == "int8"
    with pytest.raises(SettingsError, match=r"merge \(ADAPTERMIX_MERGE\) = 'auto'.*'int8'.*manual"):
        load_settings(quantization="int8", merge="auto")
