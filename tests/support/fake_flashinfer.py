"""FlashInfer's paged prefill in plain torch, as its documentation has it: no card is needed.

Of arguments it knows those that are given here, by the names of release 0.7; in graphs it reads
what it was planned from the buffers that it was made with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MADE: list[BatchPrefillWithPagedKVCacheWrapper] = []


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,  # noqa: FBT001, FBT002
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        max_total_num_rows: int | None = None,
    ) -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"
        self.in_graphs = use_cuda_graph
        self._most_rows = max_total_num_rows
        self._buffers: list[Any] = [
            *(qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf)
        ]
        self._options: dict[str, Any] = {}
        MADE.append(self)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool,
        sm_scale: float,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        non_blocking: bool,
    ) -> None:
        given = [qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len]
        assert all(each.dtype == torch.int32 for each in given)
        assert len(paged_kv_indices) == paged_kv_indptr[-1]
        assert causal
        assert non_blocking
        if self.in_graphs:
            assert self._most_rows is not None
            assert int(qo_indptr[-1]) <= self._most_rows
            sizes = [len(each) for each in (*given[:2], given[3])]
            assert sizes == [len(self._buffers[place]) for place in (0, 1, 3)]
            for buffer, each in zip(self._buffers, given, strict=True):
                buffer[: len(each)].copy_(each)
        else:
            self._buffers = given
        self._options = {
            "shape": (num_qo_heads, num_kv_heads, head_dim_qk, page_size),
            "scale": sm_scale,
            "window": window_left,
            "dtypes": (q_data_type, kv_data_type),
        }

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor) -> Tensor:
        tokens, blocks, block_ids, filled = (each.tolist() for each in self._buffers)
        heads, kv_heads, dim, page_size = self._options["shape"]
        keys, values = paged_kv_cache
        assert q.shape[1:] == (heads, dim)
        assert keys.shape[1:] == (page_size, kv_heads, dim)
        assert (q.dtype, keys.dtype) == self._options["dtypes"]
        for row in range(len(filled)):
            first, stop = tokens[row], tokens[row + 1]
            pages = block_ids[blocks[row] : blocks[row + 1]]
            if first < stop:
                length = (len(pages) - 1) * page_size + filled[row]
                its = (each[pages].flatten(0, 1)[:length] for each in (keys, values))
                out[first:stop] = self._attend(q[first:stop], *its)
        return out

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        group = q.shape[1] // keys.shape[1]
        keys, values = (each.float().repeat_interleave(group, 1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * self._options["scale"]
        at = torch.arange(len(keys) - len(q), len(keys))[:, None]
        seen = torch.arange(len(keys))[None, :]
        hidden = seen > at
        if self._options["window"] >= 0:
            hidden |= seen < at - self._options["window"]
        scores.masked_fill_(hidden, -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
