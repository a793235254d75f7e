"""Results on disk: one JSON file a phase, whole at any time, with what each cell has found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Status = Literal["measured", "failed", "left out"]


class PhaseFile:
    """The cells of a phase so far. Those of another identity are forgotten.

    `cells`: by name, {"status", "seconds"} and either "found" or "reason".
    """

    def __init__(self, folder: Path, phase: str, identity: Mapping[str, Any]) -> None:
        self._path = folder / f"{phase}.json"
        self._phase = phase
        self._identity = dict(identity)
        document = read_phase(self._path)
        known = document is not None and document["identity"] == self._identity
        self.cells: dict[str, dict[str, Any]] = document["cells"] if document and known else {}

    def has(self, cell: str) -> bool:
        """Whether a cell was measured; one that failed, or was left out, is tried again."""
        return self.cells.get(cell, {}).get("status") == "measured"

    def forget(self) -> None:
        """Let everything be measured again."""
        self.cells = {}

    def measured(self, cell: str, found: Mapping[str, Any], seconds: float) -> None:
        """Write what a cell has found, in so many seconds."""
        self._put(cell, {"status": "measured", "seconds": seconds, "found": dict(found)})

    def missed(self, cell: str, status: Status, reason: str, seconds: float = 0.0) -> None:
        """Write why a cell has found nothing. A failure is not replaced by a want of time."""
        if status == "left out" and self.cells.get(cell, {}).get("status") == "failed":
            return
        self._put(cell, {"status": status, "seconds": seconds, "reason": reason})

    def _put(self, cell: str, entry: dict[str, Any]) -> None:
        self.cells[cell] = entry
        write_json(
            self._path, {"phase": self._phase, "identity": self._identity, "cells": self.cells}
        )


def read_phase(path: Path) -> dict[str, Any] | None:
    """A phase's document, or None where there is none."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write atomically: whatever ends the process, a reader sees the old file or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
