"""Every Triton kernel compiles for the GPUs that it is meant for; that needs no GPU.

The interpreter accepts what the compiler does not, such as a variable whose type changes
in a loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from router_engine.kernels.triton.device import fused_kernels, mixture, paged, tiles

pytestmark = pytest.mark.slow

_BF16 = ("x", "y", "a", "b", "query", "keys", "values", "out", "residual", "weight", "qkv",
         "cosines", "sines", "q_norm", "k_norm", "gate_up")  # fmt: skip
_FP32 = ("z", "weights", "folded", "parts", "maxima", "sums")
_INT32 = ("counts", "order", "blocks", "ranks", "tiles", "count", "spans", "tables", "starts",
          "contexts", "positions", "slots")  # fmt: skip
_INT64 = ("columns", "rank_index", "addresses")
_FLOATS = ("scale", "epsilon")
_TYPES = {
    **dict.fromkeys(_BF16, "*bf16"),
    **dict.fromkeys(_FP32, "*fp32"),
    **dict.fromkeys(_INT32, "*i32"),
    **dict.fromkeys(_INT64, "*i64"),
    **dict.fromkeys(_FLOATS, "fp32"),
}
_TILE = {"BLOCK_T": 32, "BLOCK_R": 16, "WIDEN": False}
_SHRINK = {**_TILE, "BLOCK_K": 128}
_EXPAND = {**_TILE, "SPLITS": 4, "BLOCK_O": 64}
_LISTED = {"ALIGN": 16, "SPAN_ALIGN": 16, "TILES": 4}
_ATTEND = {"GROUP": 4, "HEAD": 128, "BLOCK_D": 128, "PAGE": 16, "BLOCK_N": 64, "WIDEN": False}
_CASES: list[tuple[Any, dict[str, Any]]] = [
    (mixture.shrink_kernel, {**_SHRINK, "SPARSE": False}),
    (mixture.shrink_kernel, {**_SHRINK, "SPARSE": True}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": False, "FOLDED": False}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": True, "FOLDED": False}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": False, "FOLDED": True}),
    (tiles.shrink_tiles_kernel, {**_SHRINK, "ALIGN": 16}),
    (tiles.expand_tiles_kernel, {**_EXPAND, **_LISTED}),
    (mixture.fold_kernel, {"SPLITS": 4, "BLOCK_T": 32, "BLOCK_R": 16, "BLOCK_C": 16}),
    (paged.attend_kernel, {**_ATTEND, "WINDOWED": False, "SPLITS": 1, "TOKENS": 16, "BLOCK_M": 64}),
    (paged.attend_kernel, {**_ATTEND, "WINDOWED": True, "SPLITS": 4, "TOKENS": 1, "BLOCK_M": 16}),
    (paged.combine_kernel, {"HEAD": 128, "BLOCK_D": 128, "SPLITS": 4}),
    (fused_kernels.norm_kernel, {"ADD": True, "ROWS": 1, "BLOCK": 4096}),
    (fused_kernels.rope_kernel, {"NORM": True, "HEAD": 128, "ROWS": 1, "HALF": 64}),
    (fused_kernels.silu_kernel, {"ROWS": 1, "BLOCK": 1024}),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "constants"), _CASES, ids=[f"{k.__name__}-{i}" for i, (k, _) in enumerate(_CASES)]
)
def test_it_compiles(kernel: Any, constants: dict[str, Any], capability: int) -> None:
    signature = {
        parameter.name: "constexpr"
        if parameter.name in constants
        else _TYPES.get(parameter.name, "i32")
        for parameter in kernel.params
    }
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    products = ("shrink", "expand", "attend")
    if kernel.__name__.startswith(products):
        assert "mma" in compiled.asm["ptx"], "no tensor cores"
