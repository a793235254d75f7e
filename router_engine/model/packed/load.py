"""Makes transformers' model of a quantised checkpoint, whose tensors are read here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from router_engine.hub import bring_model, place_of
from router_engine.model.checkpoint import called, refused, weight_files
from router_engine.model.packed.read import read_unpacked
from router_engine.model.packed.scheme import scheme_of

Built = tuple[PreTrainedModel, Mapping[str, Any]]
"""A model, and what transformers reports of its tensors."""


def read_packed(
    name: str,
    described: PreTrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    revision: str | None,
    *,
    attn_implementation: str,
) -> Built:
    """Its weights are numbers of `dtype` again; "auto": of what the checkpoint's config names.

    Raises UnsupportedModelError as `load_model` does.
    """
    place = Path(place_of(name, revision)[0])
    folder = place if place.is_dir() else bring_model(name, revision)
    scheme = scheme_of(described.quantization_config, name)
    del described.quantization_config  # of it no model is made
    chosen: torch.dtype = described.dtype if dtype == "auto" else dtype
    of: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(described)]

    def read() -> Built:
        built: Built = of.from_pretrained(
            None,
            config=described,
            dtype=chosen,
            state_dict=read_unpacked(weight_files(folder), scheme, chosen),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation=attn_implementation,
        )
        return built

    read_in_a_line: Built = refused(called(name), "its weights cannot be loaded", read)
    return read_in_a_line
