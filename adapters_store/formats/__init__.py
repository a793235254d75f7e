"""Foreign adapter formats -> our manifest. One file per format, found by what a folder holds.

`adamix` is none of them: it turns the tensors of a checkpoint, which no upload may be, into PEFT's.
"""

from adapters_store.formats.base import AdapterFolder, AdapterFormat, ParsedAdapter
from adapters_store.formats.registry import FormatRegistry

__all__ = ["AdapterFolder", "AdapterFormat", "FormatRegistry", "ParsedAdapter"]
