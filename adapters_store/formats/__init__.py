"""Foreign adapter formats -> our manifest. One file per format, found by what a folder holds."""

from adapters_store.formats.base import AdapterFormat, FormatInput, Reading
from adapters_store.formats.registry import FormatRegistry

__all__ = ["AdapterFormat", "FormatInput", "FormatRegistry", "Reading"]
