"""Paths in a home directory that is not known: refused by name, and never a folder called `~`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.peers.environment import PeerEnvironment
from adapters_store import home
from adapters_store.blobs.opening import open_blobs
from adapters_store.errors import StoreError
from router_engine.assets import AssetError
from router_engine.backends.cpu import build as kernels
from router_engine.backends.json_cache import write_cached
from router_engine.model.checkpoint import called
from router_engine.model.loader import described_by
from server.http.container import Container
from server.models import base_files, encoder_directory, encoder_name
from server.settings import SettingsError, load_settings
from tests.adaptermix.cli.test_edges import require_refused
from tests.adaptermix.cli.test_main import run
from tests.server.live import tiny_settings

ROOT = Path(__file__).parents[1]
NOWHERE = "~no-such-user/x"
ASKS = (".expanduser", "Path.home")
NOT_OURS = ("tests", "build", "dist")  # what `pip wheel` leaves behind are copies


def test_no_other_code_asks_for_a_home_directory() -> None:
    """What it raises where there is none is told in one place."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        part = file.relative_to(ROOT).parts[0]
        if part.startswith(".") or part in NOT_OURS or file == Path(home.__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(ASKS):
                found.append(f"{file}:{node.lineno}")
    assert found == []


def test_a_known_home_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home.expanded("~/a") == tmp_path / "a"
    assert home.expanded(NOWHERE) == Path(NOWHERE)
    assert load_settings(cache="~/b").cache_dir == tmp_path / "b"


@pytest.mark.parametrize("name", ["cache", "store", "adapters"])
def test_a_setting_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"ADAPTERMIX_{name.upper()}.*~no-such-user is known"):
        load_settings(**{name: NOWHERE})


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user the system has no entry of."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(SettingsError, match=r"ADAPTERMIX_CACHE.*use an absolute path"):
        load_settings()
    assert str(load_settings(cache="/c").cache_dir) == "/c"
    with pytest.raises(StoreError, match="no home directory"):
        open_blobs("memory://")


def test_a_model_or_an_encoder_is_not_there(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, model=NOWHERE, encoder=NOWHERE)
    with pytest.raises(AssetError, match="is no directory or file"):
        base_files(settings)
    with pytest.raises(SettingsError, match="encoder = "):
        encoder_directory(settings, tmp_path)
    assert encoder_name(settings) == "x"
    assert "no such path" in called(NOWHERE)
    with pytest.raises(Exception, match="no such path"):
        described_by(NOWHERE)
    with pytest.raises(SettingsError):
        Container(tiny_settings(tmp_path, encoder=NOWHERE)).check_files()


def test_caches_of_the_engine_and_of_benchmarks_make_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "SHIPPED", tmp_path)
    with pytest.raises(kernels.KernelBuildError, match="no home directory"):
        kernels.build(Path(NOWHERE))
    with pytest.raises(BenchmarkError, match="no home directory"):
        PeerEnvironment("peer", Path(NOWHERE))
    write_cached(Path(NOWHERE) / "kept.json", {})
    assert "is not kept" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "--model", NOWHERE),
        ("serve", "--cache", NOWHERE),
        ("pull", "--cache", NOWHERE),
        ("keys", "ls", "--store", NOWHERE),
    ],
    ids=" ".join,
)
def test_a_command_says_it_in_one_line(command: tuple[str, ...]) -> None:
    result = run(*command)
    require_refused(result, "error: ", "~no-such-user")
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
