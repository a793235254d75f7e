"""A transformers model of the Llama family, laid out for the C++ decoder.

The weights of linear layers move: each is let go as it is packed, and merged mode reads and writes
the packed ones. What cannot be laid out is named, and runs on transformers' own code.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from router_engine.backends.cpu.choice import layer_shape
from router_engine.backends.cpu.library import DTYPES, Library
from router_engine.backends.cpu.structures import (
    LINEARS,
    LayerStruct,
    LinearStruct,
    ModelSpecStruct,
)
from router_engine.backends.torch.wrapped_layers import MixtureLinear
from router_engine.kv.paged_cache import PagedCache
from router_engine.model.layout import Layout, layout_of, layout_refusal
from router_engine.model.loader import LoadedModel, leave_checkpoint
from router_engine.model.quantized import Int8Linear


def refusal(loaded: LoadedModel) -> str | None:
    """Why the decoder cannot run this model, or None if it can."""
    if loaded.device.type != "cpu":
        return f"device {loaded.device} is not the CPU"
    if loaded.dtype not in DTYPES:
        return f"dtype {loaded.dtype} is not one of {', '.join(map(str, DTYPES))}"
    reason = layout_refusal(loaded.model, loaded.attention)
    return reason or layer_shape(layout_of(loaded.model, loaded.attention)).refusal


class PackedModel:
    """The model as the kernels read it: packed weights, norms in fp32, and where the cache lies.

    Afterwards the layers of `linears` hold no weights. As `merging.merged_base.BaseWeights`.
    """

    def __init__(
        self,
        library: Library,
        loaded: LoadedModel,
        linears: Mapping[str, MixtureLinear],
        cache: PagedCache,
    ) -> None:
        self.library = library
        # The index of a site in every list of experts: linear layers, then those beside them.
        self.sites = {path: index for index, path in enumerate(linears)}
        self._shapes = {path: linear.shape for path, linear in linears.items()}
        self._alive: list[Tensor] = []  # what the structures below point at
        self._packed = self._pack_all(linears)
        leave_checkpoint(loaded.model)
        library.trim()
        for values in (*cache.keys, *cache.values):
            library.large_pages(values)
        body: Any = loaded.model.base_model
        head: Any = loaded.model.get_output_embeddings()
        self.layers = tuple(_parent(layer.self_attn) for layer in body.layers)  # their paths
        layout = layout_of(loaded.model, loaded.attention)
        self.hidden = layout.hidden
        windows = [call.window or 0 for call in loaded.attention]
        layers = (LayerStruct * len(body.layers))(
            *(
                self._layer(index, layer, cache, window)
                for index, (layer, window) in enumerate(zip(body.layers, windows, strict=True))
            )
        )
        self.vocab = head.shape.out_features
        spec = self._spec(loaded, layout, layers, cache)
        self._layers = layers
        self._handle = library.new_model(loaded.dtype, spec)
        weakref.finalize(self, library.free_model, self._handle)

    @property
    def handle(self) -> int:
        return self._handle

    def read_weight(self, module: str) -> Tensor:
        """A copy of a layer's weight [out, in]; integers come back in fp32."""
        shape, packed = self._shapes[module], self._packed[module]
        if packed.dtype == torch.int8:
            # Rows of the identity are exact in 8 bits, so what comes out are the columns.
            identity = torch.eye(shape.in_features)
            return self.library.linears(identity, [packed], shape.out_features).T
        return self.library.unpack(packed, (shape.out_features, shape.in_features))

    def write_weight(self, module: str, weight: Tensor) -> None:
        """Pack `weight` [out, in] in the place of a layer's; nothing may run meanwhile."""
        self.library.pack(weight.contiguous(), self._packed[module])

    @torch.inference_mode(mode=False)
    def give_back(self, linears: Mapping[str, MixtureLinear], embedding: nn.Parameter) -> None:
        """Put the weights back into the layers that they came from; nothing may run any more."""
        for path, linear in linears.items():
            base: Any = linear.base
            weight = self.read_weight(path)
            if isinstance(base, Int8Linear):
                base.values = torch.round(weight / base.scale[:, None]).to(torch.int8)
            elif weight.shape == embedding.shape and torch.equal(weight, embedding):
                base.weight = embedding
            else:
                base.weight = nn.Parameter(weight, requires_grad=False)

    def _pack_all(self, linears: Mapping[str, MixtureLinear]) -> dict[str, Tensor]:
        """The packed weights by module, one after another in one stretch of memory."""
        weights = [_weight(linear)[0] for linear in linears.values()]
        sizes = [self.library.packed_size(weight.shape, weight.dtype) for weight in weights]
        (dtype,) = {weight.dtype for weight in weights}
        memory = torch.empty(sum(sizes), dtype=dtype)
        self.library.large_pages(memory)
        weights.clear()
        packed = dict(zip(linears, torch.split(memory, sizes), strict=True))
        for path, linear in linears.items():
            weight, scale = _weight(linear)
            self.library.pack(weight, packed[path], scale)
            _let_go(linear)
        return packed

    def _spec(
        self,
        loaded: LoadedModel,
        layout: Layout,
        layers: ctypes.Array[LayerStruct],
        cache: PagedCache,
    ) -> ModelSpecStruct:
        body: Any = loaded.model.base_model
        head = loaded.model.get_output_embeddings()
        assert isinstance(head, MixtureLinear)
        return ModelSpecStruct(
            layers=layers,
            embedding=self._keep(body.embed_tokens.weight),
            final_norm=self._floats(body.norm.weight),
            frequencies=self._floats(body.rotary_emb.inv_freq),
            head=self._linear(head),
            num_layers=len(layers),
            hidden=layout.hidden,
            heads=layout.heads,
            kv_heads=layout.kv_heads,
            head_dim=layout.head_dim,
            intermediate=layout.intermediate,
            block_size=cache.block_size,
            epsilon=layout.epsilon,
            attention_scale=layout.scale,
            rope_scale=float(body.rotary_emb.attention_scaling),
        )

    def _layer(self, index: int, layer: Any, cache: PagedCache, window: int) -> LayerStruct:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (
            *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
            *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
        )
        linears = {name: self._linear(part) for name, part in zip(LINEARS, parts, strict=True)}
        path = self.layers[index]
        return LayerStruct(
            **linears,
            parallel=self._site(f"{path}.mlp#parallel"),
            serial=self._site(f"{path}.mlp#serial"),
            prompt=self._site(f"{path}.self_attn#prompt"),
            attention_norm=self._floats(layer.input_layernorm.weight),
            mlp_norm=self._floats(layer.post_attention_layernorm.weight),
            q_norm=self._head_norm(attention, "q_norm"),
            k_norm=self._head_norm(attention, "k_norm"),
            keys=self._keep(cache.keys[index]),
            values=self._keep(cache.values[index]),
            window=window,
        )

    def _linear(self, linear: MixtureLinear) -> LinearStruct:
        bias: nn.Parameter | None = getattr(linear.base, "bias", None)
        return LinearStruct(
            packed=self._packed[linear.path].data_ptr(),
            bias=None if bias is None else self._floats(bias),
            inputs=linear.shape.in_features,
            outputs=linear.shape.out_features,
            module=self.sites[linear.path],
            is_int8=isinstance(linear.base, Int8Linear),
        )

    def _site(self, name: str) -> int:
        return self.sites.setdefault(name, len(self.sites))

    def _head_norm(self, attention: nn.Module, name: str) -> int | None:
        norm: Any = getattr(attention, name, None)
        return None if norm is None else self._floats(norm.weight)

    def _floats(self, values: Tensor) -> int:
        return self._keep(values.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


def _weight(linear: MixtureLinear) -> tuple[Tensor, Tensor | None]:
    """A layer's weight [out, in], and the scales that it has in 8 bits."""
    if isinstance(linear.base, Int8Linear):
        return linear.base.values, linear.base.scale
    return linear.weight.detach(), None


def _parent(attention: Any) -> str:
    """The path of the layer that an attention module lies in."""
    path: str = attention.o_proj.path
    return path.rpartition(".")[0].rpartition(".")[0]


def _let_go(linear: MixtureLinear) -> None:
    """Keep of a layer's weight what it looks like, without its memory."""
    base: Any = linear.base
    if isinstance(base, Int8Linear):
        base.values = base.values.to("meta")
    else:
        base.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
