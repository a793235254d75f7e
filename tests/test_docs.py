"""The documentation tells the truth: links lead somewhere, its code runs."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.docs import (
    BEGIN,
    CONFIGURATION,
    END,
    OPENAPI,
    RELIABILITY,
    ROOT,
    broken_links,
    generated,
    pages,
    with_table,
)
from server.errors import TABLE
from server.metrics import Metrics
from server.settings import CLIENT_KEY, CLIENT_URL, Settings, variable_of
from tests.support.desk import TEXTS, lay_out
from tests.support.desk import adapters as adapters_of

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:adapters_store|router_engine|server|adaptermix)/[\w./-]+)`")
_SERVER = "http://127.0.0.1:8000"
_SHELLS = ("sh", "bash")
_LOADED = re.compile(r"\bllm\b")  # in a process of the reader's own
_LANGUAGES = (*_SHELLS, "json", "python")


@dataclass(frozen=True)
class Block:
    """One fenced piece of code."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def needs_server(self) -> bool:
        return _SERVER in self.code

    @property
    def needs_model(self) -> bool:
        return self.language == "python" and bool(_LOADED.search(self.code))

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[2], match[3]))
    return found


def blocks_in(*languages: str, live: bool) -> list[Block]:
    chosen = [block for block in blocks() if block.language in languages]
    return [block for block in chosen if block.needs_server is live and not block.needs_model]


def sessions() -> dict[str, str]:
    """The code of each page that loads a model, its blocks in their order, by the page's name."""
    pages_of: dict[str, list[str]] = {}
    for block in blocks():
        if block.needs_model:
            pages_of.setdefault(str(block.page.relative_to(ROOT)), []).append(block.code)
    return {page: "\n".join(codes) for page, codes in pages_of.items()}


# What a page's own code imports lies ready in a package of the examples.
_PYTHONPATH = [
    str(ROOT / "examples" / "custom_expert"),
    *filter(None, [os.environ.get("PYTHONPATH")]),
]


def run(desk: Path, *command: str) -> str:
    """What a command prints; curl fails where the server refuses."""
    (desk / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    completed = subprocess.run(
        command,
        cwd=desk,
        env={**os.environ, "CURL_HOME": str(desk), "PYTHONPATH": os.pathsep.join(_PYTHONPATH)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def paths_in(page: Path) -> list[str]:
    """Files and folders of ours that a page names in full: `server/errors.py`, `server/http/`."""
    return [
        path for path in _PATH.findall(page.read_text("utf-8")) if "decisions" not in page.parts
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    # Decisions tell what was; the glossary has a test of its own.
    if page.name != "glossary.md":
        assert [path for path in paths_in(page) if not (ROOT / path).exists()] == []


def test_the_structure_names_parts_that_are_there() -> None:
    page = (ROOT / "docs" / "structure.md").read_text("utf-8")
    sections = re.split(r"^## `(\w+)/`$", page, flags=re.MULTILINE)[1:]
    for package, table in zip(sections[::2], sections[1::2], strict=True):
        parts = re.findall(
            r"`([\w/]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE))
        )
        assert len(parts) > 5
        for part in parts:
            path = ROOT / package / part
            assert path.is_dir() if part.endswith("/") else path.with_suffix(".py").is_file(), path


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: one\n[a](#a-heading-one) [b](page.md#two) [c](gone.md) [d](https://x.org)\n"
        "`[e](code.md)`\n```\n[f](block.md)\n```\n"
    )
    assert broken_links(page) == ["page.md#two", "gone.md"]


def test_generated_pages_are_current() -> None:
    stale = [page.name for page, text in generated() if page.read_text("utf-8") != text]
    assert not stale, "run make docs"


def test_every_route_of_the_api_has_an_example_and_its_errors() -> None:
    paths = json.loads(OPENAPI.read_text("utf-8"))["paths"]
    operations = [
        (f"{verb} {path}", operation)
        for path, item in paths.items()
        for verb, operation in item.items()
    ]
    assert len(operations) > 15
    bare = [name for name, operation in operations if not operation.get("summary")]
    assert not bare
    silent = [
        name
        for name, operation in operations
        if "requestBody" in operation and "422" not in operation["responses"]
    ]
    assert not silent


def test_every_setting_is_documented() -> None:
    page = CONFIGURATION.read_text("utf-8")
    assert [name for name in Settings.model_fields if variable_of(name) not in page] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_a_page_names_are_settings(page: Path) -> None:
    known = {variable_of(name) for name in Settings.model_fields} | {CLIENT_URL, CLIENT_KEY}
    named = set(re.findall(r"\bADAPTERMIX_[A-Z_]+[A-Z]\b", page.read_text("utf-8")))
    assert named <= known


def test_errors_and_metrics_of_the_page_on_faults_are_there() -> None:
    text = RELIABILITY.read_text("utf-8").partition("## Faults")[2]
    told = {(int(status), kind) for status, kind in re.findall(r"\b(\d{3}) `(\w+)`", text)}
    assert told <= {(status, kind) for _, status, kind in TABLE}
    assert len(told) > 10
    source = Path(inspect.getfile(Metrics)).read_text("utf-8")
    metrics = set(re.findall(r"`adaptermix_(\w+?)(?:_total)?[`{]", text))
    assert metrics
    assert [name for name in metrics if f'"{name}"' not in source] == []


def test_a_table_is_written_between_its_marks() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert with_table(page, "new\n") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert with_table("no marks", "new\n") == "no marks"


def test_readme_shows_a_request() -> None:
    assert [block for block in blocks_in(*_SHELLS, live=True) if block.page.name == "README.md"]


@pytest.mark.parametrize("block", blocks_in(*_LANGUAGES, live=False), ids=str)
def test_code_is_sound(block: Block, desk: Path) -> None:
    """Python runs, shell and JSON parse."""
    if block.language == "json":
        json.loads(block.code)
    elif block.language == "python":
        run(desk, sys.executable, "-c", block.code)
    else:
        run(desk, "bash", "-n", "-c", block.code)


@pytest.mark.parametrize("block", blocks_in(*_LANGUAGES, live=True), ids=str)
def test_code_that_asks_the_server_works(block: Block, desk: Path, desk_url: str) -> None:
    """Every curl gets its answer, every client its result."""
    code = block.code.replace(_SERVER, desk_url)
    if block.language == "python":
        printed = run(desk, sys.executable, "-c", code)
    else:
        assert shutil.which("curl"), "the examples are written with curl"
        printed = run(desk, "bash", "-eu", "-c", code)
    assert printed.strip()


def test_readme_and_the_page_on_python_load_a_model() -> None:
    assert {"README.md", "docs/python-api.md"} <= set(sessions())


@pytest.fixture
def model_desk(tmp_path: Path) -> Path:
    """A folder where tiny adapters with sample texts stand for the examples."""
    for folder in adapters_of(lay_out(tmp_path)):
        lines = [json.dumps({"text": text}) for text in TEXTS[folder.name]]
        (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", sessions())
def test_code_that_loads_a_model_runs_on_a_tiny_one(
    page: str, model_desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERMIX_CACHE", str(model_desk / "cache"))
    monkeypatch.setenv("ADAPTERMIX_KERNELS", "reference")
    code = sessions()[page]
    assert '"default"' in code
    assert run(model_desk, sys.executable, "-c", code.replace('"default"', '"tiny-random"'))


@pytest.mark.real_model
@pytest.mark.parametrize("page", sessions())
def test_code_that_loads_a_model_runs_as_written(
    page: str, real_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERMIX_STORE", str(tmp_path / "store"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert run(tmp_path, sys.executable, "-c", sessions()[page])
