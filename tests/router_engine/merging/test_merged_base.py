"""The arithmetic of a merge, and what is kept of the base."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from router_engine.merging import merged_base
from router_engine.merging.merged_base import KeptWeights, with_low_rank


@pytest.mark.parametrize("most", [1, 40, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_in_pieces(most: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is a view, turned round, as GPT-2 has them."""
    monkeypatch.setattr(merged_base, "_MOST_NUMBERS", most)
    for weight in (torch.randn(13, 10).to(dtype), torch.randn(10, 13).to(dtype).T):
        a, b = torch.randn(3, 10), torch.randn(3, 13)
        merged = with_low_rank(weight, a, b)
        assert merged.dtype == dtype
        torch.testing.assert_close(merged, (weight.float() + b.T @ a).to(dtype))


class _Pinned(torch.Tensor):
    """A tensor that says that it is pinned, as no memory is without a card."""

    def is_pinned(self, device: str | torch.device | int | None = None) -> bool:
        return True


def test_what_is_kept_on_the_host_goes_once_it_is_restored() -> None:
    kept, weight = KeptWeights(), torch.randn(3, 4)
    before = weight.clone()
    kept.keep("q", weight)
    weight.zero_()
    assert torch.equal(kept.untouched("q"), before)
    kept.restored("q")
    kept.keep("q", weight)
    assert torch.equal(kept.untouched("q"), torch.zeros(3, 4))


def test_what_is_pinned_stays_and_is_not_copied_again() -> None:
    kept, weight = KeptWeights(), torch.randn(3, 4)
    kept.keep("q", weight)
    held: Tensor = kept._kept["q"].as_subclass(_Pinned)
    kept._kept["q"] = held
    kept.restored("q")
    kept.keep("q", torch.zeros(3, 4))
    assert kept.untouched("q") is held
