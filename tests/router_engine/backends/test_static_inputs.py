"""What graphs read: steps of any size in buffers at fixed addresses; no GPU needed."""

from __future__ import annotations

import torch

from router_engine.backends.cuda.graph_attention import TritonGraphAttention
from router_engine.backends.cuda.staging import StepRoom
from router_engine.backends.cuda.static_inputs import StaticInputs
from router_engine.backends.step_arrays import StepArrays
from router_engine.kernels.triton.attention_work import Cutting
from router_engine.kv.block_table import BlockTable
from router_engine.mixture.weights import StepWeights
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.scheduling.plan import PlannedRow, StepPlan

CPU = torch.device("cpu")
DECODES, MIXED = Cutting(2, 1, 4), Cutting(2, 16, 4)


def _row(tokens: tuple[int, ...], start: int, blocks: tuple[int, ...]) -> PlannedRow:
    return PlannedRow(
        EngineRequest(str(tokens), (), SamplingSpec(max_new_tokens=1)),
        arrival=0,
        token_ids=tokens,
        start=start,
        block_ids=blocks,
        needs_logits=len(tokens) < 3,
        weight_runs=(),
        known_tokens=(),
    )


def _arrays(*rows: PlannedRow) -> StepArrays:
    return StepArrays(StepPlan(rows))


def _inputs() -> StaticInputs:
    return StaticInputs(StepRoom(8, 4, 6), 8, CPU)


def _attention() -> TritonGraphAttention:
    return TritonGraphAttention(StepRoom(8, 4, 6), [DECODES, MIXED], 4, CPU)


def test_decodes() -> None:
    """Slots follow from the blocks; what is added stores nothing and has no work."""
    inputs, attention = _inputs(), _attention()
    weights = StepWeights(("a", "b"), torch.tensor([[0.5, -1.0], [2.0, 3.0]]))
    arrays = _arrays(_row((7,), 9, (5, 2, 8)), _row((3,), 0, (4,)))
    inputs.write(arrays, 4, 4, weights)
    attention.write(arrays, 4)
    assert inputs.numbers(4).tolist() == [[7, 3, 0, 0], [9, 0, 0, 0], [33, 16, -1, -1]]
    assert inputs.samples(4).tolist() == [0, 1, 0, 0]
    assert attention.tables[:2, :3].tolist() == [[5, 2, 8], [4, 0, 0]]
    work = attention.work(DECODES, 4)
    assert work.counts.tolist() == [2, 0]
    assert work.items[:2, :6].tolist() == [[0, 0, 1, 9, 0, 10], [1, 1, 1, 0, 0, 1]]
    assert work.items.shape == (8, 7)
    for buffer in inputs.weights(4, linear=False).parts:
        assert buffer[:2, :2].tolist() == [[0.5, -1.0], [2.0, 3.0]]


def test_prompts_among_decodes() -> None:
    inputs, attention = _inputs(), _attention()
    held = inputs.weights(8, linear=True)
    held.sums.fill_(9.0)
    assert held.lower_roots is not None
    held.lower_roots.fill_(9.0)
    roots = StepWeights(("a",), None, torch.ones(5, 1), below_probe=StepWeights(("a",)))
    arrays = _arrays(_row((7, 8, 9, 6), 2, (5, 2)), _row((3,), 0, (4,)))
    inputs.write(arrays, 4, 8, roots)
    attention.write(arrays, 8)
    assert inputs.numbers(8)[2].tolist() == [22, 23, 8, 9, 16, -1, -1, -1]
    assert inputs.samples(4).tolist() == [4, 0, 0, 0]  # the prompt goes on
    work = attention.work(MIXED, 8)
    assert work.counts.tolist() == [2, 0]
    assert work.items[:2, :6].tolist() == [[0, 0, 4, 2, 0, 6], [1, 4, 1, 0, 0, 1]]
    found = [part[:5, 0].tolist() for part in held.parts]
    assert found == [[0.0] * 5, [0.0] * 5, [1.0] * 5, [0.0] * 5]


def test_buffers_keep_their_addresses() -> None:
    inputs, attention = _inputs(), _attention()

    def addresses() -> list[int]:
        parts = [inputs.numbers(8), inputs.samples(8), attention.tables]
        parts += inputs.weights(8, linear=True).parts
        parts += [attention.work(each, 8).items for each in (DECODES, MIXED)]
        return [part.data_ptr() for part in parts]

    before = addresses()
    assert inputs.numbers(8)[2].tolist() == [-1] * 8  # before any step
    steps = [_row((7,), 9, (5, 2, 8))], [_row((8,), 0, (1,)), _row((9,), 4, (3, 0))]
    for rows, tokens in zip(steps, (1, 4), strict=True):
        inputs.write(_arrays(*rows), 4, tokens, None)
        attention.write(_arrays(*rows), tokens)
    assert inputs.numbers(4).tolist() == [[8, 9, 0, 0], [0, 4, 0, 0], [4, 0, -1, -1]]
    assert addresses() == before


def test_tokens_that_only_the_device_has_take_the_place_of_the_hosts() -> None:
    inputs = _inputs()
    arrays = _arrays(_row((0,), 9, (5, 2, 8)), _row((0,), 0, (4,)))
    inputs.write(arrays, 4, 4, None, torch.tensor([11, 12]))
    assert inputs.numbers(4)[0].tolist() == [11, 12, 0, 0]


def test_tables_are_written_where_blocks_have_changed() -> None:
    attention, table = _attention(), BlockTable(4)
    table.extend((5, 2))
    step = [_row((7,), 5, table.snapshot), _row((3,), 0, (4,))]
    attention.write(_arrays(*step), 4)
    assert attention.tables[:2, :3].tolist() == [[5, 2, 0], [4, 0, 0]]
    attention.tables.zero_()
    attention.write(_arrays(*step), 4)
    assert not attention.tables.any()
    table.extend((8,))
    attention.write(_arrays(_row((7,), 8, table.snapshot), step[1]), 4)
    assert attention.tables[:2, :3].tolist() == [[5, 2, 8], [0, 0, 0]]
    other = _row((1,), 0, (9,))
    attention.write(_arrays(other, step[1]), 4)
    assert attention.tables[0, 0] == 9


def test_rows_between_those_that_change_are_right_on_either_turn() -> None:
    """What is sent lies on one of two buffers, which was not written in the step before."""
    attention = _attention()
    tables = [BlockTable(4) for _ in range(4)]
    for step in range(6):
        for row in {0, 3} if step % 2 else {1, 2}:
            tables[row].extend((10 * row + step,))
        rows = [_row((7,), 0, table.snapshot) for table in tables]
        attention.write(_arrays(*rows), 4)
        for row, table in enumerate(tables):
            assert attention.tables[row, : len(table)].tolist() == table.block_ids
