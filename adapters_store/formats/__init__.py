"""Formats of uploads, each read into our manifest; found by what a folder holds."""

from adapters_store.formats.base import AdapterFolder, AdapterFormat, ParsedAdapter
from adapters_store.formats.registry import FormatRegistry

__all__ = ["AdapterFolder", "AdapterFormat", "FormatRegistry", "ParsedAdapter"]
