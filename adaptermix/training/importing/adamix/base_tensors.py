"""GPT-2's own tensors in full AdaMix checkpoints: they are left out once their shapes agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from adapters_store.types import Problem

INDEX = r"(?:0|[1-9]\d{0,2})"

_BLOCK_KEY = re.compile(rf"transformer\.h\.(?P<layer>{INDEX})\.(?P<name>.+)")
# GPT-2's own tensors in full checkpoints, those of a block by what follows transformer.h.<i>. The
# names of sizes stand for the same number wherever they occur.
_BASE_SHAPES: Mapping[str, tuple[str, ...]] = {
    "attn.bias": ("1", "1", "context", "context"),  # the causal mask
    "attn.c_attn.weight": ("d", "3d"),
    "attn.c_attn.bias": ("3d",),
    "attn.c_proj.weight": ("d", "d"),
    "attn.c_proj.bias": ("d",),
    "mlp.c_fc.weight": ("d", "inner"),
    "mlp.c_fc.bias": ("inner",),
    "mlp.c_proj.weight": ("inner", "d"),
    "mlp.c_proj.bias": ("d",),
    **{f"ln_{n}.{part}": ("d",) for n in (1, 2) for part in ("weight", "bias")},
}
_OUTER_SHAPES: Mapping[str, tuple[str, ...]] = {
    "transformer.wte.weight": ("vocabulary", "d"),
    "transformer.wpe.weight": ("positions", "d"),
    "transformer.ln_f.weight": ("d",),
    "transformer.ln_f.bias": ("d",),
    "lm_head.decoder.weight": ("vocabulary", "d"),  # tied to wte
}


@dataclass(slots=True)
class BaseTensors:
    """Shapes of base weights, (found, expected), the layers that have some, and what is none."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = field(default_factory=dict)
    layers: set[int] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Take a tensor that is no expert's."""
        block = _BLOCK_KEY.fullmatch(name)
        if block is not None and block["name"] in _BASE_SHAPES:
            self.layers.add(int(block["layer"]))
            self.shapes[name] = (array.shape, _BASE_SHAPES[block["name"]])
        elif name in _OUTER_SHAPES:
            self.shapes[name] = (array.shape, _OUTER_SHAPES[name])
        else:
            self.unknown.append(name)

    def problems(self, hidden_size: int, kind: str) -> Iterator[Problem]:
        """Shapes that don't fit experts of this hidden size, or each other."""
        sizes = {"1": 1, "d": hidden_size, "3d": 3 * hidden_size}
        for name, (shape, symbols) in self.shapes.items():
            expected = symbols if len(shape) == len(symbols) else ()
            for symbol, size in zip(expected, shape, strict=False):
                sizes.setdefault(symbol, size)
            if shape != tuple(sizes[symbol] for symbol in expected):
                wanted = [sizes.get(symbol, symbol) for symbol in symbols]
                yield Problem(
                    name, f"has shape {list(shape)}, but the {kind} is for a GPT-2 with {wanted}"
                )
