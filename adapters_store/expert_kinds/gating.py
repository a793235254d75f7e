"""Gating networks (MoA 2025): routers inside layers, which weigh the experts of their layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import Shape, place_misfits, size_problems, width_misfits
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem


@dataclass(frozen=True, slots=True)
class ThresholdSpec:
    """theta_t = maximum * sigmoid(W v_t + b), W [1, features], b [1]; maximum alone without a net.

    Gates below theta_t count as 0, the others stay as they are (MoA 2025, sparse).
    """

    maximum: float
    prefix: str | None  # of the keys `.weight` and `.bias`; None: no net, theta is the maximum


@dataclass(frozen=True, slots=True)
class GatingNetworkSpec:
    """The router inside one layer: gates g_t [outputs] of every token, before its attention.

    v is what the layer reads, before (pre_norm) or after (post_norm) its first norm.
    linear: z = R v + r, R [outputs, features] under `prefix` + `.weight` and `.bias`.
    swiglu: z = W2 (silu(W1 v + b1) * (W3 v + b3)) + b2, W1 and W3 [hidden, features], W2
    [outputs, hidden] under `.w1.weight`, `.w1.bias` and so on.
    sigmoid: g = sigmoid(z). softmax: g = softmax(z) over the `top_k` highest, 0 elsewhere.
    scope prompt: v is the mean over the tokens of the request's prompt, and g that of all its
    tokens, those of the answer too.
    Sources: MoA (2025), soft, sparse and instance-level; softmax and top_k as in homogeneous
    mixtures of LoRA.
    """

    layer: str  # the layer's module, e.g. "model.layers.0"
    kind: Literal["linear", "swiglu"]
    input: Literal["pre_norm", "post_norm"]
    outputs: int
    features: int  # the base's hidden size
    prefix: str
    hidden: int = 0  # of swiglu
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    top_k: int | None = None  # of softmax; None: all
    threshold: ThresholdSpec | None = None  # of sigmoid
    scope: Literal["token", "prompt"] = "token"

    @property
    def where(self) -> str:
        """Its name in problems."""
        return f"router of {self.layer}"

    @property
    def wide_rows(self) -> int:
        """Rows of all that reads the layer's input, as one matrix."""
        rows = self.outputs if self.kind == "linear" else 2 * self.hidden
        return rows + (self.threshold is not None and self.threshold.prefix is not None)

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """The keys that it names in the adapter's safetensors, and their tensors' shapes."""
        prefix, features = self.prefix, self.features
        shapes: dict[str, Shape] = {}
        if self.kind == "linear":
            shapes |= _layer(prefix, self.outputs, features)
        else:
            shapes |= _layer(f"{prefix}.w1", self.hidden, features)
            shapes |= _layer(f"{prefix}.w3", self.hidden, features)
            shapes |= _layer(f"{prefix}.w2", self.outputs, self.hidden)
        if self.threshold is not None and self.threshold.prefix is not None:
            shapes |= _layer(self.threshold.prefix, 1, features)
        return shapes

    def problems(self, _: StoreLimits) -> Iterator[Problem]:
        """Numbers of its own that cannot be."""
        yield from size_problems(self.where, {"outputs": self.outputs, "features": self.features})
        if self.kind == "swiglu":
            yield from size_problems(self.where, {"hidden": self.hidden})
        elif self.hidden != 0:
            message = f"is linear and has hidden {self.hidden}: only swiglu has it"
            yield Problem(self.where, message)
        if self.top_k is not None:
            if self.activation != "softmax":
                message = f"has top_k {self.top_k} with {self.activation}: softmax can have it"
                yield Problem(self.where, message)
            elif not 1 <= self.top_k <= self.outputs:
                message = f"has top_k {self.top_k}: give 1 to {self.outputs} (outputs)"
                yield Problem(self.where, message)
        if self.threshold is not None:
            yield from self._threshold_problems(self.threshold.maximum)

    def _threshold_problems(self, maximum: float) -> Iterator[Problem]:
        if self.activation != "sigmoid":
            message = f"has a threshold with {self.activation}: sigmoid can have it"
            yield Problem(self.where, message)
        if not 0 <= maximum <= 1:
            message = f"has a threshold of maximum {maximum:g}: give 0 to 1"
            yield Problem(self.where, message)

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        """The reasons why it cannot act in `base`."""
        layers = [block.path for block in base.blocks]
        yield from place_misfits(self.where, self.layer, "layer", layers, base, hints)
        yield from width_misfits(self.where, self.features, base)


def _layer(prefix: str, out_features: int, in_features: int) -> Mapping[str, Shape]:
    return {f"{prefix}.weight": (out_features, in_features), f"{prefix}.bias": (out_features,)}
