"""The formats that this process reads: our own and those of entry points."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import cast

from adapters_store.errors import StoreError
from adapters_store.formats.base import AdapterFolder, AdapterFormat
from adapters_store.plugins import Plugins, with_installed

GROUP = "adaptermix.formats"
# In this order they are asked: PEFT's takes whatever holds adapter_model.safetensors.
BUILT_IN = (
    EntryPoint("adaptermix", "adapters_store.formats.native:NativeFormat", GROUP),
    EntryPoint("peft", "adapters_store.formats.peft:PeftLoraFormat", GROUP),
)


class FormatRegistry:
    """Formats by name, imported at first use, closed after that.

    An entry point `name = "package.module:FormatClass"` in the group `adaptermix.formats` adds one;
    a name that is taken already is refused with StoreError.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        """`entries`: None for the built-in formats and those of installed packages."""
        if entries is None:
            entries = with_installed(BUILT_IN, GROUP)
        nouns = ("adapter format", "adapter formats")
        self._plugins = Plugins(entries, _made, nouns=nouns, error=StoreError)

    @cached_property
    def formats(self) -> tuple[AdapterFormat, ...]:
        """All formats, built-in ones first. Raises StoreError for one that cannot be loaded."""
        return tuple(map(self._plugins.load, self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all formats, none of them imported for it."""
        return self._plugins.names

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


def _made(name: str, loaded: object) -> AdapterFormat:
    if not isinstance(loaded, type):
        raise ValueError("is no class of an adapter format")
    made = cast(AdapterFormat, loaded())
    if made.name != name:
        raise ValueError(f"calls itself {made.name!r}, not {name!r}")
    return made
