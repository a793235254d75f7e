"""Errors of the operating system, as people are told them."""

from __future__ import annotations


def reason(error: Exception) -> str:
    """What an error of the system or of an encoding says, with the file that it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*named, error.strerror])
