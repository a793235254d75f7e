"""Whether and when the C++ decoder runs instead of transformers' code.

Compiling never holds up the start: until the library is there, and where it cannot be, the
reference runs, which computes the same.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from router_engine.config import KernelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.experts.rows import RowPool
from router_engine.backends.cpu.build import build, library_path, machine_isas
from router_engine.backends.cpu.library import Library
from router_engine.kv.paged_cache import PagedCache
from router_engine.merging.merged_base import BaseWeights
from router_engine.backends.cpu.cpu_steps import CpuBody
from router_engine.backends.cpu.choice import choose, layer_shape, running
from router_engine.backends.cpu.packed_model import PackedModel, unsupported
from router_engine.backends.cpu.trial import TORCH
from router_engine.model.layout import layout_of
from router_engine.model.loader import LoadedModel
from router_engine.backends.proof import Proof, ProofVerdict
from router_engine.backends.torch.torch_backend import ParameterWeights
from router_engine.backends.torch.wrapped_layers import MixtureLinear

_log = logging.getLogger(__name__)


class FastPath:
    """Gives the runner a body once there is one. Used by the engine's thread, between steps.

    The weights move into the body: from then on they are nowhere else, and merged there.
    """

    def __init__(
        self,
        config: KernelConfig,
        loaded: LoadedModel,
        linears: Mapping[str, MixtureLinear],
        pool: RowPool,
        cache: PagedCache,
        proof: Proof,
    ) -> None:
        """Raises EngineError, which has its reasons, under `cpu`, which has no fallback.

        Also where the instruction set that is asked for does not run here.
        """
        self._loaded = loaded
        self._linears = linears
        self._pool = pool
        self._cache = cache
        self._proof = proof
        self._has_fallback = config.kernels != "cpu"
        self._weights: BaseWeights = ParameterWeights(loaded, linears)
        self._body: CpuBody | None = None
        self.name = TORCH  # of what computes
        self._moving = threading.Lock()  # held while the weights move into the body
        self._coming: Future[Library | None] | None = None
        if config.kernels == "reference":
            return
        if config.isa is not None and config.isa not in machine_isas():
            raise EngineError(
                f"instruction set {config.isa!r} does not run here: "
                f"{', '.join(machine_isas()) or 'none'} do"
            )
        reason = unsupported(loaded)
        if reason is not None:
            if config.kernels == "cpu":
                raise UnsupportedModelError(f"kernels 'cpu' cannot run this model: {reason}")
            return
        is_there = os.path.exists(library_path(config.cache))
        if config.kernels == "cpu" or (config.isa is not None and is_there):
            self._body = self._make(_library(config, loaded))
            return
        self._coming = _coming(config, loaded, is_there=is_there)
        self.body()  # what is there already computes from the first step on

    def body(self) -> CpuBody | None:
        """The fast body, or None while the reference has to run."""
        if self._coming is not None and self._coming.done():
            coming, self._coming = self._coming, None
            error = coming.exception()
            if error is None:
                self._body = self._make(coming.result())
            else:
                known = isinstance(error, EngineError | OSError)
                _log.warning(
                    "the CPU kernels are not used: %s", error, exc_info=None if known else error
                )
        return self._body

    def read(self, module: str) -> Tensor:
        with self._moving:
            return self._weights.read(module)

    def write(self, module: str, weight: Tensor) -> None:
        self._weights.write(module, weight)

    def _make(self, library: Library | None) -> CpuBody | None:
        """The body on a library, or None where torch is faster or the body isn't exact.

        Raises UnsupportedModelError for one that isn't exact under `cpu`.
        """
        if library is None:
            return None
        verdict = self._proof.kept(library.isa)
        if verdict is not None and not verdict.holds:
            self._refuse(library, verdict)
            return None
        expected = None if verdict is not None else self._proof.expected()
        with self._moving:
            decoder = PackedModel(library, self._loaded, self._linears, self._cache)
            self._weights = decoder
        body = CpuBody(decoder, self._pool, decoder.vocab, self._loaded.probe_layer)
        if expected is not None:
            verdict = self._proof.judge(library.isa, body.run, expected)
            if not verdict.holds:
                self._take_back(decoder)
                self._refuse(library, verdict)
                return None
        self.name = library.isa
        return body

    def _take_back(self, decoder: PackedModel) -> None:
        embedding: Any = self._loaded.model.get_input_embeddings()
        with self._moving:
            decoder.give_back(self._linears, embedding.weight)
            self._weights = ParameterWeights(self._loaded, self._linears)

    def _refuse(self, library: Library, verdict: ProofVerdict) -> None:
        if not self._has_fallback:
            raise UnsupportedModelError(
                f"kernels 'cpu' cannot run this model exactly: on {library.isa} {verdict}. Use "
                "kernels 'auto' or 'reference'"
            )
        _log.warning("the C++ decoder is not used, transformers' code runs: %s", verdict)


def _library(config: KernelConfig, loaded: LoadedModel) -> Library | None:
    """The library on the set that is asked for, or on the fastest; None where torch is faster.

    `cpu` asks for the decoder whatever torch could do. Raises EngineError.
    """
    path = build(config.cache)
    if config.isa is not None:
        return Library(path, config.isa)
    shape = layer_shape(layout_of(loaded.model, loaded.attention))
    int8 = loaded.quantization == "int8"
    name = running(config, choose(path, config.cache, shape, loaded.dtype, int8=int8))
    return None if name == TORCH else Library(path, name)


def _coming(config: KernelConfig, loaded: LoadedModel, *, is_there: bool) -> Future[Library | None]:
    """The library: at once where it is compiled, or else when it will be; or why there is none."""
    coming: Future[Library | None] = Future()

    def work() -> None:
        try:
            coming.set_result(_library(config, loaded))
        except Exception as error:  # whatever it is: whoever waits must hear of it
            coming.set_exception(error)

    if is_there:
        work()
    else:
        # A daemon: an engine that ends does not wait for a compiler.
        threading.Thread(target=work, name="kernel-build", daemon=True).start()
    return coming
