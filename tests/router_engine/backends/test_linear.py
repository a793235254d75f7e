"""The packed product against torch, for every height of a tile and every tail of a panel."""

from __future__ import annotations

import pytest
import torch

from router_engine.backends.cpu.library import Library

pytestmark = pytest.mark.slow


def _packed(library: Library, weight: torch.Tensor) -> torch.Tensor:
    packed = torch.empty(library.packed_size(weight.shape, weight.dtype), dtype=weight.dtype)
    library.pack(weight, packed)
    return packed


SHAPES = [(16, 16), (48, 64), (259, 64), (100, 33), (960, 576)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_torchs(
    library: Library, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16:
        inputs += inputs % 2  # rows of x hold whole pairs
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    packed = _packed(library, weight)
    for rows in (*range(1, 18), 33):
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        expected = x.double() @ weight.double().T
        error = (library.linears(x, [packed], outputs) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(library: Library, dtype: torch.dtype) -> None:
    """Bit for bit: a request's text cannot depend on how full the batch is."""
    generator = torch.Generator().manual_seed(0)
    packed = _packed(library, torch.randn(144, 576, generator=generator).to(dtype))
    x = torch.randn(40, 576, generator=generator).to(dtype)
    together = library.linears(x, [packed], 144)
    for row in range(40):
        assert torch.equal(library.linears(x[row : row + 1], [packed], 144)[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_unpacking_gives_back_what_was_packed(
    library: Library, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(library.unpack(_packed(library, weight), weight.shape), weight)


def test_packing_again_follows_the_weight(library: Library) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    packed = _packed(library, weight)
    before = packed.clone()
    library.pack(weight + 1, packed)
    assert not torch.equal(packed, before)
    library.pack(weight, packed)
    assert torch.equal(packed, before)
