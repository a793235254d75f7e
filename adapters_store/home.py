"""Paths that begin with `~`."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path | str) -> Path:
    """The path with `~` or `~user` at its beginning replaced by that home directory.

    As it is where none is known: of a user that does not exist, or of one without an entry in the
    system's list and without HOME, as containers have them.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_homeless(path: Path) -> bool:
    """Whether a path begins at a home directory that is not known."""
    return str(expanded(path)).startswith("~")
