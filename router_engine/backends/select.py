"""The choice of a backend for a model, and of the set of kernels beside it.

Installed packages add backends by the entry-point group `adaptermix.backends`; the setting
`kernels` names them as it names sets of kernels. Each is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

from adapters_store.plugins import Plugins, named, with_installed
from router_engine.backends.base import TORCH
from router_engine.backends.spec import BackendSpec
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.kernels.base import KernelSpec
from router_engine.kernels.dispatch import BUILT_IN_NAMES, KernelRegistry
from router_engine.model.loader import LoadedModel

GROUP = "adaptermix.backends"

_CPU, _CUDA = "cpu", "cuda"
_BUILT_IN = {
    TORCH: "router_engine.backends.torch.torch_backend:SPEC",
    _CPU: "router_engine.backends.cpu.cpu_backend:SPEC",
    _CUDA: "router_engine.backends.cuda.cuda_backend:SPEC",
}


class BackendRegistry:
    """Backends by name: the built-in ones and those that packages add."""

    def __init__(self, added: Iterable[EntryPoint], kernels: KernelRegistry) -> None:
        """Raises EngineError where two share a name, or one has that of a built-in one."""
        added = list(added)
        taken = {*_BUILT_IN, *BUILT_IN_NAMES}
        for entry in added:
            if entry.name in taken:
                raise EngineError(
                    f"a backend may not be named {entry.name!r} ({entry.value}): that is built in"
                )
        built_in = [EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()]
        self._added = frozenset(entry.name for entry in added)
        self._kernels = kernels
        self._plugins = Plugins(
            [*built_in, *added],
            named(BackendSpec),
            nouns=("backend", "backends"),
            error=EngineError,
        )

    @classmethod
    def discover(cls) -> BackendRegistry:
        """The built-in backends and those of installed packages."""
        return cls(with_installed((), GROUP), KernelRegistry.discover())

    def choose(self, name: str, loaded: LoadedModel) -> tuple[BackendSpec, KernelSpec]:
        """The backend and the kernels for a configured name (`config.KernelConfig.kernels`).

        Raises EngineError for an unknown name and UnsupportedModelError, with the reason, where
        the named one cannot run the model.
        """
        device, dtype = loaded.device, loaded.dtype
        if name in self._added:
            spec = self._plugins.load(name)
            reason = spec.refusal(loaded)
            if reason is not None:
                raise UnsupportedModelError(f"backend {name!r} cannot run this model: {reason}")
            return spec, self._kernels.choose(spec.kernels, device, dtype)
        kernels = self._kernels.choose(name, device, dtype, also=self._added)
        return self._plugins.load(_built_in(name, kernels)), kernels


def _built_in(name: str, kernels: KernelSpec) -> str:
    """The built-in backend for a configured name and the kernels that were chosen under it.

    `auto` and `cpu` ask for the C++ decoder, which may leave a model to transformers' code.
    """
    if kernels.name == "triton":
        return _CUDA
    return _CPU if name in ("auto", _CPU) else TORCH
