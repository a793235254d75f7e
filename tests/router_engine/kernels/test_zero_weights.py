"""What a token does not use never reaches it, kernel by kernel: with poison in the rows of weight 0
the numbers are those with zeros there, to the bit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from router_engine.experts.base import ExpertRows
from router_engine.experts.contained import contained
from router_engine.experts.gating import gating_network
from router_engine.kernels.base import Chunk, RankFold
from router_engine.kernels.reference.attention import TorchAttention
from router_engine.kernels.reference.experts import attend_prompts, mix_bottleneck
from router_engine.kernels.reference.gating_network import gating_values
from router_engine.kernels.reference.layer_routing import layer_routing_weights
from router_engine.kernels.reference.low_rank import mix_linear, mix_sum
from tests.router_engine.kernels import triton_checks as checks
from tests.router_engine.kernels.triton_process import Run

TOKENS, WIDTH, OUTPUTS, RANK = 6, 32, 24, 4
NUMBERS = (3e38, -3e38, torch.inf, -torch.inf, torch.nan)
# The second adapter is poison; token 0 alone uses it.
OWNER = torch.arange(3).repeat_interleave(RANK)
WEIGHTS = torch.tensor([[0.5, 1.0, 0.0], *([0.7, 0.0, -0.3] for _ in range(TOKENS - 1))])
SPREAD = WEIGHTS[:, OWNER]
POISONED = OWNER == 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _rows(width: int) -> Tensor:
    return torch.randn(len(OWNER), width)


def _assert_contained(found: Tensor, without: Tensor) -> None:
    """Token 0 has the poison, and the others what they have without it."""
    assert not found[0].isfinite().all()
    assert torch.equal(found[1:], without[1:])


@pytest.mark.parametrize("number", NUMBERS)
def test_low_rank_experts(number: float) -> None:
    x, y, a, b = (
        torch.randn(TOKENS, WIDTH),
        torch.randn(TOKENS, OUTPUTS),
        _rows(WIDTH),
        _rows(OUTPUTS),
    )
    rank_index = torch.arange(RANK).repeat(3)
    for linear in (False, True):
        outputs = []
        for held in (number, 0.0):
            own, mixed = a.masked_fill(POISONED[:, None], held), y.clone()
            if linear:
                mix_linear(mixed, x, own, b, RankFold(SPREAD, SPREAD, rank_index, RANK))
            else:
                mix_sum(mixed, x, own, b, SPREAD)
            outputs.append(mixed)
        _assert_contained(*outputs)


@pytest.mark.parametrize("number", NUMBERS)
def test_bottlenecks(number: float) -> None:
    v, y, a, b = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH), _rows(WIDTH), _rows(WIDTH)
    for where in ("a", "bias"):
        outputs = []
        for held in (number, 0.0):
            own = a.masked_fill(POISONED[:, None], held if where == "a" else 0.0)
            bias = torch.zeros(len(OWNER)).masked_fill(POISONED, held if where == "bias" else 0.0)
            mixed = y.clone()
            mix_bottleneck(mixed, v, own, b, SPREAD, bias, [("silu", 0, 8)])
            outputs.append(mixed)
        assert torch.equal(outputs[0][1:], outputs[1][1:])


@pytest.mark.parametrize("number", NUMBERS)
def test_prompts(number: float) -> None:
    heads, kv_heads, dim = 4, 2, 16
    query, attended = torch.randn(TOKENS, heads, dim), torch.randn(TOKENS, heads, dim)
    keys, values = _rows(kv_heads * dim), _rows(heads * dim)
    outputs = []
    for held in (number, 0.0):
        mixed = attended.clone()
        own = keys.masked_fill(POISONED[:, None], held)
        attend_prompts(mixed, query, own, values, SPREAD, [RANK] * 3)
        outputs.append(mixed)
    assert torch.equal(outputs[0][1:], outputs[1][1:])


@pytest.mark.parametrize("number", NUMBERS)
def test_gates_read_candidates_alone(number: float) -> None:
    x, a, prototype = torch.randn(TOKENS, WIDTH), _rows(WIDTH), torch.randn(len(OWNER))
    candidates = torch.tensor([[True] * 3, *([True, False, True] for _ in range(TOKENS - 1))])
    top_k = torch.full((TOKENS,), 2)
    outputs = [
        layer_routing_weights(
            x,
            a.masked_fill(POISONED[:, None], held),
            prototype,
            OWNER,
            candidates,
            top_k,
            torch.ones(TOKENS),
        )
        for held in (number, 0.0)
    ]
    _assert_contained(*outputs)


@pytest.mark.parametrize("prefix", [None, "net"])
def test_a_gate_that_is_not_a_number_is_not_closed(prefix: str | None) -> None:
    """By a threshold, that is; were it, who uses the expert would not hear of the poison."""
    threshold = ThresholdSpec(0.5, prefix)
    spec = GatingNetworkSpec(
        "l", "linear", "post_norm", 2, WIDTH, "r", hidden=0, activation="sigmoid",
        top_k=None, threshold=threshold, scope="token",
    )  # fmt: skip
    rows = 3 if prefix else 2
    network = gating_network(spec, torch.randn(rows, WIDTH), torch.zeros(rows)).network
    spoilt = replace(network, wide=network.wide.clone())
    spoilt.wide[-1] = torch.nan  # of the net, or of the second gate
    v = torch.randn(TOKENS, WIDTH)
    healthy, found = gating_values(network, v), gating_values(spoilt, v)
    assert healthy.isfinite().all()
    if prefix:
        assert found.isnan().all()
    else:
        assert torch.equal(found[:, 0], healthy[:, 0])
        assert found[:, 1].isnan().all()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("window", [None, 3])
def test_slots_of_others_and_past_the_context(window: int | None, number: float) -> None:
    """Single tokens at once, of which the longest pads the others; block 0 belongs to nobody."""
    size = 4
    chunks = [Chunk(0, 0, 1, (3,)), Chunk(1, 5, 1, (1, 4)), Chunk(2, 9, 1, (5, 6, 2))]
    chunks.append(Chunk(3, 2, 3, (7, 8)))
    own = torch.zeros(9 * size, dtype=torch.bool)
    for chunk in chunks:
        for position in range(chunk.stop):
            own[chunk.block_ids[position // size] * size + position % size] = True
    query, keys, values = (torch.randn(n, heads, 16) for n, heads in ((6, 4), (36, 2), (36, 2)))
    attention = TorchAttention(chunks, size, torch.device("cpu"))
    outputs = [
        attention.attend(
            query,
            keys.masked_fill(~own[:, None, None], held),
            values.masked_fill(~own[:, None, None], held),
            0.25,
            window,
        )
        for held in (number, 0.0)
    ]
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def test_what_is_not_finite_in_b_is_kept_where_weights_select() -> None:
    a, b = torch.randn(4, WIDTH), torch.randn(4, OUTPUTS)
    healthy = ExpertRows(a, b, 1.0, torch.zeros(4))
    assert contained(healthy) is healthy
    for number in (torch.inf, -torch.inf, torch.nan):
        b[2, 3] = number
        found = contained(replace(healthy, b=b, bias=torch.ones(4), has_up_bias=True))
        assert found.bias is not None
        assert found.b.isfinite().all()
        for part in (found.a, found.bias[:, None]):
            assert part.isnan().all(1).tolist() == [False, False, True, False]
        kept = [0, 1, 3]
        assert torch.equal(found.a[kept], a[kept])
        assert torch.equal(found.b[kept], b[kept])


@pytest.mark.parametrize("number", NUMBERS)
def test_on_triton(run: Run, number: float) -> None:
    run(checks.check_zero_weights, number)
