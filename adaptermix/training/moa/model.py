"""A frozen base of transformers with the experts and routers of a manifest hung into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adaptermix.training.errors import TrainingError
from adaptermix.training.moa.experts import Expert, TrainedBottleneck, TrainedLora, TrainedPrompt
from adaptermix.training.moa.router import GatingNetwork, GatingTraining
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.types import AdapterManifest

_ATTENTION = "adaptermix_prompt"


class MoaModel(nn.Module):
    """The experts and routers under training, in fp32; `base` runs its own code, frozen.

    dropout: before the A of each LoRA, while training. With routers of whole prompts a call needs
    `prompt_mask`, which says where each row's prompt is.
    """

    def __init__(
        self,
        base: Any,
        manifest: AdapterManifest,
        training: GatingTraining | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.training_of_routers = training or GatingTraining()
        self.layers = nn.ModuleList(
            _Layer(base, manifest, index, self.training_of_routers, dropout)
            for index in range(len(manifest.routers))
        ).to(base.device)
        base.requires_grad_(requires_grad=False)
        self.base = base
        if any(isinstance(expert, PromptExpertSpec) for expert in manifest.experts):
            AttentionInterface.register(_ATTENTION, _attention)
            AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
            base.set_attn_implementation(_ATTENTION)
        self._mask: Tensor | None = None

    @property
    def takes_prompt_mask(self) -> bool:
        """Whether the gates depend on where the prompts are."""
        return self.manifest.reads_whole_prompts

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As the base's; masks [rows, tokens], 1 where a token is, and where the prompt is.

        Raises TrainingError where gates of a whole prompt are asked for without a prompt.
        """
        if self.takes_prompt_mask and prompt_mask is None:
            raise TrainingError("gates of whole prompts need prompt_mask")
        for layer in self._layers():
            layer.prompt_mask = prompt_mask
        self._mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.base(input_ids=input_ids, attention_mask=attention_mask, **options)

    def generate(self, input_ids: Tensor, *, attention_mask: Tensor, **options: Any) -> Tensor:
        """As the base's; gates of whole prompts are those of `input_ids`, and kept."""
        for layer in self._layers():
            layer.prompt_mask = attention_mask
        self._mask = None
        tokens: Tensor = self.base.generate(
            input_ids=input_ids, attention_mask=attention_mask, **options
        )
        return tokens

    @property
    def gates(self) -> Tensor:
        """Of the last call: [layers, tokens, outputs], padding left out, without gradient."""
        assert self._mask is not None
        used = self._mask.bool()
        each = [layer.gates.detach().expand(*used.shape, -1)[used] for layer in self._layers()]
        return torch.stack(each)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the adapter by the manifest's names, fp32."""
        return {
            name: tensor.detach()
            for layer in self._layers()
            for part in (layer.router, *layer.parts())
            for name, tensor in part.tensors.items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors`, by the manifest's names, in place of those that are here."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def _layers(self) -> Iterator[_Layer]:
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            yield layer


class _Layer(nn.Module):
    """Gating network and experts of one layer. The gates are made when its first norm has run,
    and read by its experts until the layer ends."""

    def __init__(
        self,
        base: Any,
        manifest: AdapterManifest,
        index: int,
        training: GatingTraining,
        dropout: float,
    ) -> None:
        super().__init__()
        spec = manifest.routers[index]
        self.router = GatingNetwork(spec, training)
        self.experts = nn.ModuleList()
        self.gates = torch.empty(0)  # [rows, tokens or 1, outputs]
        self.prompt_mask: Tensor | None = None
        layer = base.get_submodule(spec.layer)
        norm = layer.ln_1 if hasattr(layer, "ln_1") else layer.input_layernorm
        norm.register_forward_hook(self._route)
        for path, specs in _by_module(manifest, spec.layer).items():
            module = base.get_submodule(path)
            if isinstance(specs[0], PromptExpertSpec):
                prompt = TrainedPrompt(specs[0], module)
                module.attend_prompt = _prompting(self, prompt)
                self.experts.append(prompt)
                continue
            added = [
                TrainedLora(each, dropout)
                if isinstance(each, LoraExpertSpec)
                else TrainedBottleneck(each)
                for each in specs
                if isinstance(each, LoraExpertSpec | BottleneckExpertSpec)
            ]
            module.register_forward_hook(_adding(self, added))
            self.experts.extend(added)

    def parts(self) -> list[Expert]:
        return [
            e
            for e in self.experts
            if isinstance(e, TrainedLora | TrainedBottleneck | TrainedPrompt)
        ]

    def gate_of(self, expert: Expert) -> Tensor:
        """[rows, tokens or 1, 1]."""
        gate = expert.spec.gate
        assert gate is not None
        return self.gates[..., gate : gate + 1]

    def _route(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.router.pooled and self.prompt_mask is None:
            return  # The gates are those of the prompt, which went before.
        read = inputs[0] if self.router.spec.input == "pre_norm" else output
        self.gates = self.router(read, self.prompt_mask)
        self.prompt_mask = None


def _by_module(manifest: AdapterManifest, layer: str) -> dict[str, list[ExpertSpec]]:
    """The experts of a layer by the module that they hang on."""
    by_module: dict[str, list[ExpertSpec]] = {}
    for expert in manifest.experts:
        if expert.module.startswith(f"{layer}."):
            by_module.setdefault(expert.module, []).append(expert)
    return by_module


def _adding(
    layer: _Layer, experts: Sequence[TrainedLora | TrainedBottleneck]
) -> Callable[..., Tensor]:
    """A forward hook that adds experts to what a module puts out, in that one's dtype."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total = output.float()
        for expert in experts:
            total = total + expert(inputs[0], layer.gate_of(expert))
        return total.to(output.dtype)

    return add


def _prompting(layer: _Layer, prompt: TrainedPrompt) -> Callable[[Tensor], Tensor]:
    def attend(query: Tensor) -> Tensor:
        attended: Tensor = prompt(query, layer.gate_of(prompt))
        return attended

    return attend


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """torch's attention, and beside it the prompt's: [rows, tokens, heads, head_dim]."""
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    return (attended + module.attend_prompt(query)).to(attended.dtype), None
