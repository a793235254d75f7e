"""The error of a measurement, told in one line."""

from __future__ import annotations


class BenchmarkError(RuntimeError):
    """The benchmark cannot run as asked, or what it measures did not do what it was asked for."""
