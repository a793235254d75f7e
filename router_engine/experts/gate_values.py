"""The gates of one step: what every layer's routers say of every token, kept until its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.gate_tensors import GateTensors
from router_engine.experts.rows import GatheredRows, RowPool
from router_engine.kernels.base import Operations
from router_engine.mixture.weights import PromptTokens, StepWeights
from router_engine.scheduling.plan import GateColumns, PromptGates


class StepGateValues:
    """Gates [layers, tokens, 1 + width] of the adapters of a step that have routers.

    Column 0 holds ones: rows without a gate read it.
    """

    def __init__(
        self,
        pool: RowPool,
        operations: Operations,
        weights: StepWeights,
        columns: GateColumns,
        layers: int,
    ) -> None:
        self._pool = pool
        self._operations = operations
        self._columns = columns
        self._prompts = weights.prompts
        self._layers = layers
        self._values: Tensor | None = None
        firsts = {digest: 1 + first for digest, first, _ in columns}
        self._starts = torch.tensor([firsts.get(digest, 0) for digest in weights.digests])

    def route(self, layer: int, path: str, x_pre: Tensor, x_post: Tensor) -> None:
        """Find the gates of one layer. x_pre, x_post [tokens, hidden]."""
        values = self._storage(x_post)
        for digest, first, _ in self._columns:
            router = self._pool.routers(digest).get(path)
            if router is not None:
                v = x_pre if router.spec.input == "pre_norm" else x_post
                gates = values[layer, :, 1 + first : 1 + first + router.spec.outputs]
                if router.spec.scope == "token":
                    gates[:] = self._operations.gating(v, router.network)
                    continue
                for prompt in self._prompts:
                    if prompt.kept is None and digest in prompt.adapters:
                        gates[prompt.tokens] = self._of_prompt(router, v, prompt)

    def per_row(self, layer: int, rows: GatheredRows, gate: Tensor) -> Tensor:
        """[tokens, rows]: what multiplies each row at a site of a layer; `gate` is `rows.gate`."""
        assert self._values is not None, "the layer has not been routed"
        starts = self._starts.to(gate.device)
        index = torch.where(gate < 0, 0, starts[rows.owner] + gate)
        return self._values[layer].index_select(1, index)

    def readings(self, weights: StepWeights, probe_layer: int) -> GateTensors:
        """What was said, under the step's weights; the layers below the probe may differ."""
        assert self._values is not None, "no layer has been routed"
        values = self._values[:, :, 1:].to("cpu", copy=True)
        return gate_readings(self._pool, weights, self._columns, values, probe_layer)

    def _of_prompt(self, router: HostGatingNetwork, v: Tensor, prompt: PromptTokens) -> Tensor:
        """The gates of a prompt [outputs]: those of the mean of v [tokens, features]."""
        read = v[prompt.first : prompt.first + prompt.prompt]
        mean = read.float().mean(0, keepdim=True).to(v.dtype)
        return self._operations.gating(mean, router.network)[0]

    def _storage(self, like: Tensor) -> Tensor:
        if self._values is None:
            earlier = known_gates(self._layers, len(like), self._columns, self._prompts)
            ones = torch.ones(*earlier.shape[:2], 1)
            self._values = torch.cat((ones, earlier), dim=-1).to(like.device)
        return self._values


def known_gates(
    layers: int, tokens: int, columns: GateColumns, prompts: Sequence[PromptTokens]
) -> Tensor:
    """[layers, tokens, width] on the host: what earlier steps found of prompts, NaN elsewhere."""
    values = torch.full((layers, tokens, sum(count for _, _, count in columns)), torch.nan)
    for prompt in prompts:
        for digest, first, count in columns:
            if prompt.kept is not None and digest in prompt.kept:
                gates = torch.from_numpy(prompt.kept[digest])
                values[:, prompt.tokens, first : first + count] = gates[:, None]
    return values


def gate_readings(
    pool: RowPool, weights: StepWeights, columns: GateColumns, values: Tensor, probe_layer: int
) -> GateTensors:
    """Readings of the gates that a step has found, which are kept of its prompts.

    values [layers, tokens, width], on the host: of all tokens; those of tokens that do not use an
    adapter are changed to NaN.
    """
    of_prompts = _found_in_prompts(pool, weights.prompts, columns, values)
    below, above = slice(probe_layer), slice(probe_layer, None)
    for layers, part in ((below, weights.below_probe or weights), (above, weights)):
        for digest, first, count in columns:
            column = part.digests.index(digest)
            idle = (
                slice(None)
                if part.sum_weights is None
                else (part.sum_weights[:, column] == 0).cpu()
            )
            values[layers, idle, first : first + count] = torch.nan
    return GateTensors(values, columns, of_prompts)


def _found_in_prompts(
    pool: RowPool, prompts: Sequence[PromptTokens], columns: GateColumns, values: Tensor
) -> dict[str, PromptGates]:
    """What a step has found and later ones need: see `GateTensors.of_prompts`.

    values [layers, tokens, width]: gates of all tokens, on the host.
    """
    by_request: dict[str, PromptGates] = {}
    for prompt in prompts:
        if prompt.kept is None:
            by_request[prompt.request_id] = {
                digest: values[:, prompt.first, first : first + count].numpy().copy()
                for digest, first, count in columns
                if digest in prompt.adapters and pool.reads_whole_prompts(digest)
            }
    return by_request
