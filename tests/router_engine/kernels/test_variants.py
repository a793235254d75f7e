"""The kernels that a model's steps may need are a closed list: nothing else is ever compiled."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from router_engine.kernels.base import Chunk
from router_engine.kernels.triton import fused, grouped, triton_attention, triton_low_rank
from router_engine.kernels.triton.fused import Rotation
from router_engine.kernels.triton.grouped import AdapterTable, Group, Tiles
from router_engine.kernels.triton.triton_attention import PagedAttention

CPU = torch.device("cpu")
HIDDEN, WIDE, HEADS, KV_HEADS, HEAD = 256, 704, 8, 2, 32  # 704: no power of two
BLOCK = 16
# By kernel: variants of one model with one table, of plain LoRA.
CLOSED = {
    "norm_kernel": 2,  # the first layer adds nothing
    "rope_kernel": 1,
    "silu_kernel": 1,
    "attend_kernel": 2,  # decodes; prompts
    "combine_kernel": 1,
    "shrink_tiles_kernel": 3,  # by tiles of 16, 32 and 64 tokens
    "expand_tiles_kernel": 3 * 2 + 3,  # and by splits of 1 and 2; of what is folded
    "fold_tiles_kernel": 3 * 2,
}


class Launches:
    """What each launch would have compiled, in place of launching."""

    def __init__(self) -> None:
        self.by_kernel: dict[str, set[object]] = defaultdict(set)
        self.constants: dict[str, set[object]] = defaultdict(set)

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        kinds = tuple(
            None if parameter.do_not_specialize else _kind(argument)
            for parameter, argument in zip(kernel.params, arguments, strict=False)
        )
        constants = tuple(sorted(options.items()))
        self.by_kernel[name].add((kinds, constants))
        self.constants[name].add(constants)


def _kind(argument: object) -> object:
    """What Triton makes a variant of: type, alignment, a 1, a multiple of 16."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return "one" if argument == 1 else ("many", argument % 16 == 0)
    return type(argument)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A card is wanted to be filled, as none that interprets is."""
    made = Launches()
    for module in (fused, grouped, triton_attention, triton_low_rank):
        monkeypatch.setattr(module, "launch", made)
    monkeypatch.setattr(triton_attention, "programs_wanted", lambda: 256)
    return made


def _group(inputs: int, outputs: tuple[int, ...], first: int) -> Group:
    paths = tuple(str(index) for index in range(len(outputs)))
    return Group.of(paths, inputs, outputs, first, CPU)


def _step(draw: random.Random) -> None:
    """One step of a layer: decodes or prompts, any number of adapters, lists as long as they."""
    requests = draw.choice([1, 2, 3, 7, 16, 31, 64, 200])
    longest = draw.choice([1, 1, 2, 5, 48, 300])
    tokens, blocks = requests * longest, draw.randint(20, 90)
    x = torch.empty(tokens, HIDDEN)
    fused.norm(x, torch.empty_like(x), x[0], 1e-5, add=draw.random() < 0.9)
    numbers = torch.zeros(4, tokens, dtype=torch.int32)
    qkv = torch.empty(tokens, (HEADS + 2 * KV_HEADS) * HEAD)
    cache = torch.empty(64, KV_HEADS, HEAD)
    angles = torch.empty(512, HEAD // 2)
    rotation = Rotation(angles, angles, HEADS, KV_HEADS)
    fused.rotate_and_store(qkv, numbers[1], numbers[2], rotation, cache, cache)
    ids = (*range(blocks),)
    chunks = [
        Chunk(longest * index, BLOCK * blocks - longest, longest, ids) for index in range(requests)
    ]
    query = qkv[:, : HEADS * HEAD].view(tokens, HEADS, HEAD)
    PagedAttention(chunks, BLOCK, CPU).attend(query, cache, cache, HEAD**-0.5, None)
    fused.silu_mul(torch.empty(tokens, 2 * WIDE))
    _mix(draw, tokens)


def _mix(draw: random.Random, tokens: int) -> None:
    capacity = draw.choice([1, 2, 3, 4, 5, 16, 33, 64, 250])
    slots = torch.zeros(64, 7, 2, dtype=torch.int64)
    table = AdapterTable(slots, slots[..., 0].int(), slots[..., 0].float())
    held = torch.zeros(1 + 3 * capacity, dtype=torch.int32)
    tiles = Tiles(held[1:].view(capacity, 3), held[:1])
    weights = torch.empty(tokens, draw.randint(1, 40))
    for group in (
        _group(HIDDEN, (HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD), 0),
        _group(HIDDEN, (WIDE, WIDE), 4),
        _group(WIDE, (HIDDEN,), 6),
    ):
        y, x = torch.empty(tokens, sum(group.widths)), torch.empty(tokens, group.width)
        for mix in (grouped.mix_group, grouped.mix_group_linear):
            mix(y, x, weights, group, table, tiles)


@pytest.mark.parametrize("seed", range(4))
def test_random_steps_compile_what_is_listed(seed: int, launches: Launches) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        _step(draw)
    found = {name: len(variants) for name, variants in launches.by_kernel.items()}
    assert found.keys() == CLOSED.keys()
    assert all(found[name] <= most for name, most in CLOSED.items()), found
    assert found == {name: len(constants) for name, constants in launches.constants.items()}
