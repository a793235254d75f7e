"""What a pass says of its gates: those of the equation, and NaN where an adapter does not act."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.backends.torch.wrapped_layers import hook_layers, wrap_linears
from router_engine.experts.gate_tensors import GateTensors
from router_engine.experts.loading import load_adapter
from router_engine.experts.memory import HostMemory
from router_engine.experts.rows import RowPool
from router_engine.experts.step import StepExperts
from router_engine.kernels.reference.operations import ReferenceOperations
from router_engine.merging.merged_base import MergedBase
from router_engine.mixture.weights import StepWeights
from router_engine.model.attention_calls import attention_calls
from router_engine.model.loader import LoadedModel, blocks_of, kv_shape
from tests.support.expert_adapters import LORA, MOE_LORA, SPARSE, FolderFiles, make_expert_folder
from tests.support.expert_oracle import put_experts
from tests.support.tiny import family_model

IDS = torch.arange(5, 15)
KINDS = {"lora": LORA, "moe": replace(MOE_LORA, first_layer=1), "sparse": SPARSE}


class _Served:
    """The tiny llama with hooks, and adapters in its pool; attention is transformers' own."""

    def __init__(self, root: Path, probe_layer: int) -> None:
        self._model: Any = family_model("llama")
        cpu = torch.device("cpu")
        pool = RowPool(HostMemory(1 << 20), dtype=torch.float32, device=cpu)
        blocks = blocks_of(self._model)
        self._experts = StepExperts(pool, ReferenceOperations(), blocks, probe_layer)
        linears = wrap_linears(self._model, self._experts)
        hook_layers(self._model, self._experts)
        shape = kv_shape(attention_calls(self._model))
        loaded = LoadedModel(self._model, shape, 512, (), torch.float32, cpu)
        base = ModelProjections(loaded, MergedBase(ParameterWeights(loaded, linears)))
        self.folders = {}
        for kind, layers in KINDS.items():
            self.folders[kind] = make_expert_folder(root / kind, layers)
            files = FolderFiles.of(self.folders[kind])
            pool.place(load_adapter(kind, files, torch.float32, base))

    @torch.no_grad()
    def readings(self, weights: StepWeights) -> GateTensors | None:
        self._experts.begin(weights)
        self._model(input_ids=IDS[None], use_cache=False)
        return self._experts.readings()


@pytest.fixture
def served(tmp_path: Path) -> _Served:
    return _Served(tmp_path, probe_layer=1)


def _total(**weights: Tensor) -> StepWeights:
    digests = tuple(sorted(weights))
    return StepWeights(digests, torch.stack([weights[digest] for digest in digests], 1))


@torch.no_grad()
def test_readings_are_the_gates(served: _Served) -> None:
    """`moe` acts on the last token alone, and has routers in the second layer alone."""
    last = torch.zeros(10)
    last[-1] = 0.5
    every = torch.full((10,), 0.8)
    readings = served.readings(_total(lora=every, moe=last, sparse=every))
    assert readings is not None
    assert readings.columns == (("moe", 0, 8), ("sparse", 8, 6))
    values = readings.values
    assert (values.shape, values.dtype) == ((2, 10, 14), torch.float32)
    mixture = [(served.folders[kind], 0.8) for kind in ("lora", "sparse")]
    model: Any = family_model("llama")
    _, sparse = put_experts(model, mixture)
    model(input_ids=IDS[None, :-1], use_cache=False)
    for layer in range(2):
        expected = sparse.gates[f"model.layers.{layer}"]
        torch.testing.assert_close(values[layer, :-1, 8:], expected)
        assert 0 < int((expected == 0).sum()) < expected.numel()
    assert values[0, :, :8].isnan().all()
    assert values[1, :-1, :8].isnan().all()
    moe = values[1, -1, :8]
    assert int((moe > 0).sum()) == 2
    assert float(moe.sum()) == pytest.approx(1.0)


def test_below_the_tap_nothing_acts(served: _Served) -> None:
    whole = _total(sparse=torch.ones(10))
    lower = _total(sparse=torch.cat([torch.ones(4), torch.zeros(6)]))
    readings = served.readings(replace(whole, below_probe=lower))
    assert readings is not None
    assert readings.values[0, 4:].isnan().all()
    assert not readings.values[0, :4].isnan().any()
    assert not readings.values[1].isnan().any()


def test_there_are_none_without_routers(served: _Served) -> None:
    assert served.readings(_total(lora=torch.ones(10))) is None
