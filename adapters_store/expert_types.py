"""What an adapter is made of: its experts, and the routers inside layers that weigh them.

Pure data. The words of the equations: x_t is what a module reads for token t, w_t the weight of the
adapter in the token's mixture, g_t the gate of an expert there: an output of its layer's router, or
1 without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Placement = Literal["parallel", "serial"]


@dataclass(frozen=True, slots=True)
class Copies:
    """Trained copies of one expert's two sides that are kept apart (AdaMix).

    down, up: the weights of the copies in their average, one a copy, which add up to 1; a side that
    all copies share has one. The tensors of a side then have the copies as a leading dimension.
    Source: Wang et al., "AdaMix" (2022), section 3.
    """

    down: tuple[float, ...]
    up: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LoraExpertSpec:
    """One low-rank pair: delta y = w g scale B (A x), A [rank, in], B [out, rank].

    An adapter may hold several for one module where each has a gate of its own.
    """

    module: str
    rank: int
    scale: float  # alpha / r, or alpha / sqrt(r) for rsLoRA
    in_features: int
    out_features: int
    tensor_a: str  # key of A in the adapter's safetensors
    tensor_b: str  # key of B
    kind: Literal["lora"] = "lora"
    gate: int | None = None  # which output of the layer's router; None: no gate
    copies: Copies | None = None  # down is A, up is B

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return self.module

    @property
    def rows(self) -> int:
        """Rank rows that it takes there."""
        return self.rank


@dataclass(frozen=True, slots=True)
class BottleneckExpertSpec:
    """A bottleneck at a feed-forward module: delta y = w g scale (U act(D v + d) + u).

    D [size, features], d [size], U [features, size], u [features]; a bias may be missing (None).
    parallel: v is what the module reads. serial: v is what it puts out, its own LoRA experts
    included, parallel bottlenecks not. Either way delta y is added to what the module puts out.
    Sources: MoA (2025), parallel adapter; Houlsby et al. (2019) and AdaMix (2022), serial.
    """

    module: str  # the feed-forward module, e.g. "model.layers.0.mlp"
    placement: Placement
    size: int
    features: int
    activation: Activation
    tensor_down: str
    tensor_up: str
    tensor_down_bias: str | None = None
    tensor_up_bias: str | None = None
    scale: float = 1.0
    kind: Literal["bottleneck"] = "bottleneck"
    gate: int | None = None
    copies: Copies | None = None

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return f"{self.module}#{self.placement}"

    @property
    def rows(self) -> int:
        """Rank rows that it takes there: one more for the bias of the way up."""
        return self.size + (self.tensor_up_bias is not None)


@dataclass(frozen=True, slots=True)
class PromptExpertSpec:
    """Learned keys and values beside the cache, with a softmax of their own.

    P [length, features] goes through the base's own k_proj (and k_norm, where there is one) and
    v_proj, without experts and without rotation: K, V [length, kv_heads, head_dim]. For head h
    delta attended_th = w g c_h sum_l softmax_l(q_th . K_l / sqrt(head_dim)) V_l, c [heads], q after
    its experts and rotation; it is added to what o_proj and its experts read.
    Source: MoA (2025), native prompt expert.
    """

    module: str  # the attention module, e.g. "model.layers.0.self_attn"
    length: int
    features: int  # the base's hidden size
    heads: int  # query heads
    tensor_prompt: str
    tensor_head_gates: str  # c
    kind: Literal["prompt"] = "prompt"
    gate: int | None = None

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return f"{self.module}#prompt"

    @property
    def rows(self) -> int:
        """Rank rows that it takes there."""
        return self.length


ExpertSpec = LoraExpertSpec | BottleneckExpertSpec | PromptExpertSpec


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
