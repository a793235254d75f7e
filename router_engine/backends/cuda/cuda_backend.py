"""Whether the Triton decoder runs a model instead of transformers' code."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kv.paged_cache import PagedCache
from router_engine.backends.cuda.cuda_steps import CudaBody
from router_engine.backends.cuda.cuda_decoder import CudaDecoder, unsupported
from router_engine.backends.cuda.graphs import CudaCapture, run_directly
from router_engine.model.loader import LoadedModel
from router_engine.backends.proof import Proof
from router_engine.backends.torch.torch_backend import ParameterWeights
from router_engine.backends.torch.wrapped_layers import MixtureLinear

_log = logging.getLogger(__name__)


class CudaPath(ParameterWeights):
    """As `model.fast.Fast`. A model that the decoder cannot run keeps transformers' own code.

    Then mixtures and attention still run on the Triton kernels, but without graphs.
    """

    name = "triton"

    def __init__(
        self,
        loaded: LoadedModel,
        linears: Mapping[str, MixtureLinear],
        experts: StepExperts,
        cache: PagedCache,
        operations: Operations,
        proof: Proof,
    ) -> None:
        super().__init__(loaded, linears)
        self._body: CudaBody | None = None
        reason = unsupported(loaded)
        if reason is not None:
            _log.info("no decoder of our own: %s", reason)
            return

        def make() -> CudaBody:
            return CudaBody(
                CudaDecoder(loaded, linears, cache),
                experts,
                cache,
                operations,
                max_model_len=loaded.max_model_len,
                device=loaded.device,
                capture=CudaCapture() if loaded.device.type == "cuda" else run_directly,
            )

        verdict = proof.kept(self.name)
        if verdict is None:
            expected = proof.expected()
            self._body = make()
            verdict = proof.judge(self.name, self._body.run, expected)
        elif verdict.holds:
            self._body = make()
        if not verdict.holds:
            self._body = None
            _log.warning("the Triton decoder is not used, transformers' code runs: %s", verdict)

    def body(self) -> CudaBody | None:
        return self._body

    def write(self, module: str, weight: Tensor) -> None:
        super().write(module, weight)
        if self._body is not None:
            self._body.refresh()
