"""A journal of answers in a file of JSON lines: an interrupted run goes on where it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


class Journal:
    """Answers by key. A line is written as soon as its answer is there.

    A line that was cut off when a run was killed is passed over, and its answer asked for again.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if restart:
            path.unlink(missing_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._answers = _answers(text)
        self._file: TextIO = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def get(self, key: str) -> Any | None:
        """An answer, None where there is none."""
        return self._answers.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._answers[key] = answer
        self._file.write(json.dumps({"key": key, "answer": answer}) + "\n")
        self._file.flush()


def read_journal(path: Path) -> dict[str, Any]:
    """The answers of a journal by key, in the order in which each key came first."""
    return _answers(path.read_text(encoding="utf-8"))


def _answers(text: str) -> dict[str, Any]:
    """A line that was cut off when a run was killed is passed over."""
    answers: dict[str, Any] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        answers[entry["key"]] = entry["answer"]
    return answers
