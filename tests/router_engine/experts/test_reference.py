"""The reference's functions, each against its equation: 1e-5 of the largest number in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from router_engine.experts.gating import gating_network
from router_engine.kernels.base import GatingWeights
from router_engine.kernels.reference.experts import ACTIVATIONS, attend_prompts, mix_bottleneck
from router_engine.kernels.reference.gating_network import gating_values
from tests.support.expert_oracle import ACT, prompt_attention, router_gates

TOKENS, WIDTH, OUTPUTS = 7, 32, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottlenecks(activation: Activation) -> None:
    """Two adapters at one site: one with an activation and a bias on the way up, one linear."""
    v, y = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    down, up = torch.randn(4, WIDTH), torch.randn(WIDTH, 4)
    d, u = torch.randn(4), torch.randn(WIDTH)
    a, b = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    weights = torch.randn(TOKENS, 2)
    expected = y + weights[:, :1] * (ACT[activation](v @ down.T + d) @ up.T + u)
    expected += weights[:, 1:] * (v @ a.T @ b)
    mix_bottleneck(
        y,
        v,
        torch.cat([down, torch.zeros(1, WIDTH), a]),
        torch.cat([up.T, u[None], b]),
        weights.repeat_interleave(torch.tensor([5, 3]), 1),
        torch.cat([d, torch.ones(1), torch.zeros(3)]),
        [(activation, 0, 4)],
    )
    _assert_close(y, expected)


def _router(spec: GatingNetworkSpec) -> tuple[GatingWeights, dict[str, Tensor]]:
    outputs, hidden = spec.outputs, spec.hidden
    shapes = {"r": (outputs, WIDTH)}
    if spec.kind == "swiglu":
        shapes = {"r.w1": (hidden, WIDTH), "r.w3": (hidden, WIDTH)}
    if spec.threshold is not None and spec.threshold.prefix is not None:
        shapes[spec.threshold.prefix] = (1, WIDTH)
    tensors = {f"{name}.weight": torch.randn(*shape) * 0.3 for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    wide = torch.cat([tensors[f"{name}.weight"] for name in shapes])
    wide_bias = torch.cat([tensors[f"{name}.bias"] for name in shapes])
    if spec.kind == "linear":
        return gating_network(spec, wide, wide_bias).network, tensors
    w2, bias2 = torch.randn(outputs, hidden), torch.randn(outputs)
    tensors |= {"r.w2.weight": w2, "r.w2.bias": bias2}
    return gating_network(spec, wide, wide_bias, w2, bias2).network, tensors


@pytest.mark.parametrize("kind", ["linear", "swiglu"])
@pytest.mark.parametrize("threshold", [None, ThresholdSpec(0.5, None), ThresholdSpec(1.0, "t")])
def test_sigmoid_routers(kind: str, threshold: ThresholdSpec | None) -> None:
    spec = GatingNetworkSpec(
        "layer",
        "linear" if kind == "linear" else "swiglu",
        "pre_norm",
        OUTPUTS,
        WIDTH,
        "r",
        hidden=12 if kind == "swiglu" else 0,
        threshold=threshold,
    )
    router, tensors = _router(spec)
    v = torch.randn(TOKENS, WIDTH)
    gates = gating_values(router, v)
    _assert_close(gates, router_gates(spec, tensors, v))
    if threshold is not None:  # negative control: it does cut some and leaves some
        assert 0 < int((gates == 0).sum()) < gates.numel()


@pytest.mark.parametrize("top_k", [None, 1, 3, OUTPUTS])
def test_softmax_routers(top_k: int | None) -> None:
    spec = GatingNetworkSpec(
        "layer", "linear", "post_norm", OUTPUTS, WIDTH, "r", activation="softmax", top_k=top_k
    )
    router, tensors = _router(spec)
    v = torch.randn(TOKENS, WIDTH)
    gates = gating_values(router, v)
    _assert_close(gates, router_gates(spec, tensors, v))
    assert ((gates > 0).sum(1) == (top_k or OUTPUTS)).all()


def test_prompts() -> None:
    """Two prompts in one step, each with its own softmax; the query as attention hands it over."""
    heads, kv_heads, dim = 4, 2, 8
    query = torch.randn(heads, TOKENS, dim).transpose(0, 1)
    attended = torch.randn(TOKENS, heads, dim)
    weights = torch.randn(TOKENS, 2)
    expected = attended.clone()
    rows: list[tuple[Tensor, Tensor]] = []
    for index, length in enumerate((5, 3)):
        keys, values = torch.randn(2, length, kv_heads, dim)
        c = torch.randn(heads)
        added = prompt_attention(query.transpose(0, 1), keys, values, c).transpose(0, 1)
        expected += weights[:, index, None, None] * added
        shared = values.repeat_interleave(heads // kv_heads, 1) * c[:, None]
        rows.append((keys.flatten(1), shared.flatten(1)))
    keys, values = (torch.cat(parts) for parts in zip(*rows, strict=True))
    spread = weights.repeat_interleave(torch.tensor([5, 3]), 1)
    attend_prompts(attended, query, keys, values, spread, (5, 3))
    _assert_close(attended, expected)


def test_masked_gates_are_tokens_left_out() -> None:
    """Sparse: what runs every token with a gate of 0 equals gathering those that are chosen."""
    v, y = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    a, b, bias = torch.randn(4, WIDTH), torch.randn(4, WIDTH), torch.randn(4)
    gates = torch.where(torch.arange(TOKENS) % 3 == 0, 0.0, torch.rand(TOKENS) + 0.1)
    chosen = gates.nonzero()[:, 0]
    expected = y.clone()
    some = y[chosen]
    mix_bottleneck(some, v[chosen], a, b, gates[chosen, None].expand(-1, 4), bias, [("silu", 0, 4)])
    expected[chosen] = some
    mix_bottleneck(y, v, a, b, gates[:, None].expand(-1, 4), bias, [("silu", 0, 4)])
    _assert_close(y, expected)
    assert torch.equal(y[0], expected[0])
