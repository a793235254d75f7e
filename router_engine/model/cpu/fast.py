"""Whether and when the C++ decoder runs instead of transformers' code.

Compiling never holds up the start: until the library is there, and where it cannot be, the
reference runs, which computes the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from router_engine.config import KernelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.experts.rows import RowPool
from router_engine.kernels.cpu.build import KernelBuildError, build, library_path
from router_engine.kernels.cpu.library import Library
from router_engine.kv.paged_cache import PagedCache
from router_engine.model.cpu.body import CpuBody
from router_engine.model.cpu.decoder import Decoder, unsupported
from router_engine.model.loader import LoadedModel
from router_engine.model.wrap import MixtureLinear

_log = logging.getLogger(__name__)


class FastPath:
    """Gives the runner a body once there is one. Used by the engine's thread, between steps."""

    def __init__(
        self,
        config: KernelConfig,
        loaded: LoadedModel,
        linears: Mapping[str, MixtureLinear],
        pool: RowPool,
        cache: PagedCache,
    ) -> None:
        """Raises UnsupportedModelError or KernelBuildError under `cpu`, which has no fallback."""
        self._loaded = loaded
        self._linears = linears
        self._pool = pool
        self._cache = cache
        self._body: CpuBody | None = None
        self._coming: Future[Library] | None = None
        if config.kernels == "reference":
            return
        reason = unsupported(loaded)
        if reason is not None:
            if config.kernels == "cpu":
                raise UnsupportedModelError(f"kernels 'cpu' cannot run this model: {reason}")
            return
        if config.kernels == "cpu" or library_path(config.cache).exists():
            self._body = self._make(Library(build(config.cache)))
        else:
            self._coming = _in_background(config)

    def body(self) -> CpuBody | None:
        """The fast body, or None while the reference has to run."""
        if self._coming is not None and self._coming.done():
            coming, self._coming = self._coming, None
            error = coming.exception()
            if error is None:
                self._body = self._make(coming.result())
            else:
                _log.warning("the CPU kernels are not used: %s", error)
        return self._body

    def refresh(self, modules: Iterable[str]) -> None:
        """The base weights of these modules have changed."""
        if self._body is not None:
            self._body.refresh(modules)

    def _make(self, library: Library) -> CpuBody:
        decoder = Decoder(library, self._loaded, self._linears, self._cache)
        return CpuBody(decoder, self._pool, int(self._loaded.model.config.vocab_size))


def _in_background(config: KernelConfig) -> Future[Library]:
    coming: Future[Library] = Future()

    def work() -> None:
        try:
            coming.set_result(Library(build(config.cache)))
        except (KernelBuildError, OSError) as error:
            coming.set_exception(error)

    # A daemon: an engine that ends does not wait for a compiler.
    threading.Thread(target=work, name="kernel-build", daemon=True).start()
    return coming
