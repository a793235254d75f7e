"""The torch backend: transformers' own code, on the wrapped layers and the paged attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from router_engine.backends.base import TORCH, Capabilities, ForwardOutput
from router_engine.backends.finite import FiniteReader
from router_engine.backends.spec import BackendParts, BackendSpec
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.step_batch import build_batch
from router_engine.mixture.weights import StepWeights
from router_engine.model.loader import LoadedModel
from router_engine.model.probe import HiddenStateProbe
from router_engine.scheduling.plan import StepPlan


class TorchBackend(ParameterWeights):
    """As `backends.base.Backend`. Runs every model that transformers runs, on every device."""

    capabilities = Capabilities(kernels=TORCH, has_decoder=False)
    captures = None
    feed = None

    def __init__(self, parts: BackendParts) -> None:
        super().__init__(parts.loaded, parts.linears)
        model: Any = parts.loaded.model
        self._model: nn.Module = model.base_model
        self._head: nn.Module = model.get_output_embeddings()
        self._device = parts.loaded.device
        self._experts = parts.experts
        self._cache = parts.cache
        self._operations = parts.operations
        self._proof = parts.proof
        self._probe = HiddenStateProbe(model, parts.loaded.probe_layer)
        self._finite = FiniteReader(model)

    def prove(self) -> None:
        """Compare transformers' code on these operations with transformers' code alone.

        Raises UnsupportedModelError where something else comes of it: there is no fallback.
        """
        self._proof.require(type(self._operations).__name__, self)

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`."""
        batch = build_batch(plan, self._cache, self._operations, self._experts, self._device)
        self._experts.begin(weights)
        with (
            self._probe.reading(is_wanted=plan.reads_hidden_states) as probed,
            self._finite.reading() as finite,
        ):
            hidden = self._model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                step=batch,
            ).last_hidden_state[0]
        with self._experts.rows(batch.sample_index):
            logits: Tensor = self._head(hidden[batch.sample_index])
        gates = self._experts.readings()
        return ForwardOutput(logits, hidden_states=probed.value, gates=gates, finite=finite.tokens)


def _refusal(loaded: LoadedModel) -> str | None:
    return None


def _make(parts: BackendParts) -> TorchBackend:
    backend = TorchBackend(parts)
    backend.prove()
    return backend


SPEC = BackendSpec(
    name=TORCH,
    summary="transformers' own code",
    kernels="auto",
    refusal=_refusal,
    make=_make,
)
