"""Every Triton kernel against the reference, as functions that any process can run.

They run in the interpreter, in a process of its own that has TRITON_INTERPRET set before it imports
triton, and on a GPU in the tests' own process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from router_engine.kernels.base import Chunk, RankFold
from router_engine.kernels.reference import low_rank as reference
from router_engine.kernels.reference.attention import TorchAttention
from router_engine.kernels.triton import fused
from router_engine.kernels.triton.attention_work import Cutting, cut
from router_engine.kernels.triton.grouped import (
    AdapterTable,
    Group,
    Tiles,
    mix_group,
    mix_group_linear,
)
from router_engine.kernels.triton.triton_attention import (
    AttentionWork,
    PagedAttention,
    attend,
    packed,
)
from router_engine.kernels.triton.triton_low_rank import group_tokens, row_blocks
from router_engine.kernels.triton.triton_operations import TritonOperations

# Largest difference from the reference, as a share of its largest value. Both sides round to the
# dtype in other places, so the half precisions differ by some units of their last place.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}

_BLOCK_SIZE = 4


class Inputs:
    """Random tensors of one dtype on one device, equal for equal seeds."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._generator = torch.Generator().manual_seed(0)
        self._tolerance = TOLERANCE[dtype]

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device)

    def values(self, *shape: int) -> Tensor:
        return self.floats(*shape).to(self.dtype)

    def weights(self, tokens: int, rows: int, fill: float) -> Tensor:
        """fp32 weights, of which a share `fill` is not zero."""
        kept = torch.rand(tokens, rows, generator=self._generator) < fill
        return self.floats(tokens, rows) * kept.to(self.device)

    def shuffled(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self._generator).tolist()

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if ours.numel() == 0:
            return
        ours, theirs = ours.float(), theirs.float()
        largest = max(float(theirs.abs().max()), 1e-6)
        difference = float((ours - theirs).abs().max()) / largest
        assert difference <= self._tolerance, f"differs by {difference:.2e} of the largest value"


def check_mix_sum(
    device: str,
    dtype: str,
    tokens: int,
    shape: tuple[int, int],
    rows: int,
    fill: float,
    *,
    grouped: bool,
) -> None:
    """Dense or grouped by expert, into a y that is a slice of a wider tensor."""
    inputs = Inputs(device, dtype)
    width, outputs = shape
    x, a, b = inputs.values(tokens, width), inputs.values(rows, width), inputs.values(rows, outputs)
    weights = inputs.weights(tokens, rows, fill)
    whole = inputs.values(tokens, outputs + 8)
    expected = whole.clone()
    blocks = group_tokens(weights) if grouped else None
    TritonOperations().mix_sum(whole[:, 4:-4], x, a, b, weights, blocks)
    reference.mix_sum(expected[:, 4:-4], x, a, b, weights)
    inputs.agree(whole, expected)


def check_segments(device: str, tokens: int, ranks: Sequence[int]) -> None:
    """Tokens that belong to one adapter each, ranks mixed: no tile meets all row blocks."""
    inputs = Inputs(device, "float32")
    owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)).to(inputs.device)
    mine = torch.tensor([inputs.shuffled(len(ranks))[0] for _ in range(tokens)])
    weights = (owner[None, :] == mine.to(inputs.device)[:, None]).float()
    blocks = group_tokens(weights)
    assert sorted(blocks.order[blocks.order < tokens].tolist()) == list(range(tokens))
    assert int(blocks.counts.sum()) < blocks.blocks.numel(), "nothing would be skipped"
    rows = len(owner)
    x, a, b = inputs.values(tokens, 32), inputs.values(rows, 32), inputs.values(rows, 24)
    y = inputs.values(tokens, 24)
    expected = y.clone()
    TritonOperations().mix_sum(y, x, a, b, weights, blocks)
    reference.mix_sum(expected, x, a, b, weights)
    inputs.agree(y, expected)


def check_choice_by_cost(device: str) -> None:
    """The cost rule: full weights, few of them or a high threshold decide which form runs."""
    weights = Inputs(device, "float32").weights(256, 256, 0.1)
    assert row_blocks(weights, fill=0.1) is not None
    assert row_blocks(weights, fill=1.0) is None
    assert row_blocks(weights, fill=0.1, sparse_below=0.05) is None
    assert row_blocks(weights[:4, :16], fill=0.1) is None


