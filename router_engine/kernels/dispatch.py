"""The choice of a set of kernels for a device and a dtype: built in, or by an entry point.

A set is imported when it is first asked for, so that a machine without Triton never imports it. The
C++ decoder is no set of kernels: it runs whole steps (`backends.cpu`), and what it cannot run falls
back to these operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

import torch

from adapters_store.plugins import Plugins, named, with_installed
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.kernels.base import OPERATIONS, KernelSpec, Operations

GROUP = "adaptermix.kernels"

_BUILT_IN = (
    EntryPoint("reference", "router_engine.kernels.reference.operations:SPEC", GROUP),
    EntryPoint("triton", "router_engine.kernels.triton.triton_operations:SPEC", GROUP),
)
# What `auto` tries on a kind of device before the reference, best first.
_PREFERRED = {"cuda": ("triton",)}
# Under these names the operations beside the C++ decoder are chosen as under another.
_ALIASES = {"cpu": "reference"}
BUILT_IN_NAMES = frozenset({"auto", *_ALIASES, *(entry.name for entry in _BUILT_IN)})


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

    def get(self, name: str, *, also: Iterable[str] = ()) -> KernelSpec:
        """Raises EngineError for a name that is unknown or cannot be loaded.

        also: other names that a user may ask for, which the error tells too.
        """
        if name not in self._plugins.names:
            names = ", ".join(sorted({*BUILT_IN_NAMES, *self._plugins.names, *also}))
            raise EngineError(f"unknown kernels {name!r} (known: {names})")
        return self._plugins.load(name)

    def choose(
        self, name: str, device: torch.device, dtype: torch.dtype, *, also: Iterable[str] = ()
    ) -> KernelSpec:
        """The kernels for a configured name; `auto` takes the best that serve device and dtype.

        Raises UnsupportedModelError where the named ones cannot, with the reason; else as `get`.
        """
        if name == "auto":
            return self._best(device, dtype)
        spec = self.get(_ALIASES.get(name, name), also=also)
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


def make_operations(spec: KernelSpec) -> Operations:
    """The operations of a set of kernels.

    Raises UnsupportedModelError, with the names, where a package's set lacks some of them.
    """
    operations = spec.make()
    missing = [name for name in OPERATIONS if not callable(getattr(operations, name, None))]
    if missing:
        raise UnsupportedModelError(
            f"kernels {spec.name!r} lack {', '.join(missing)}: made for an older version. Use "
            "a newer version of their package, or kernels 'reference'"
        )
    return operations
