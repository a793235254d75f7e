"""The glossary tells the truth: every word stands once, in a file that is there and defines it."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
_ROW = re.compile(r"^\| (?P<word>[^|]+) \| (?P<meaning>[^|]+) \| (?P<where>[^|]+) \| [^|]*\|$")
_WHERE = re.compile(r"`(?P<path>[\w/]+\.py)`: `(?P<name>\w+)`")
_HEADS = ("word", "---")


class Entry(NamedTuple):
    """One word with the place where it lives."""

    word: str
    path: str
    name: str


def entries() -> list[Entry]:
    listed = []
    for line in GLOSSARY.read_text("utf-8").splitlines():
        if line.startswith("|") and not line.strip("| ").startswith(_HEADS):
            row = _ROW.match(line)
            assert row, f"a line has a word, its meaning, its place and its users: {line}"
            where = _WHERE.fullmatch(row["where"])
            assert where, f"a place is `path.py`: `Name`: {line}"
            listed.append(Entry(row["word"], where["path"], where["name"]))
    return listed


def test_every_word_stands_once() -> None:
    twice = [
        word for word, count in Counter(entry.word for entry in entries()).items() if count > 1
    ]
    assert twice == []
    assert len(entries()) > 40


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.word)
def test_a_word_is_defined_where_the_glossary_says(entry: Entry) -> None:
    path = ROOT / entry.path
    assert path.is_file(), f"{entry.path} is not there"
    defined = re.compile(
        rf"^(?:class|def|async def) {entry.name}\b|^{entry.name} *[:=]", re.MULTILINE
    )
    assert defined.search(path.read_text("utf-8")), f"{entry.path} defines no {entry.name}"