def check_mix_linear(device: str, dtype: str, tokens: int, ranks: Sequence[int]) -> None:
    inputs = Inputs(device, dtype)
    rows = sum(ranks)
    # Wide enough for the inner dimension to be split among programs.
    x, a, b = inputs.values(tokens, 520), inputs.values(rows, 520), inputs.values(rows, 40)
    index = torch.cat([torch.arange(rank) for rank in ranks]).to(inputs.device)
    shrink, expand = inputs.weights(tokens, rows, 0.7), inputs.weights(tokens, rows, 0.7)
    y = inputs.values(tokens, 40)
    expected = y.clone()
    fold = RankFold(shrink, expand, index, max(ranks))
    TritonOperations().mix_linear(y, x, a, b, fold)
    reference.mix_linear(expected, x, a, b, fold)
    inputs.agree(y, expected)


def check_mix_group(
    device: str, dtype: str, tokens: int, ranks: Sequence[Sequence[int]], *, linear: bool
) -> None:
    """Modules with the same input in one launch; `ranks`: those of each adapter, by module.

    Slots are taken in any order, others' slots hold no address, and a list holds more tiles than
    are in use. One adapter acts on no token at all, half of the tokens run under one alone.
    """
    inputs = Inputs(device, dtype)
    width, widths = 520, (32, 16, 24)[: len(ranks)]
    x, y = inputs.values(tokens, width), inputs.values(tokens, sum(widths))
    weights = inputs.weights(tokens, 8, 0.6)
    weights[tokens // 2 :, 1:] = 0
    expected = y.clone()
    slots, columns = inputs.shuffled(8), max(len(own) for own in ranks)
    addresses = torch.zeros(8, 2 + len(ranks), 2, dtype=torch.int64)
    held = torch.zeros(8, 2 + len(ranks), dtype=torch.int32)
    roots = 0.5 + torch.rand(8, 2 + len(ranks))
    kept: list[Tensor] = []
    first = 0
    for module, (own, outputs) in enumerate(zip(ranks, widths, strict=True)):
        part = expected[:, first : first + outputs]
        for column, rank in enumerate(own):
            a, b = inputs.values(rank, width), inputs.values(rank, outputs)
            kept += a, b
            addresses[slots[column], 2 + module] = torch.tensor([a.data_ptr(), b.data_ptr()])
            held[slots[column], 2 + module] = rank
        if own:
            owner = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
            both = torch.cat(kept[-2 * len(own) :: 2]), torch.cat(kept[1 - 2 * len(own) :: 2])
            spread = weights[:, owner.to(inputs.device)]
            if linear:
                root = roots[slots, 2 + module][owner].to(inputs.device)
                index = torch.cat([torch.arange(rank) for rank in own]).to(inputs.device)
                fold = RankFold(spread * root, spread / root, index, max(own))
                reference.mix_linear(part, x, *both, fold)
            else:
                reference.mix_sum(part, x, *both, spread)
        first += outputs
    most = [max((own[c] for own in ranks if c < len(own)), default=0) for c in range(columns)]
    places = [(slots[c], c, at) for c, rank in enumerate(most) for at in range(0, rank, 16)]
    tiles = _tiles(places, 8, inputs.device)
    table = AdapterTable(*(part.to(inputs.device) for part in (addresses, held, roots)))
    group = Group.of(tuple("qkv"[: len(ranks)]), width, widths, 2, inputs.device)
    mix = mix_group_linear if linear else mix_group
    mix(y, x, weights, group, table, tiles)
    inputs.agree(y, expected)


def _tiles(places: Sequence[tuple[int, int, int]], capacity: int, device: torch.device) -> Tiles:
    padded = [*places, *[(7, 7, 0)] * (capacity - len(places))]
    return Tiles(
        torch.tensor(padded, dtype=torch.int32, device=device),
        torch.tensor([len(places)], dtype=torch.int32, device=device),
    )


def check_attention(
    device: str,
    dtype: str,
    heads: tuple[int, int, int],
    spans: Sequence[tuple[int, int]],
    window: int | None,
    programs: int | None,
) -> None:
    """heads: query heads, kv heads, dimension. spans: (start, length) of each request."""
    inputs = Inputs(device, dtype)
    query_heads, kv_heads, dim = heads
    free = inputs.shuffled(64)
    chunks: list[Chunk] = []
    first = 0
    for start, length in spans:
        blocks = [free.pop() for _ in range(-(-(start + length) // _BLOCK_SIZE))]
        chunks.append(Chunk(first, start, length, tuple(blocks)))
        first += length
    keys = inputs.values(64 * _BLOCK_SIZE, kv_heads, dim)
    values = inputs.values(64 * _BLOCK_SIZE, kv_heads, dim)
    # A slice of a fused q, k, v, as the decoder has it.
    query = inputs.values(first, query_heads + 2, dim)[:, :query_heads]
    attention = PagedAttention(chunks, _BLOCK_SIZE, inputs.device, programs=programs)
    ours = attention.attend(query, keys, values, dim**-0.5, window)
    theirs = TorchAttention(chunks, _BLOCK_SIZE, inputs.device)
    inputs.agree(ours, theirs.attend(query, keys, values, dim**-0.5, window))


def check_places_without_work(device: str) -> None:
    """In a list with more room than work, tokens that no item has are left as they are."""
    inputs = Inputs(device, "float32")
    keys, values = inputs.values(16, 1, 16), inputs.values(16, 1, 16)
    query, output = inputs.values(2, 2, 16), inputs.values(2, 2, 16)
    before = output.clone()
    tables = torch.tensor([[3], [0]], dtype=torch.int32, device=inputs.device)
    cutting = Cutting(heads=2, tile=1, programs=4)
    room = cutting.room(tokens=2, requests=2)
    host = cut(np.array([1]), np.array([2]), cutting, room)
    buffer = torch.from_numpy(packed(host, room.items, room.joins)).to(inputs.device)
    work = AttentionWork.over(buffer, room.items, room.rows, decodes=True)
    attend(query, keys, values, output, tables, work, _BLOCK_SIZE, 0.25, None)
    assert torch.equal(output[1], before[1])
    alone = PagedAttention([Chunk(0, 1, 1, (3,))], _BLOCK_SIZE, inputs.device)
    inputs.agree(output[:1], alone.attend(query[:1], keys, values, 0.25, None))


def check_norm(device: str, dtype: str, rows: int | None, *, add: bool) -> None:
    inputs = Inputs(device, dtype)
    x, residual, weight = inputs.values(5, 72), inputs.values(5, 72), inputs.values(72)
    total = residual + x if add else x.clone()
    ours = fused.norm(x, residual, weight, 1e-5, add=add, rows=rows)
    inputs.agree(residual, total)
    inputs.agree(ours, _rms_norm(total, weight, 1e-5))


def check_rotation(device: str, dtype: str, rows: int | None, *, norm: bool) -> None:
    """q rotated in place; k rotated and v as it is at their slots; slot -1 stores nothing."""
    inputs = Inputs(device, dtype)
    heads, kv_heads, dim, tokens = 3, 2, 24, 4
    angles = inputs.floats(16, dim // 2)
    cosines, sines = angles.cos().to(inputs.dtype), angles.sin().to(inputs.dtype)
    positions = torch.tensor([9, 0, 15, 3], dtype=torch.int32, device=inputs.device)
    slots = torch.tensor([7, 2, -1, 0], dtype=torch.int32, device=inputs.device)
    qkv = inputs.values(tokens, (heads + 2 * kv_heads) * dim)
    q_norm, k_norm = (inputs.values(dim) if norm else None for _ in range(2))
    whole = qkv.clone().view(tokens, -1, dim)
    q, k, v = whole[:, :heads], whole[:, heads:-kv_heads], whole[:, -kv_heads:]
    q, k = (
        part if weight is None else _rms_norm(part, weight, 1e-6)
        for part, weight in ((q, q_norm), (k, k_norm))
    )
    both = (torch.cat((one[positions.long()],) * 2, dim=1) for one in (cosines, sines))
    q, k = apply_rotary_pos_emb(q, k, *both, unsqueeze_dim=1)
    keys, values = inputs.values(8, kv_heads, dim), inputs.values(8, kv_heads, dim)
    expected_keys, expected_values = keys.clone(), values.clone()
    stored = [0, 1, 3]
    expected_keys[slots[stored].long()] = k[stored]
    expected_values[slots[stored].long()] = v[stored]
    rotation = fused.Rotation(cosines, sines, heads, kv_heads, q_norm, k_norm, epsilon=1e-6)
    fused.rotate_and_store(qkv, positions, slots, rotation, keys, values, rows=rows)
    inputs.agree(qkv.view(tokens, -1, dim)[:, :heads], q)
    inputs.agree(keys, expected_keys)
    inputs.agree(values, expected_values)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """transformers' norm over the last dimension."""
    module = LlamaRMSNorm(x.shape[-1], eps=epsilon)
    module.weight = torch.nn.Parameter(weight)
    normed: Tensor = module(x)
    return normed.detach()


def check_silu(device: str, dtype: str, rows: int | None) -> None:
    inputs = Inputs(device, dtype)
    gate_up = inputs.values(3, 2 * 40)
    expected = functional.silu(gate_up[:, :40]) * gate_up[:, 40:]
    inputs.agree(fused.silu_mul(gate_up, rows=rows), expected)


def check_zero_weights(device: str, number: float) -> None:
    """Rows of weight 0 that hold `number`, and slots of nobody, are to others what zeros are."""
    inputs = Inputs(device, "float32")
    tokens, rows = 5, 32
    x, y = inputs.values(tokens, 48), inputs.values(tokens, 40)
    a, b, weights = inputs.values(rows, 48), inputs.values(rows, 40), inputs.floats(tokens, rows)
    weights[1:, 3:20] = 0  # token 0 alone uses them
    index = torch.arange(16, device=inputs.device).repeat(2)
    found: list[list[Tensor]] = []
    for held in (number, 0.0):
        a[3:20] = held
        dense, grouped, linear = (y.clone() for _ in range(3))
        operations = TritonOperations()
        operations.mix_sum(dense, x, a, b, weights)
        operations.mix_sum(grouped, x, a, b, weights, group_tokens(weights))
        operations.mix_linear(linear, x, a, b, RankFold(weights, weights, index, 16))
        found.append([dense, grouped, linear, _mixed_by_table(x, y, a, b, weights)])
    for poisoned, healthy in zip(*found, strict=True):
        assert not poisoned[0].isfinite().all()
        assert torch.equal(poisoned[1:], healthy[1:])
    _check_slots_of_nobody(inputs, number)


def _mixed_by_table(x: Tensor, y: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Every row an adapter of its own."""
    rows = torch.arange(len(a), device=x.device)
    addresses = [each.data_ptr() + rows * each.stride(0) * each.itemsize for each in (a, b)]
    table = AdapterTable(
        torch.stack(addresses, dim=-1)[:, None],
        torch.ones(len(a), 1, dtype=torch.int32).to(x.device),
        torch.ones(len(a), 1).to(x.device),
    )
    mixed = y.clone()
    group = Group.of(("q",), x.shape[1], (y.shape[1],), 0, x.device)
    tiles = _tiles([(row, row, 0) for row in range(len(a))], len(a), x.device)
    mix_group(mixed, x, weights, group, table, tiles)
    return mixed


def _check_slots_of_nobody(inputs: Inputs, number: float) -> None:
    """One request of 6 positions in blocks 2 and 1, in one part and in several."""
    chunks = [Chunk(0, 5, 1, (2, 1))]
    own = torch.zeros(16, dtype=torch.bool, device=inputs.device)
    own[[8, 9, 10, 11, 4, 5]] = True
    query, keys, values = (
        inputs.values(1, 2, 16),
        inputs.values(16, 1, 16),
        inputs.values(16, 1, 16),
    )
    for programs in (None, 2):
        poisoned, healthy = (
            PagedAttention(chunks, _BLOCK_SIZE, inputs.device, programs=programs).attend(
                query,
                keys.masked_fill(~own[:, None, None], held),
                values.masked_fill(~own[:, None, None], held),
                0.25,
                None,
            )
            for held in (number, 0.0)
        )
        assert bool(poisoned.isfinite().all())
        assert torch.equal(poisoned, healthy)
