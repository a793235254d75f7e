"""A transformers model of the Llama family as few launches a layer, on the Triton kernels.

The transformers model stays what it is. Weights that read the same input become one tensor, of
which the model's own parameters are views: nothing is held twice, and a merge, which writes
parameters in place, is seen by both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from router_engine.backends.finite import are_finite
from router_engine.backends.torch.wrapped_layers import MixtureLinear
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import StepAttention
from router_engine.kernels.triton.attention_work import Cutting
from router_engine.kernels.triton.fused import Rotation, norm, rotate_and_store, silu_mul
from router_engine.kernels.triton.grouped import Group
from router_engine.kernels.triton.triton_attention import cutting_of
from router_engine.kv.paged_cache import PagedCache
from router_engine.model.attention_calls import AttentionCall
from router_engine.model.layout import layout_of, layout_refusal
from router_engine.model.loader import LoadedModel

Mix = Callable[[Group, Tensor, Tensor], None]  # (group, x, y): adds the step's mixture to y


def refusal(loaded: LoadedModel) -> str | None:
    """Why the decoder cannot run this model, or None if it can."""
    if loaded.quantization != "none":
        return f"its weights are in {loaded.quantization}"
    return layout_refusal(loaded.model, loaded.attention)


@dataclass(frozen=True, slots=True)
class DecoderInputs:
    """One flat batch.

    numbers [3, tokens] int32: token ids, positions, slots; a negative slot stores nothing.
    """

    numbers: Tensor
    attention: StepAttention


@dataclass(frozen=True, slots=True)
class _Linear:
    """Linear layers with the same input as one."""

    weight: Tensor  # [all outputs, in]
    bias: Tensor | None
    group: Group

    def __call__(self, x: Tensor, mix: Mix | None) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        if mix is not None:
            mix(self.group, x, y)
        return y


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    output: _Linear
    gate_up: _Linear
    down: _Linear
    attention_norm: Tensor
    mlp_norm: Tensor
    rotation: Rotation
    keys: Tensor
    values: Tensor
    window: int | None
    scale: float


class CudaDecoder:
    """Hidden states and logits of flat batches."""

    def __init__(
        self, loaded: LoadedModel, linears: Mapping[str, MixtureLinear], cache: PagedCache
    ) -> None:
        self._device = loaded.device
        self._shape = loaded.kv_shape
        self._paths = {id(linear): path for path, linear in linears.items()}
        self._modules: list[str] = []
        body: Any = loaded.model.base_model
        layout = layout_of(loaded.model, loaded.attention)
        self._epsilon = layout.epsilon
        self._embedding: nn.Parameter = body.embed_tokens.weight
        self.dtype = self._embedding.dtype
        self._final_norm: Tensor = body.norm.weight.detach()
        self._angles = _angles(body.rotary_emb, loaded)
        self._layers = [
            self._layer(layer, cache, index, call)
            for index, (layer, call) in enumerate(zip(body.layers, loaded.attention, strict=True))
        ]
        self._probe_layer = loaded.probe_layer
        self.hidden_size = layout.hidden
        head = loaded.model.get_output_embeddings()
        assert isinstance(head, MixtureLinear)
        self.head = head
        self.vocab = head.shape.out_features
        self._head_group = self._group([head])

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of all `groups`, one after another."""
        return tuple(self._modules)

    @property
    def groups(self) -> list[Group]:
        """Every group of modules with the same input, in the order in which they run."""
        parts = [
            part.group
            for layer in self._layers
            for part in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        return [*parts, self._head_group]

    @property
    def reaches(self) -> tuple[frozenset[int], ...]:
        """Sets of `groups`, by their places, each within the next; the last is of all.

        What queries, keys and values are made of, as LoRA was first used; attention; blocks; all.
        """
        blocks = range(0, 4 * len(self._layers), 4)
        parts = [frozenset(first + place for first in blocks) for place in range(4)]
        attention = parts[0] | parts[1]
        layers = attention | parts[2] | parts[3]
        return parts[0], attention, layers, layers | {4 * len(self._layers)}

    def cuttings(self) -> frozenset[Cutting]:
        """Of the attention of all layers: of decodes, and of mixed steps."""
        shape = self._shape
        return frozenset(
            cutting_of(
                *(layer.rotation.heads, shape.num_kv_heads, shape.head_dim, layer.window),
                decodes=decodes,
            )
            for layer in self._layers
            for decodes in (True, False)
        )

    def groups_below_probe(self) -> frozenset[tuple[str, ...]]:
        """The modules of each group in the layers below the probe layer."""
        layers = self._layers[: self._probe_layer]
        parts = [(layer.qkv, layer.output, layer.gate_up, layer.down) for layer in layers]
        return frozenset(linear.group.paths for four in parts for linear in four)

    def hidden(
        self,
        inputs: DecoderInputs,
        mix: Mix | None,
        hidden_states: Tensor | None = None,
        experts: StepExperts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states [tokens, hidden], normed, and which tokens `are_finite` [tokens] bool.

        The tokens' keys and values are stored.

        hidden_states [tokens, hidden], where given, is filled with what enters the probe layer.
        `experts` act beside linear layers, where there are such.
        """
        x = functional.embedding(inputs.numbers[0], self._embedding)
        residual = torch.empty_like(x)
        started = False
        for index, layer in enumerate(self._layers):
            normed = norm(x, residual, layer.attention_norm, self._epsilon, add=started)
            started = True
            if hidden_states is not None and index == self._probe_layer:
                hidden_states.copy_(residual)
            if experts is not None:
                experts.route(index, residual, normed)
            query, attended = self._attend(layer, layer.qkv(normed, mix), inputs)
            if experts is not None:
                attended = experts.prompt(index, query, attended)
            x = layer.output(attended.flatten(1), mix)
            normed = norm(x, residual, layer.mlp_norm, self._epsilon, add=True)
            x = layer.down(silu_mul(layer.gate_up(normed, mix)), mix)
            if experts is not None:
                x = experts.feed_forward(experts.blocks[index].feed_forward, normed, x)
        normed = norm(x, residual, self._final_norm, self._epsilon, add=started)
        return normed, are_finite(residual)

    def logits(self, hidden: Tensor, mix: Mix | None) -> Tensor:
        """hidden [rows, hidden] -> logits [rows, vocab]. Reads the head's weight anew each time."""
        logits: Tensor = self.head.base(hidden)
        if mix is not None:
            mix(self._head_group, hidden, logits)
        return logits

    def _attend(self, layer: _Layer, qkv: Tensor, inputs: DecoderInputs) -> tuple[Tensor, Tensor]:
        """The rotated query and what it attends to, both [tokens, heads, head_dim]."""
        rotation = layer.rotation
        rotate_and_store(
            qkv, inputs.numbers[1], inputs.numbers[2], rotation, layer.keys, layer.values
        )
        query = qkv[:, : rotation.heads * self._shape.head_dim]
        query = query.view(len(qkv), rotation.heads, self._shape.head_dim)
        attended = inputs.attention.attend(
            query, layer.keys, layer.values, layer.scale, layer.window
        )
        return query, attended

    def _layer(self, layer: Any, cache: PagedCache, index: int, call: AttentionCall) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            qkv=self._fused(attention.q_proj, attention.k_proj, attention.v_proj),
            output=self._fused(attention.o_proj),
            gate_up=self._fused(mlp.gate_proj, mlp.up_proj),
            down=self._fused(mlp.down_proj),
            attention_norm=layer.input_layernorm.weight.detach(),
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            rotation=self._rotation(attention),
            keys=cache.keys[index],
            values=cache.values[index],
            window=call.window,
            scale=call.scale,
        )

    def _rotation(self, attention: Any) -> Rotation:
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return Rotation(
            cosines=self._angles[0],
            sines=self._angles[1],
            heads=attention.q_proj.shape.out_features // self._shape.head_dim,
            kv_heads=self._shape.num_kv_heads,
            q_norm=None if q_norm is None else q_norm.weight.detach(),
            k_norm=None if k_norm is None else k_norm.weight.detach(),
            epsilon=self._epsilon,
        )

    def _fused(self, *linears: MixtureLinear) -> _Linear:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        first = 0
        for linear in linears:
            rows = linear.shape.out_features
            linear.weight.data = weight[first : first + rows]
            first += rows
        biases: list[nn.Parameter | None] = [getattr(each.base, "bias", None) for each in linears]
        bias = None
        if any(bias is not None for bias in biases):
            bias = torch.cat(
                [
                    weight.new_zeros(linear.shape.out_features) if own is None else own.detach()
                    for linear, own in zip(linears, biases, strict=True)
                ]
            )
        return _Linear(weight, bias, self._group(linears))

    def _group(self, linears: Sequence[MixtureLinear]) -> Group:
        paths = tuple(self._paths[id(linear)] for linear in linears)
        first = len(self._modules)
        self._modules.extend(paths)
        return Group.of(
            paths,
            linears[0].shape.in_features,
            tuple(linear.shape.out_features for linear in linears),
            first,
            self._device,
        )


@torch.no_grad()
def _angles(rotary: Any, loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim / 2], made by the model's own rotary embedding."""
    positions = torch.arange(loaded.max_model_len, device=loaded.device)
    like = torch.empty(0, dtype=loaded.dtype, device=loaded.device)
    cosines, sines = rotary(like, positions[None])
    half = loaded.kv_shape.head_dim // 2
    return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
