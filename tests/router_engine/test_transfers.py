"""What comes back from a device comes by one copy, as it was."""

from __future__ import annotations

import torch

from router_engine.transfers import ReadBack, packed, unpacked

TENSORS = (
    torch.tensor([True, False, True]),
    torch.arange(6.0).view(2, 3).T,
    torch.tensor([2**53 + 1, -7]),
    torch.empty(0, 4),
    torch.tensor([[1.5]], dtype=torch.float64),
)


def test_bytes_of_any_kind_come_back() -> None:
    arrays = unpacked(packed(TENSORS), TENSORS)
    for array, tensor in zip(arrays, TENSORS, strict=True):
        assert array.shape == tensor.shape
        assert torch.from_numpy(array.copy()).dtype == tensor.dtype
        assert array.tolist() == tensor.tolist()


def test_what_is_on_the_host_is_not_copied() -> None:
    for array, tensor in zip(ReadBack(TENSORS).arrays(), TENSORS, strict=True):
        assert array.tolist() == tensor.tolist()
        if tensor.numel():
            assert array.__array_interface__["data"][0] == tensor.data_ptr()
