"""Adapters of every kind of expert for the tiny families, as native folders with random numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_store.expert_kinds.base import Activation, Copies, ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json, manifest_to_json
from adapters_store.types import AdapterManifest, BlockSpec
from router_engine.model.loader import base_spec
from tests.support.tiny import family_model

MOA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")


@dataclass(frozen=True)
class Layers:
    """What an adapter holds in every layer. Where there is a router, every expert has a gate."""

    targets: tuple[str, ...] = ()  # of LoRA
    rank: int = 4
    per_target: int = 1  # LoRAs on one module, each with its own gate
    parallel: int = 0  # rows of a bottleneck; 0: none
    serial: int = 0
    activation: Activation = "silu"
    biases: bool = True
    prompt: int = 0  # its length; 0: none
    router: Literal["linear", "swiglu"] | None = None
    router_input: Literal["pre_norm", "post_norm"] = "post_norm"
    router_activation: Literal["sigmoid", "softmax"] = "sigmoid"
    top_k: int | None = None
    threshold: float | None = None  # its maximum; None: there is none
    threshold_net: bool = True
    copies: int = 1  # of LoRA and bottlenecks: those of the way down, the way up is shared
    scale: float = 1.5
    first_layer: int = 0  # the layers before hold nothing
    scope: Literal["token", "prompt"] = "token"  # what a gate is of


SOFT = Layers(MOA_TARGETS, parallel=8, router="linear")
SPARSE = Layers(MOA_TARGETS, parallel=8, router="swiglu", threshold=0.9)
NATIVE = Layers(MOA_TARGETS, parallel=8, prompt=5, router="swiglu", router_input="pre_norm")
INSTANCE = Layers(MOA_TARGETS, parallel=8, prompt=3, router="swiglu", scope="prompt")
MOE_LORA = Layers(
    ("q_proj", "v_proj"), per_target=4, router="linear", router_activation="softmax", top_k=2
)
PARALLEL = Layers(parallel=8)
SERIAL = Layers(serial=8, activation="gelu_tanh")
PROMPT = Layers(prompt=5)
LORA = Layers(("q_proj", "v_proj", "down_proj"))


@dataclass
class _Maker:
    """Random tensors and the specs that name them, layer by layer."""

    layers: Layers
    shapes: Mapping[str, tuple[int, int]]  # of linear layers by path: (in, out)
    hidden: int
    heads: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    experts: list[ExpertSpec] = field(default_factory=list)
    gates: int = 0  # of the layer so far

    def layer(self, block: BlockSpec) -> GatingNetworkSpec | None:
        self.gates = 0
        before = len(self.experts)
        targets = [path for path in self.shapes if path.startswith(f"{block.path}.")]
        for path in targets:
            if path.rpartition(".")[2] in self.layers.targets:
                for index in range(self.layers.per_target):
                    self._lora(path, index)
        if self.layers.prompt:
            self._prompt(block.attention)
        if self.layers.parallel:
            self._bottleneck(block.feed_forward, "parallel", self.layers.parallel)
        if self.layers.serial:
            self._bottleneck(block.feed_forward, "serial", self.layers.serial)
        return self._router(block.path) if len(self.experts) > before else None

    def _gate(self) -> int | None:
        self.gates += 1
        return None if self.layers.router is None else self.gates - 1

    def _copies(self) -> Copies | None:
        count = self.layers.copies
        if count == 1:
            return None
        weights = torch.arange(1.0, count + 1).softmax(0).tolist()
        return Copies(down=tuple(weights), up=(1.0,))

    def _random(self, key: str, *shape: int, std: float, copies: int | None = None) -> str:
        if self.layers.copies > 1 and copies is not None:
            shape = (copies, *shape)
        self.tensors[key] = torch.randn(*shape) * std
        return key

    def _lora(self, path: str, index: int) -> None:
        inputs, outputs = self.shapes[path]
        rank, m = self.layers.rank, self.layers.copies
        name = f"{path}.lora.{index}"
        self.experts.append(
            LoraExpertSpec(
                path,
                rank,
                self.layers.scale,
                inputs,
                outputs,
                self._random(f"{name}.a", rank, inputs, std=inputs**-0.5, copies=m),
                self._random(f"{name}.b", outputs, rank, std=0.3 * outputs**-0.5, copies=1),
                gate=self._gate(),
                copies=self._copies(),
            )
        )

    def _bottleneck(self, path: str, placement: Literal["parallel", "serial"], size: int) -> None:
        d, m, name = self.hidden, self.layers.copies, f"{path}.{placement}"
        down_bias = up_bias = None
        if self.layers.biases:
            down_bias = self._random(f"{name}.d", size, std=0.3, copies=m)
            up_bias = self._random(f"{name}.u", d, std=0.1, copies=1)
        self.experts.append(
            BottleneckExpertSpec(
                path,
                placement,
                size,
                d,
                self.layers.activation,
                self._random(f"{name}.down", size, d, std=d**-0.5, copies=m),
                self._random(f"{name}.up", d, size, std=size**-0.5, copies=1),
                down_bias,
                up_bias,
                scale=self.layers.scale,
                gate=self._gate(),
                copies=self._copies(),
            )
        )

    def _prompt(self, path: str) -> None:
        length, d = self.layers.prompt, self.hidden
        self.experts.append(
            PromptExpertSpec(
                path,
                length,
                d,
                self.heads,
                self._random(f"{path}.prompt", length, d, std=1.0),
                self._random(f"{path}.prompt_gate", self.heads, std=0.5),
                gate=self._gate(),
            )
        )

    def _router(self, path: str) -> GatingNetworkSpec | None:
        layers, prefix, d = self.layers, f"{path}.router", self.hidden
        if layers.router is None:
            return None
        hidden = 0
        if layers.router == "linear":
            self._affine(prefix, self.gates, d)
        else:
            hidden = 4 * self.gates
            self._affine(f"{prefix}.w1", hidden, d)
            self._affine(f"{prefix}.w3", hidden, d)
            self._affine(f"{prefix}.w2", self.gates, hidden)
        threshold = None
        if layers.threshold is not None:
            net = f"{path}.threshold" if layers.threshold_net else None
            if net is not None:
                self._affine(net, 1, d)
            threshold = ThresholdSpec(layers.threshold, net)
        return GatingNetworkSpec(
            path,
            layers.router,
            layers.router_input,
            self.gates,
            d,
            prefix,
            hidden=hidden,
            activation=layers.router_activation,
            top_k=layers.top_k,
            threshold=threshold,
            scope=layers.scope,
        )

    def _affine(self, prefix: str, outputs: int, inputs: int) -> None:
        self._random(f"{prefix}.weight", outputs, inputs, std=2 * inputs**-0.5)
        self._random(f"{prefix}.bias", outputs, std=0.5)


def _shapes(model: PreTrainedModel) -> Iterator[tuple[str, tuple[int, int]]]:
    """(in, out) of every linear layer; GPT-2's Conv1D holds its weight that way round."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield path, (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            yield path, (module.nx, module.nf)


