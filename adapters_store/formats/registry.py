"""The formats that this process knows: our own and those of entry points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import import_module
from typing import cast

from adapters_store.errors import StoreError
from adapters_store.formats.base import AdapterFolder, AdapterFormat
from adapters_store.installed import installed

ENTRY_POINT_GROUP = "adaptermix.formats"
# In this order they are asked: PEFT's takes whatever holds adapter_model.safetensors.
BUILT_IN = {
    "adaptermix": "adapters_store.formats.native:NativeFormat",
    "peft": "adapters_store.formats.peft:PeftLoraFormat",
}


class FormatRegistry:
    """Formats by name, imported at first use, closed after that.

    An entry point `name = "package.module:FormatClass"` in the group `adaptermix.formats` adds one;
    a name that is taken already is refused with StoreError.
    """

    def __init__(self, sources: Mapping[str, str] | None = None) -> None:
        self._sources = dict(BUILT_IN if sources is None else sources)
        if sources is None:
            for point in installed(ENTRY_POINT_GROUP):
                if point.name in self._sources:
                    raise StoreError(
                        f"the adapter format {point.name!r} of {point.value} is registered already"
                    )
                self._sources[point.name] = point.value

    @cached_property
    def formats(self) -> tuple[AdapterFormat, ...]:
        """All formats, built-in ones first."""
        return tuple(_load(name, source) for name, source in self._sources.items())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all formats, none of them imported for it."""
        return tuple(self._sources)

    def wanted(self, name: str) -> bool:
        """Whether some format reads a file of this base name."""
        return any(name in adapter_format.files for adapter_format in self.formats)

    def recognise(self, folder: AdapterFolder) -> AdapterFormat | None:
        """The first format that says that these files are its own."""
        own = (candidate for candidate in self.formats if candidate.recognises(folder))
        return next(own, None)

    def all_files(self) -> Iterable[str]:
        """Every file name that some format reads, sorted."""
        return sorted(set().union(*(adapter_format.files for adapter_format in self.formats)))


def _load(name: str, source: str) -> AdapterFormat:
    module, _, attribute = source.partition(":")
    loaded = cast(AdapterFormat, getattr(import_module(module), attribute)())
    if loaded.name != name:
        raise StoreError(f"the adapter format {name!r} of {source} calls itself {loaded.name!r}")
    return loaded
