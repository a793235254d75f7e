"""Results found out once, as JSON in a cache folder: a file there may be any bytes or none.

Nothing depends on such a file but time: what cannot be read is found out again, and what cannot be
written is found out again at the next start.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from adapters_store.home import is_homeless

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def read_cached(file: Path, parse: Callable[[Any], _Result]) -> _Result | None:
    """The file's JSON through `parse`; None where there is none, or it is another thing."""
    try:
        return parse(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def write_cached(file: Path, content: Any, stays: Callable[[], bool] = lambda: False) -> None:
    """Write `content` as JSON, whole or not at all; a warning says where it cannot be.

    stays: whether a file that is there by now, of another process, is left as it is.
    """
    try:
        if is_homeless(file):
            raise ValueError("no such home directory is known")
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, suffix=".part", delete=False
        ) as part:
            try:
                json.dump(content, part)
                part.flush()
                if not _link(part.name, file) and not stays():
                    os.replace(part.name, file)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part.name)
    except (OSError, ValueError) as error:  # a path may be none
        _log.warning("%s is not kept, and found out again at the next start: %s", file, error)


def _link(part: str, file: Path) -> bool:
    """Whether `file` is ours now, for there was none; not every file system has links."""
    try:
        os.link(part, file)
    except OSError:
        return False
    return True
