"""The seven operations of a set of kernels, as functions that any process can run on any set.

Each check makes the set by its name, as an engine does, and compares it with equations that share
no code with it: 1e-5 of the largest number in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from router_engine.experts.gating import gating_network
from router_engine.kernels.base import Chunk, GatingWeights, Operations, RankFold
from router_engine.kernels.dispatch import KernelRegistry, make_operations
from tests.support.arrow import arrow_weights
from tests.support.expert_oracle import ACT, prompt_attention, router_gates

TOKENS, WIDTH, OUTPUTS, RANK = 6, 32, 24, 4
# Three adapters, of which the second is poison where a check has any; token 0 alone uses it.
OWNER = torch.arange(3).repeat_interleave(RANK)
WEIGHTS = torch.tensor([[0.5, 1.0, 0.0], *([0.7, 0.0, -0.3] for _ in range(TOKENS - 1))])
SPREAD = WEIGHTS[:, OWNER]
POISONED = OWNER == 1
_BLOCK_SIZE = 4
_FAMILY = (4, 2, 16)  # heads, kv heads, head_dim


class Subject:
    """A set of kernels on a device, and random tensors for it, equal for equal seeds."""

    def __init__(self, device: str, name: str) -> None:
        self.device = torch.device(device)
        spec = KernelRegistry.discover().choose(name, self.device, torch.float32)
        self.operations: Operations = make_operations(spec)
        self._generator = torch.Generator().manual_seed(0)

    def values(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device)

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def _assert_contained(found: Tensor, without: Tensor) -> None:
    """Token 0 has the poison, and the others what they have without it."""
    assert not found[0].isfinite().all()
    assert torch.equal(found[1:], without[1:])


def check_low_rank(device: str, name: str) -> None:
    """Sum and linear, into a y that is a slice of a wider tensor."""
    on = Subject(device, name)
    x, whole = on.values(TOKENS, WIDTH), on.values(TOKENS, OUTPUTS + 8)
    y = whole[:, 4:-4]
    a, b, weights = on.values(12, WIDTH), on.values(12, OUTPUTS), on.put(SPREAD)
    expected = y.clone()
    for row in range(12):
        expected += weights[:, row, None] * (x @ a[row])[:, None] * b[row]
    edges = whole[:, [0, 1, 2, 3, -4, -3, -2, -1]].clone()
    on.operations.mix_sum(y, x, a, b, weights, on.operations.row_blocks(weights, 0.6))
    _assert_close(y, expected)
    shrink, expand = on.values(TOKENS, 12), on.values(TOKENS, 12)
    fold = RankFold(shrink, expand, on.put(torch.arange(RANK).repeat(3)), RANK)
    for rank in range(RANK):
        rows = [rank, rank + RANK, rank + 2 * RANK]
        folded = sum(shrink[:, row] * (x @ a[row]) for row in rows)
        for row in rows:
            expected += (expand[:, row] * folded)[:, None] * b[row]
    on.operations.mix_linear(y, x, a, b, fold)
    _assert_close(y, expected)
    assert torch.equal(whole[:, [0, 1, 2, 3, -4, -3, -2, -1]], edges)


def check_poisoned_low_rank(device: str, name: str, number: float) -> None:
    on = Subject(device, name)
    x, y, a, b = (
        on.values(TOKENS, WIDTH),
        on.values(TOKENS, OUTPUTS),
        on.values(12, WIDTH),
        on.values(12, OUTPUTS),
    )
    spread, index = on.put(SPREAD), on.put(torch.arange(RANK).repeat(3))
    for linear in (False, True):
        outputs = []
        for held in (number, 0.0):
            own, mixed = a.masked_fill(on.put(POISONED)[:, None], held), y.clone()
            if linear:
                on.operations.mix_linear(mixed, x, own, b, RankFold(spread, spread, index, RANK))
            else:
                on.operations.mix_sum(mixed, x, own, b, spread)
            outputs.append(mixed)
        _assert_contained(*outputs)


def check_bottleneck(device: str, name: str, activation: Activation) -> None:
    """Two adapters at one site: one with an activation and a bias on the way up, one linear."""
    on = Subject(device, name)
    v, y = on.values(TOKENS, WIDTH), on.values(TOKENS, WIDTH)
    down, up = on.values(4, WIDTH), on.values(WIDTH, 4)
    d, u = on.values(4), on.values(WIDTH)
    a, b = on.values(3, WIDTH), on.values(3, WIDTH)
    weights = on.values(TOKENS, 2)
    expected = y + weights[:, :1] * (ACT[activation](v @ down.T + d) @ up.T + u)
    expected += weights[:, 1:] * (v @ a.T @ b)
    zeros = torch.zeros(1, WIDTH, device=on.device)
    on.operations.mix_bottleneck(
        y,
        v,
        torch.cat([down, zeros, a]),
        torch.cat([up.T, u[None], b]),
        weights.repeat_interleave(on.put(torch.tensor([5, 3])), 1),
        torch.cat([d, zeros[0, :1] + 1, zeros[0, :3]]),
        [(activation, 0, 4)],
    )
    _assert_close(y, expected)


def check_masked_gates_are_tokens_left_out(device: str, name: str) -> None:
    """Sparse: what runs every token with a gate of 0 equals gathering those that are chosen."""
    on = Subject(device, name)
    v, y = on.values(TOKENS, WIDTH), on.values(TOKENS, WIDTH)
    a, b, bias = on.values(4, WIDTH), on.values(4, WIDTH), on.values(4)
    gates = on.values(TOKENS).abs() + 0.1
    gates[::3] = 0
    chosen = gates.nonzero()[:, 0]
    expected, some = y.clone(), y[chosen]
    spread = gates[:, None].expand(-1, 4)
    mix = on.operations.mix_bottleneck
    mix(some, v[chosen], a, b, spread[chosen], bias, [("silu", 0, 4)])
    expected[chosen] = some
    mix(y, v, a, b, spread, bias, [("silu", 0, 4)])
    _assert_close(y, expected)
    assert torch.equal(y[0], expected[0])


def check_serial_bottleneck(device: str, name: str) -> None:
    """It reads y itself as it was before; without a bias."""
    on = Subject(device, name)
    y, a, b = on.values(TOKENS, WIDTH), on.values(4, WIDTH), on.values(4, WIDTH)
    weights = on.values(TOKENS, 4)
    expected = y + ACT["relu"](y @ a.T) * weights @ b
    on.operations.mix_bottleneck(y, y, a, b, weights, None, [("relu", 0, 4)])
    _assert_close(y, expected)


def check_poisoned_bottlenecks(device: str, name: str, number: float) -> None:
    on = Subject(device, name)
    v, y, a, b = (
        on.values(TOKENS, WIDTH),
        on.values(TOKENS, WIDTH),
        on.values(12, WIDTH),
        on.values(12, WIDTH),
    )
    poisoned = on.put(POISONED)
    for where in ("a", "bias"):
        outputs = []
        for held in (number, 0.0):
            own = a.masked_fill(poisoned[:, None], held if where == "a" else 0.0)
            bias = torch.zeros(12, device=on.device)
            bias = bias.masked_fill(poisoned, held if where == "bias" else 0.0)
            mixed = y.clone()
            spread = on.put(SPREAD)
            on.operations.mix_bottleneck(mixed, v, own, b, spread, bias, [("silu", 0, 8)])
            outputs.append(mixed)
        assert torch.equal(outputs[0][1:], outputs[1][1:])


def check_prompts(device: str, name: str) -> None:
    """Two prompts in one step, each with its own softmax; the query as attention hands it over."""
    on = Subject(device, name)
    heads, kv_heads, dim = _FAMILY
    query = on.values(heads, TOKENS, dim).transpose(0, 1)
    attended = on.values(TOKENS, heads, dim)
    weights = on.values(TOKENS, 2)
    expected = attended.clone()
    rows: list[tuple[Tensor, Tensor]] = []
    for index, length in enumerate((5, 3)):
        keys, values = on.values(2, length, kv_heads, dim)
        c = on.values(heads)
        added = prompt_attention(query.transpose(0, 1), keys, values, c).transpose(0, 1)
        expected += weights[:, index, None, None] * added
        shared = values.repeat_interleave(heads // kv_heads, 1) * c[:, None]
        rows.append((keys.flatten(1), shared.flatten(1)))
    keys, values = (torch.cat(parts) for parts in zip(*rows, strict=True))
    spread = weights.repeat_interleave(on.put(torch.tensor([5, 3])), 1)
    on.operations.attend_prompts(attended, query, keys, values, spread, (5, 3))
    _assert_close(attended, expected)


def check_poisoned_prompts(device: str, name: str, number: float) -> None:
    on = Subject(device, name)
    heads, kv_heads, dim = _FAMILY
    query, attended = on.values(TOKENS, heads, dim), on.values(TOKENS, heads, dim)
    keys, values = on.values(12, kv_heads * dim), on.values(12, heads * dim)
    outputs = []
    for held in (number, 0.0):
        mixed = attended.clone()
        own = keys.masked_fill(on.put(POISONED)[:, None], held)
        on.operations.attend_prompts(mixed, query, own, values, on.put(SPREAD), [RANK] * 3)
        outputs.append(mixed)
    assert torch.equal(outputs[0][1:], outputs[1][1:])


def check_gating(device: str, name: str, spec: GatingNetworkSpec) -> None:
    on = Subject(device, name)
    network, tensors = network_of(spec, on.values)
    v = on.values(TOKENS, WIDTH)
    gates = on.operations.gating(v, network)
    _assert_close(gates, router_gates(spec, tensors, v))
    if spec.activation == "softmax":
        assert ((gates > 0).sum(1) == (spec.top_k or spec.outputs)).all()
    if spec.threshold is not None:  # negative control: it does cut some and leaves some
        assert 0 < int((gates == 0).sum()) < gates.numel()


def network_of(
    spec: GatingNetworkSpec, values: Callable[..., Tensor]
) -> tuple[GatingWeights, dict[str, Tensor]]:
    """Random weights of a spec as the kernels read them, and by their names."""
    outputs, hidden = spec.outputs, spec.hidden
    shapes = {"r": (outputs, WIDTH)}
    if spec.kind == "swiglu":
        shapes = {"r.w1": (hidden, WIDTH), "r.w3": (hidden, WIDTH)}
    if spec.threshold is not None and spec.threshold.prefix is not None:
        shapes[spec.threshold.prefix] = (1, WIDTH)
    tensors = {f"{name}.weight": values(*shape) * 0.3 for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": values(shape[0]) for name, shape in shapes.items()}
    wide = torch.cat([tensors[f"{name}.weight"] for name in shapes])
    wide_bias = torch.cat([tensors[f"{name}.bias"] for name in shapes])
    if spec.kind == "linear":
        return gating_network(spec, wide, wide_bias).network, tensors
    narrow, narrow_bias = values(outputs, hidden), values(outputs)
    tensors |= {"r.w2.weight": narrow, "r.w2.bias": narrow_bias}
    return gating_network(spec, wide, wide_bias, narrow, narrow_bias).network, tensors


def check_a_gate_that_is_no_number(device: str, name: str, spec: GatingNetworkSpec) -> None:
    """By a threshold it is not closed: who uses the expert would not hear of the poison."""
    on = Subject(device, name)
    network, _ = network_of(spec, on.values)
    v = on.values(TOKENS, WIDTH)
    healthy = on.operations.gating(v, network)
    network.wide[-1] = torch.nan  # of the threshold's own network, or of the last gate
    found = on.operations.gating(v, network)
    assert healthy.isfinite().all()
    if network.threshold == "network":
        assert found.isnan().all()
    else:
        assert torch.equal(found[:, 0], healthy[:, 0])
        assert found[:, -1].isnan().all()


def check_layer_routing(device: str, name: str) -> None:
    """Candidates, top_k and temperature differ by token; one token is not routed, one adapter has
    no rows here.
    """
    on = Subject(device, name)
    x, a, prototype = on.values(TOKENS, WIDTH), on.values(12, WIDTH), on.values(12)
    candidates = torch.ones(TOKENS, 4, dtype=torch.bool)
    candidates[1, 2] = candidates[2, :2] = False
    top_k = torch.tensor([2, 3, 1, 0, 4, 2], dtype=torch.int32)
    temperature = torch.tensor([1.0, 0.5, 2.0, 1.0, 5.0, 1.0])
    weights = on.operations.layer_routing(
        x, a, prototype, *(on.put(part) for part in (OWNER, candidates, top_k, temperature))
    )
    directions = torch.stack(
        [prototype[part] @ a[part] for part in torch.split(torch.arange(12), RANK)]
    )
    for token in range(TOKENS):
        allowed = candidates[token, :3].nonzero()[:, 0]
        expected = torch.zeros(4, device=on.device)
        if top_k[token] > 0:
            own = arrow_weights(
                x[token], directions[allowed], int(top_k[token]), float(temperature[token])
            )
            expected[allowed] = own
        torch.testing.assert_close(weights[token], expected, rtol=0, atol=1e-4)
    assert weights[3].abs().sum() == 0


def check_poisoned_candidates(device: str, name: str, number: float) -> None:
    """A token reads its own candidates alone."""
    on = Subject(device, name)
    x, a, prototype = on.values(TOKENS, WIDTH), on.values(12, WIDTH), on.values(12)
    candidates = torch.tensor([[True] * 3, *([True, False, True] for _ in range(TOKENS - 1))])
    top_k, temperature = torch.full((TOKENS,), 2, dtype=torch.int32), torch.ones(TOKENS)
    parts = [on.put(part) for part in (OWNER, candidates, top_k, temperature)]
    outputs = [
        on.operations.layer_routing(
            x, a.masked_fill(on.put(POISONED)[:, None], held), prototype, *parts
        )
        for held in (number, 0.0)
    ]
    _assert_contained(*outputs)


def check_attention(device: str, name: str, window: int | None) -> None:
    """Chunks that begin after others and single tokens, over blocks that lie in no order."""
    on = Subject(device, name)
    chunks, own = _chunks()
    query, keys, values = _cache(on)
    scale = 0.3
    found = on.operations.attention(chunks, _BLOCK_SIZE, on.device).attend(
        query, keys, values, scale, window
    )
    expected = torch.zeros_like(found)
    for chunk, slots in zip(chunks, own, strict=True):
        for index in range(chunk.length):
            position = chunk.start + index
            first = 0 if window is None else max(0, position - window + 1)
            seen = slots[first : position + 1]
            for head in range(_FAMILY[0]):
                scores = keys[seen, head // 2] @ query[chunk.first + index, head] * scale
                expected[chunk.first + index, head] = scores.softmax(0) @ values[seen, head // 2]
    _assert_close(found, expected)


def check_slots_of_others(device: str, name: str, window: int | None, number: float) -> None:
    """Single tokens at once, of which the longest pads the others; block 0 belongs to nobody."""
    on = Subject(device, name)
    chunks, slots = _chunks()
    query, keys, values = _cache(on)
    own = torch.zeros(len(keys), dtype=torch.bool)
    own[[slot for each in slots for slot in each]] = True
    others = ~on.put(own)[:, None, None]
    attention = on.operations.attention(chunks, _BLOCK_SIZE, on.device)
    outputs = [
        attention.attend(
            query, keys.masked_fill(others, held), values.masked_fill(others, held), 0.25, window
        )
        for held in (number, 0.0)
    ]
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def _chunks() -> tuple[list[Chunk], list[Sequence[int]]]:
    """Chunks of a flat batch of 6, and the slots of each one's positions."""
    chunks = [Chunk(0, 0, 1, (3,)), Chunk(1, 5, 1, (1, 4)), Chunk(2, 9, 1, (5, 6, 2))]
    chunks.append(Chunk(3, 2, 3, (7, 8)))
    slots = [
        [
            chunk.block_ids[position // _BLOCK_SIZE] * _BLOCK_SIZE + position % _BLOCK_SIZE
            for position in range(chunk.stop)
        ]
        for chunk in chunks
    ]
    return chunks, [*slots]


def _cache(on: Subject) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, dim = _FAMILY
    return on.values(6, heads, dim), on.values(36, kv_heads, dim), on.values(36, kv_heads, dim)
