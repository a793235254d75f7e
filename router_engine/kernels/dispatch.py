"""Which kernels serve a device and a dtype: the built-in ones and those of the entry-point group.

An implementation is imported when it is first asked for, so that a machine without Triton never
imports it. The C++ decoder is no entry here: it runs whole steps (`model.cpu`), and what it cannot
run falls back to these operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

import torch

from adapters_store.plugins import Plugins, named, with_installed
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.kernels.base import KernelSpec

GROUP = "adaptermix.kernels"

_BUILT_IN = (
    EntryPoint("reference", "router_engine.kernels.reference.operations:SPEC", GROUP),
    EntryPoint("triton", "router_engine.kernels.triton.operations:SPEC", GROUP),
)
# What `auto` tries on a kind of device before the reference, best first.
_PREFERRED = {"cuda": ("triton",)}
# Under these names the operations beside the C++ decoder are chosen as under another.
_ALIASES = {"cpu": "reference"}


class KernelRegistry:
    """Kernel implementations by name."""

    def __init__(self, entries: Iterable[EntryPoint]) -> None:
        """Raises EngineError when two entries share a name."""
        nouns = ("kernels", "sets of kernels")
        self._plugins = Plugins(entries, named(KernelSpec), nouns=nouns, error=EngineError)

    @classmethod
    def discover(cls) -> KernelRegistry:
        """The built-in kernels and those of installed packages."""
        return cls(with_installed(_BUILT_IN, GROUP))

    def get(self, name: str) -> KernelSpec:
        """Raises EngineError, with all known names, for one that is unknown or cannot be loaded."""
        if name not in self._plugins.names:
            known = ", ".join(sorted({"auto", *_ALIASES, *self._plugins.names}))
            raise EngineError(f"unknown kernels {name!r} (known: {known})")
        return self._plugins.load(name)

    def choose(self, name: str, device: torch.device, dtype: torch.dtype) -> KernelSpec:
        """The kernels for a configured name; `auto` takes the best that serve device and dtype.

        Raises UnsupportedModelError where the named ones cannot, with the reason.
        """
        if name == "auto":
            return self._best(device, dtype)
        spec = self.get(_ALIASES.get(name, name))
        reason = spec.refusal(device, dtype)
        if reason is not None:
            raise UnsupportedModelError(f"kernels {name!r} cannot run: {reason}")
        return spec

    def _best(self, device: torch.device, dtype: torch.dtype) -> KernelSpec:
        for name in _PREFERRED.get(device.type, ()):
            try:
                spec = self.get(name)
            except EngineError:
                continue  # an optional library is not installed
            if spec.refusal(device, dtype) is None:
                return spec
        return self.get("reference")


def choose_kernels(name: str, device: torch.device, dtype: torch.dtype) -> KernelSpec:
    """The kernels for a configured name (`config.KernelConfig.kernels`)."""
    return KernelRegistry.discover().choose(name, device, dtype)