def make_expert_folder(
    directory: Path, layers: Layers, *, family: str = "llama", seed: int = 1
) -> Path:
    """A native folder for a tiny family; strong enough to change the greedy text."""
    model = family_model(family)
    base = base_spec(family, model, {})
    shapes = dict(_shapes(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maker = _Maker(layers, shapes, base.hidden_size, base.num_heads)
        made = [maker.layer(block) for block in base.blocks[layers.first_layer :]]
    routers = tuple(router for router in made if router is not None)
    manifest = AdapterManifest("adaptermix", tuple(maker.experts), family, routers)
    directory.mkdir(parents=True)
    (directory / MANIFEST_FILE).write_bytes(manifest_to_json(manifest))
    save_file(maker.tensors, directory / TENSOR_FILE)
    return directory


@dataclass(frozen=True)
class FolderFiles:
    """A native folder as a loader reads it: `router_engine.experts.base.AdapterContents`."""

    manifest: AdapterManifest
    tensors: Path

    @classmethod
    def of(cls, folder: Path) -> FolderFiles:
        manifest = manifest_from_json((folder / MANIFEST_FILE).read_bytes())
        return cls(manifest, folder / TENSOR_FILE)


def edited(folder: Path, directory: Path, values: Mapping[str, float]) -> Path:
    """A copy of a native folder in which tensors whose key ends so hold one number throughout."""
    shutil.copytree(folder, directory)
    tensors = load_file(directory / TENSOR_FILE)
    for key, tensor in tensors.items():
        for ending, value in values.items():
            if key.endswith(ending):
                tensors[key] = torch.full_like(tensor, value)
    save_file(tensors, directory / TENSOR_FILE)
    return directory
