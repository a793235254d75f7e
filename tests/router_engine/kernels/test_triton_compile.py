"""Every Triton kernel compiles for the GPUs that it is meant for; that needs no GPU.

The interpreter accepts what the compiler does not, such as a variable whose type changes
in a loop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from router_engine.kernels.triton.device import fused_kernels, mixture, paged, tiles
from router_engine.kernels.triton.triton_attention import _rows, compiled_for

pytestmark = pytest.mark.slow

_BF16 = ("x", "y", "a", "b", "query", "keys", "values", "out", "residual", "weight", "qkv",
         "cosines", "sines", "q_norm", "k_norm", "gate_up")  # fmt: skip
_FP32 = ("z", "weights", "folded", "roots", "parts", "maxima", "sums")
_INT32 = ("counts", "order", "blocks", "ranks", "tiles", "count", "spans", "tables",
          "items", "joins", "positions", "slots")  # fmt: skip
_INT64 = ("columns", "rank_index", "addresses")
_FLOATS = ("scale", "epsilon")
_TYPES = {
    **dict.fromkeys(_BF16, "*bf16"),
    **dict.fromkeys(_FP32, "*fp32"),
    **dict.fromkeys(_INT32, "*i32"),
    **dict.fromkeys(_INT64, "*i64"),
    **dict.fromkeys(_FLOATS, "fp32"),
}
# Numbers that a model's shape makes multiples of 16; what varies from step to step is none.
_ROUND = ("width", "chunk", "x_stride", "y_stride", "a_stride", "b_stride", "qkv_stride",
          "query_stride", "query_head_stride", "slot_stride", "head_stride",
          "out_stride")  # fmt: skip
_MISALIGNED = ("tiles", "items", "joins")  # after the number of them
_TILE = {"BLOCK_T": 32, "BLOCK_R": 16, "WIDEN": False}
_SHRINK = {**_TILE, "BLOCK_K": 128}
_EXPAND = {**_TILE, "SPLITS": 4, "BLOCK_O": 64}
_LISTED = {"ALIGN": 16, "SPAN_ALIGN": 16, "TILES": 4, "BLOCKS": 0}
_ATTEND = {"GROUP": 4, "PAGE": 16, "WIDEN": False}
_CASES: list[tuple[Any, dict[str, Any]]] = [
    (mixture.shrink_kernel, {**_SHRINK, "SPARSE": False}),
    (mixture.shrink_kernel, {**_SHRINK, "SPARSE": True}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": False, "FOLDED": False}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": True, "FOLDED": False}),
    (mixture.expand_kernel, {**_EXPAND, "SPARSE": False, "FOLDED": True}),
    (mixture.fold_kernel, {"SPLITS": 4, "BLOCK_T": 32, "BLOCK_R": 16, "BLOCK_C": 16}),
    (paged.combine_kernel, {"HEAD": 128, "BLOCK_D": 128}),
    (fused_kernels.norm_kernel, {"ADD": True, "ROWS": 1, "BLOCK": 4096}),
    (fused_kernels.rope_kernel, {"NORM": True, "HEAD": 128, "ROWS": 1, "HALF": 64}),
    (fused_kernels.silu_kernel, {"ROWS": 1, "BLOCK": 1024}),
]
for _tokens in (16, 32, 64):
    _CASES.append((tiles.shrink_tiles_kernel, {**_SHRINK, "BLOCK_T": _tokens, "ALIGN": 16}))
    for _splits in (1, 8):
        _own = {"BLOCK_T": _tokens, "SPLITS": _splits}
        _CASES.append((tiles.expand_tiles_kernel, {**_EXPAND, **_LISTED, **_own}))
    _own = {"BLOCK_T": _tokens, "SPLITS": 1, "BLOCKS": 16}
    _CASES.append((tiles.expand_tiles_kernel, {**_EXPAND, **_LISTED, **_own}))
_FOLD = {"SPLITS": 8, "BLOCK_T": 64, "BLOCK_R": 16, "BLOCKS": 16}
_CASES.append((tiles.fold_tiles_kernel, _FOLD))
for _head in (64, 128, 256):
    for _decodes, _windowed in ((True, False), (True, True), (False, False)):
        _tile = _rows(_ATTEND["GROUP"], _head, decodes=_decodes)
        _sizes = {"HEAD": _head, "BLOCK_D": _head, "BLOCK_N": 64 if _head <= 128 else 32}
        _own = {"BLOCK_M": _tile, "WINDOWED": _windowed}
        _CASES.append((paged.attend_kernel, {**_ATTEND, **_sizes, **_own}))
# Bytes that a program may have: of sm_80 and its like, those of the cards that have least.
_MOST_SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}
# Bytes, stored and loaded once, by which the assembler keeps to 128 registers.
_MOST_SPILLED = {80: 8, 90: 8, 100: 12}
_STREAMS = ("shrink_tiles", "expand_tiles", "attend", "norm", "silu")  # they read what is large
_PRODUCTS = re.compile(r"mma\.|tcgen05\.mma")
_LONG_LOADS = re.compile(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\S* [^;]*, 0x10,")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("kernel", "constants"), _CASES, ids=[f"{k.__name__}-{i}" for i, (k, _) in enumerate(_CASES)]
)
def test_it_compiles(kernel: Any, constants: dict[str, Any], capability: int) -> None:
    """Without spills, products on tensor cores, loads of 16 bytes, two buffers where it loops."""
    name = kernel.__name__
    rows = constants.get("BLOCK_M", 0)
    options = compiled_for(rows) if rows else {}
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(_source(kernel, constants), target=target, options=options)
    ptx = compiled.asm["ptx"]
    assert spilled(ptx, capability) <= _MOST_SPILLED[capability]
    if name.startswith(("shrink", "expand", "attend")):
        assert _PRODUCTS.search(ptx), "no tensor cores"
    if name.startswith(_STREAMS):
        assert _LONG_LOADS.search(ptx), "short loads"
    if name.startswith(("shrink_tiles", "attend")):
        waits = {int(each) for each in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)}
        assert max(waits) > 0, "every step waits for its own loads"
    assert compiled.metadata.shared <= _MOST_SHARED[capability]


def _source(kernel: Any, constants: dict[str, Any]) -> ASTSource:
    """As the launches make it: addresses of tensors are multiples of 16, and some numbers."""
    signature, known = {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        signature[name] = "constexpr" if name in constants else _TYPES.get(name, "i32")
        is_round = name in _ROUND or signature[name].startswith("*")
        if is_round and name not in _MISALIGNED and not parameter.do_not_specialize:
            known[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, known)


def spilled(ptx: str, capability: int = 90) -> int:
    """Bytes of registers that a kernel keeps in memory, as the assembler says."""
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={target[1]}",
            file.name,
            "-o",
            "/dev/null",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "registers" in said
    return sum(map(int, re.findall(r"(\d+) bytes spill", said)))
