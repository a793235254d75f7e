"""A package's backend: transformers' code under a name of its own, told apart by what it counts."""

from __future__ import annotations

from torch import Tensor

from router_engine.backends.base import Capabilities, ForwardOutput
from router_engine.backends.spec import BackendParts, BackendSpec
from router_engine.backends.torch.torch_backend import TorchBackend
from router_engine.mixture.weights import StepWeights
from router_engine.model.loader import LoadedModel
from router_engine.scheduling.plan import StepPlan


class CountingBackend:
    """As `backends.base.Backend`."""

    capabilities = Capabilities(kernels="counting", has_decoder=True)
    captures = None
    feed = None

    def __init__(self, parts: BackendParts) -> None:
        self._torch = TorchBackend(parts)
        self.operations = type(parts.operations).__name__
        self.steps = 0

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        self.steps += 1
        return self._torch.forward(plan, weights)

    def read_weight(self, module: str) -> Tensor:
        return self._torch.read_weight(module)

    def write_weight(self, module: str, weight: Tensor) -> None:
        self._torch.write_weight(module, weight)


def _refusal(loaded: LoadedModel) -> str | None:
    return None if type(loaded.model).__name__ == "LlamaForCausalLM" else "it counts Llamas only"


COUNTING = BackendSpec("counting", "counts steps", "reference", _refusal, CountingBackend)
# A name that is built in.
CPU = BackendSpec("cpu", "counts steps", "reference", _refusal, CountingBackend)
