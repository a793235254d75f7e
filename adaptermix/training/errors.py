"""Errors of training. Each names the file, line or setting, and what would work."""

from __future__ import annotations


class TrainingError(Exception):
    """Base of every error that training raises on purpose."""


class DataError(TrainingError):
    """The data cannot be read or holds nothing to learn from."""


class CheckpointError(TrainingError):
    """The checkpoint in the output directory belongs to another run."""
