"""Random adapters of every kind that `bench experts` measures, as native folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.subject import DELTA_STD
from adapters_store.expert_kinds.base import Copies, ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec, Placement
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_to_json
from adapters_store.types import AdapterManifest, BaseModelSpec, BlockSpec

Kind = Literal["lora", "soft", "sparse", "adamix", "serial"]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")  # of LoRA
RANK = 8  # of LoRA in a mixture of adapters
SIZE = 16  # of a bottleneck
HIDDEN = 24  # of a router
COPIES = 4  # of AdaMix
MAXIMUM = 0.5  # of the threshold of sparse ones


@dataclass(slots=True)
class _Maker:
    """One adapter while it is made. Speed depends on shapes alone, so the numbers are random."""

    base: BaseModelSpec
    generator: torch.Generator
    tensors: dict[str, Tensor] = field(default_factory=dict)
    experts: list[ExpertSpec] = field(default_factory=list)
    routers: list[GatingNetworkSpec] = field(default_factory=list)

    def targets(self, block: BlockSpec) -> list[str]:
        """The linear layers of a block that LoRA changes."""
        modules = (path for path in self.base.linears if path.startswith(f"{block.path}."))
        return [path for path in modules if path.rpartition(".")[2] in TARGETS]

    def lora(self, module: str, rank: int, *, gate: int | None = None, copies: int = 1) -> None:
        """`copies` of A, which share B, as AdaMix trains them."""
        shape, name = self.base.linears[module], f"{module}.lora"
        apart = () if copies == 1 else (copies,)
        shared = () if copies == 1 else (1,)
        self.experts.append(
            LoraExpertSpec(
                module,
                rank,
                1.0,
                shape.in_features,
                shape.out_features,
                self._random(f"{name}_A.weight", *apart, rank, shape.in_features),
                self._random(f"{name}_B.weight", *shared, shape.out_features, rank, std=DELTA_STD),
                gate=gate,
                copies=None if copies == 1 else Copies((1 / copies,) * copies, (1.0,)),
            )
        )

    def bottleneck(self, block: BlockSpec, placement: Placement, gate: int | None = None) -> None:
        width, module = self.base.hidden_size, block.feed_forward
        name = f"{module}.{placement}"
        self.experts.append(
            BottleneckExpertSpec(
                module,
                placement,
                SIZE,
                width,
                "silu" if placement == "parallel" else "gelu",
                self._random(f"{name}_down.weight", SIZE, width),
                self._random(f"{name}_up.weight", width, SIZE, std=DELTA_STD),
                self._random(f"{name}_down.bias", SIZE),
                self._random(f"{name}_up.bias", width, std=DELTA_STD),
                gate=gate,
            )
        )

    def router(self, block: BlockSpec, outputs: int, *, is_sparse: bool) -> None:
        name, width = f"{block.path}.router", self.base.hidden_size
        self._affine(f"{name}.w1", HIDDEN, width)
        self._affine(f"{name}.w3", HIDDEN, width)
        self._affine(f"{name}.w2", outputs, HIDDEN)
        threshold = None
        if is_sparse:
            threshold = ThresholdSpec(MAXIMUM, f"{block.path}.threshold")
            self._affine(f"{block.path}.threshold", 1, width)
        self.routers.append(
            GatingNetworkSpec(
                block.path,
                "swiglu",
                "post_norm",
                outputs,
                width,
                name,
                hidden=HIDDEN,
                threshold=threshold,
            )
        )

    def mixture(self, block: BlockSpec, *, is_sparse: bool) -> None:
        """The experts of one layer of a mixture of adapters, each with its gate."""
        targets = self.targets(block)
        for gate, module in enumerate(targets):
            self.lora(module, RANK, gate=gate)
        self.bottleneck(block, "parallel", gate=len(targets))
        self.router(block, len(targets) + 1, is_sparse=is_sparse)

    def _affine(self, prefix: str, outputs: int, inputs: int) -> None:
        self._random(f"{prefix}.weight", outputs, inputs)
        self._random(f"{prefix}.bias", outputs)

    def _random(self, key: str, *shape: int, std: float | None = None) -> str:
        values = torch.randn(*shape, generator=self.generator)
        self.tensors[key] = (values * (std or shape[-1] ** -0.5)).bfloat16()
        return key


def write_expert_adapters(
    base: BaseModelSpec, folder: Path, names: Mapping[str, Kind], rank: int
) -> list[Path]:
    """One native folder a name; `rank` is that of plain LoRAs. Raises BenchmarkError."""
    if not any(path.endswith(TARGETS) for path in base.linears):
        raise BenchmarkError(f"{base.name} has none of the linear layers {', '.join(TARGETS)}")
    return [
        _write(folder / name, _made(base, kind, rank, seed))
        for seed, (name, kind) in enumerate(names.items())
    ]


def equal_rank(base: BaseModelSpec) -> int:
    """The rank of the LoRA that has as many parameters as a soft mixture, on the same layers."""
    soft = _num_parameters(_made(base, "soft", 0, 0))
    unit = _num_parameters(_made(base, "lora", 1, 0))
    return round(soft / unit)


def num_parameters(base: BaseModelSpec, kind: Kind, rank: int) -> int:
    """Parameters of one adapter as it is served: copies count once."""
    return _num_parameters(_made(base, "lora" if kind == "adamix" else kind, rank, 0))


def _num_parameters(maker: _Maker) -> int:
    return sum(tensor.numel() for tensor in maker.tensors.values())


def _made(base: BaseModelSpec, kind: Kind, rank: int, seed: int) -> _Maker:
    maker = _Maker(base, torch.Generator().manual_seed(seed))
    for block in base.blocks:
        if kind in ("soft", "sparse"):
            maker.mixture(block, is_sparse=kind == "sparse")
        elif kind == "serial":
            maker.bottleneck(block, "serial")
        else:
            for module in maker.targets(block):
                maker.lora(module, rank, copies=COPIES if kind == "adamix" else 1)
    return maker


def _write(folder: Path, maker: _Maker) -> Path:
    manifest = AdapterManifest(
        "adaptermix", tuple(maker.experts), maker.base.name, tuple(maker.routers)
    )
    folder.mkdir(parents=True)
    save_file(maker.tensors, folder / TENSOR_FILE)
    (folder / MANIFEST_FILE).write_bytes(manifest_to_json(manifest))
    return folder
