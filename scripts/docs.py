"""Writes the generated pages of `docs/` anew and checks every link; `make docs` runs it."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin
from urllib.parse import unquote

from pydantic import ByteSize
from rich.console import Console

from benchmarks.gpu import roofline
from scripts import figures
from server.app import create_app
from server.http.container import Container
from server.settings import Settings, load_settings, variable_of

ROOT = Path(__file__).resolve().parent.parent
OPENAPI = ROOT / "docs" / "openapi.json"
CONFIGURATION = ROOT / "docs" / "configuration.md"
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PERFORMANCE = ROOT / "docs" / "performance.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
GPU = ROOT / "docs" / "gpu.md"
UNCERTAINTY = ROOT / "docs" / "experiments" / "uncertainty.md"
BEGIN, END = "<!-- settings: written by make docs -->", "<!-- end of settings -->"

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(found)


def broken_links(page: Path) -> list[str]:
    """Links of a page to files, folders or headings that aren't there. The web isn't asked."""
    text = _INLINE_CODE.sub("", _CODE.sub("", page.read_text(encoding="utf-8")))
    return [target for target in _LINK.findall(text) if _is_broken(page, target)]


def openapi_text() -> str:
    """The API as OpenAPI, for the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Container(load_settings(store=Path(folder) / "store")))
        return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def settings_table() -> str:
    """Every setting with its variable, default and meaning, as Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{_plain(field.default)}`"
        meaning = f"{field.description}{_choices(field.annotation)}".replace("<", "&lt;")
        rows.append(f"| `{variable_of(name)}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with `table` between its two marks; a page without them stays as it is."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}{END}{after}" if begin and end else page


def generated() -> Iterator[tuple[Path, str]]:
    """Every generated page with what it should hold."""
    yield OPENAPI, openapi_text()
    yield CONFIGURATION, with_table(CONFIGURATION.read_text(encoding="utf-8"), settings_table())
    yield GPU, roofline.with_table(GPU.read_text(encoding="utf-8"))
    for path, own in (
        (PERFORMANCE, figures.PERFORMANCE),
        (EVALUATION, figures.EVALUATION),
        (RELIABILITY, figures.RELIABILITY),
        (README, figures.README),
        (UNCERTAINTY, figures.UNCERTAINTY),
    ):
        pictures = os.path.relpath(RESULTS, path.parent)
        yield path, own.fill(path.read_text(encoding="utf-8"), RESULTS, pictures)


def main() -> int:
    """Write what is generated; return how many links are broken."""
    console = Console(stderr=True)
    for page, text in generated():
        page.write_text(text, encoding="utf-8")
    broken = [(page, link) for page in pages() for link in broken_links(page)]
    for page, link in broken:
        console.print(f"{page.relative_to(ROOT)}: nothing at {link}", style="red", soft_wrap=True)
    return len(broken)


def _plain(value: object) -> str:
    if isinstance(value, ByteSize):
        return value.human_readable()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(annotation: object) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in get_args(annotation))}."


def _is_broken(page: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return False
    name, _, anchor = target.partition("#")
    path = (page.parent / unquote(name)).resolve() if name else page
    if not path.exists():
        return True
    return bool(anchor) and anchor not in _anchors(path)


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_CODE.sub("", page.read_text(encoding="utf-8")))
    return {_anchor(heading) for heading in headings}


def _anchor(heading: str) -> str:
    """As the forges make it: lower case, punctuation dropped, blanks to hyphens."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


if __name__ == "__main__":
    sys.exit(bool(main()))
