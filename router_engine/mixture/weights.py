"""The [tokens x adapters] matrix of a step: which token runs under which weights.

Weights are data of a step, never part of a shape: fixed mixtures, token routing and the correction
for a merged base differ only in the numbers written here. Under layer routing the layers find the
weights, and what they need for that is written here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters_store.types import ResolvedMixture
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.plan import PlannedRow, PromptGates
from router_engine.scheduling.prompt_gates import WholePromptGates, whole_prompt_gates
from router_engine.sparse_weights import SparseWeights
from router_engine.transfers import sent


@dataclass(frozen=True, slots=True)
class LayerRoutedTokens:
    """Tokens whose weights arise inside the layers, to be added to those in `sum_weights`.

    candidates [tokens, adapters] bool. top_k [tokens] int32: 0 for a token under weights
    of its own. temperature [tokens] fp32: 1 there. The equation: `kernels.reference.layer_routing`.
    """

    candidates: Tensor
    top_k: Tensor
    temperature: Tensor

    def rows(self, index: Tensor) -> LayerRoutedTokens:
        """The same step seen by some of its tokens only."""
        return LayerRoutedTokens(self.candidates[index], self.top_k[index], self.temperature[index])


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of a request whose adapters may have routers of whole prompts.

    first, count: where they lie in the step. prompt: how many of them, from the first on, are the
    prompt. kept: the gates that were found in an earlier step; None: they are found in this one.
    """

    request_id: str
    adapters: tuple[str, ...]
    first: int
    count: int
    prompt: int
    kept: PromptGates | None

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class StepWeights:
    """Weights of one step over its active adapters; a matrix is None where it is 0."""

    digests: tuple[str, ...]  # of the adapters, one a column
    sum_weights: Tensor | None = None  # [tokens, adapters]: of tokens under `sum`
    sqrt_weights: Tensor | None = None  # [tokens, adapters]: square roots, of those under `linear`
    # [tokens, adapters]: square roots of a merged `linear` mixture, on the tokens that do not run
    # under it: it is taken off there.
    merged_sqrt_weights: Tensor | None = None
    density: float = 1.0  # share of `sum_weights` that is not 0, known without asking the device
    layer_routed: LayerRoutedTokens | None = None  # the tokens whose weights the layers find
    # Of the layers below the probe layer, in steps with tokens whose experts act only from there
    # on; None: as above it.
    below_probe: StepWeights | None = None
    prompts: tuple[PromptTokens, ...] = ()  # of requests whose gates are those of their prompts

    def rows(self, index: Tensor) -> StepWeights:
        """The same step seen by some of its tokens only, index [picked tokens]."""
        plain, sqrt, merged = (
            None if part is None else part[index]
            for part in (self.sum_weights, self.sqrt_weights, self.merged_sqrt_weights)
        )
        routed = None if self.layer_routed is None else self.layer_routed.rows(index)
        return StepWeights(self.digests, plain, sqrt, merged, self.density, routed)


def step_weights(
    rows: Sequence[PlannedRow], merged: ResolvedMixture | None, device: torch.device
) -> StepWeights | None:
    """Weights of a step's tokens in the order of `rows`, or None where the base alone acts.

    With a merged base W' = W + merged, a token under another mixture runs under
    - merged + its own (design section 4, merged mode).
    """
    if merged is not None and _all_under(rows, merged):
        return None
    names = {digest for row in rows for digest in _used(row)}
    if merged is not None:
        names.update(merged.digests)
    if not names:
        return None
    columns = {digest: column for column, digest in enumerate(sorted(names))}
    parts = _Parts(columns, sum(len(row.token_ids) for row in rows))
    probed = parts.fill(rows)
    sets = [parts, parts.without(probed)] if probed else [parts]
    if merged is not None:
        for each in sets:
            each.subtract(merged)
    used = np.logical_or.reduce([each.used for each in sets])
    if not used.any():
        return None
    whole, *below = (each.tensors(used, device) for each in sets)
    return replace(whole, below_probe=below[0]) if below else whole


def _all_under(rows: Sequence[PlannedRow], merged: ResolvedMixture) -> bool:
    """Whether nothing is left to do in any row: as on the bare base, no matrix is made."""
    held = {d: w for d, w in zip(merged.digests, merged.weights, strict=True) if w != 0}
    return all(
        row.layer_routing is None
        and not row.reads_hidden_states
        and whole_prompt_gates(row) is None
        and row.combination == merged.combination
        and all(
            {row.adapters[column]: w for column, w in weights.items()} == held
            for _, weights in row.weight_runs
        )
        for row in rows
    )


def _used(row: PlannedRow) -> Iterable[str]:
    """The adapters that may act on a row, or whose gates are found in it."""
    if row.layer_routing is not None:
        return row.adapters
    gates = whole_prompt_gates(row)
    if gates is not None and gates.values is None:
        return row.adapters
    return (row.adapters[column] for _, weights in row.weight_runs for column in weights.columns)


class _Parts:
    """The matrices while they are filled, in fp32 on the host."""

    def __init__(self, columns: dict[str, int], num_tokens: int) -> None:
        self._columns = columns
        shape = (num_tokens, len(columns))
        self._sum: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._sqrt: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._merged_sqrt: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._routed: _LayerRoutedParts | None = None
        self._prompts: list[PromptTokens] = []

    def fill(self, rows: Sequence[PlannedRow]) -> list[slice]:
        """Write the weights of all rows; where those with a probe lie."""
        position, probed = 0, []
        for row in rows:
            tokens = slice(position, position + len(row.token_ids))
            gates = whole_prompt_gates(row)
            if gates is not None:
                self._prompts.append(_prompt_tokens(row, position, gates))
            if row.layer_routing is not None:
                self._route(
                    tokens, [self._columns[each] for each in row.adapters], row.layer_routing
                )
                position = tokens.stop
                continue
            if row.reads_hidden_states:
                probed.append(tokens)
            for length, weights in row.weight_runs:
                self._write(slice(position, position + length), row, weights)
                position += length
        return probed

    def _write(self, tokens: slice, row: PlannedRow, weights: SparseWeights) -> None:
        if not weights.columns:
            return
        own = [self._columns[row.adapters[column]] for column in weights.columns]
        values = np.asarray(weights.values, dtype=np.float32)
        if row.combination == "sum":
            self._sum[tokens, own] = values
        else:
            self._sqrt[tokens, own] = np.sqrt(values)

    def without(self, tokens: Sequence[slice]) -> _Parts:
        """The same with no weights for these tokens."""
        other = copy.copy(self)
        other._sum, other._sqrt = self._sum.copy(), self._sqrt.copy()
        other._merged_sqrt = self._merged_sqrt.copy()
        for each in tokens:
            other._sum[each] = 0
            other._sqrt[each] = 0
        return other

    def _route(self, tokens: slice, own: list[int], routing: LayerRoutingParams) -> None:
        if self._routed is None:
            self._routed = _LayerRoutedParts(self._sum.shape)
        self._routed.write(tokens, own, routing)

    def subtract(self, merged: ResolvedMixture) -> None:
        vector = np.zeros(len(self._columns), dtype=np.float32)
        vector[[self._columns[digest] for digest in merged.digests]] = merged.weights
        if merged.combination == "sum":
            self._sum -= vector
            return
        vector = np.sqrt(vector)
        same = (self._sqrt == vector).all(1) & (self._sum == 0).all(1)
        self._sqrt[same] = 0
        self._merged_sqrt[~same] = vector

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which columns [adapters] some token gives a weight to."""
        parts = (self._sum, self._sqrt, self._merged_sqrt)
        used = np.asarray(np.logical_or.reduce([(part != 0).any(0) for part in parts]))
        for prompt in self._prompts:
            if prompt.kept is None:
                used[[self._columns[digest] for digest in prompt.adapters]] = True
        return used if self._routed is None else used | self._routed.candidates.any(0)

    def tensors(self, used: NDArray[np.bool_], device: torch.device) -> StepWeights:
        """The columns that are used."""
        parts = (self._sum, self._sqrt, self._merged_sqrt)
        digests = tuple(digest for digest, column in self._columns.items() if used[column])
        plain, sqrt, merged = (
            # Row by row, which is how kernels read it: a choice of columns is not.
            sent(torch.from_numpy(np.ascontiguousarray(part[:, used])), device)
            if part.any()
            else None
            for part in parts
        )
        density = float(np.count_nonzero(self._sum)) / (len(self._sum) * len(digests))
        routed = None if self._routed is None else self._routed.tensors(used, device)
        prompts = tuple(self._prompts)
        return StepWeights(digests, plain, sqrt, merged, density, routed, prompts=prompts)


def _prompt_tokens(row: PlannedRow, first: int, gates: WholePromptGates) -> PromptTokens:
    count = len(row.token_ids)
    return PromptTokens(
        row.request_id,
        row.adapters,
        first,
        count,
        prompt=len(row.prompt_token_ids),
        kept=gates.values,
    )


class _LayerRoutedParts:
    """`LayerRoutedTokens` while they are filled, on the host."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.candidates: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self._top_k: NDArray[np.int32] = np.zeros(shape[0], dtype=np.int32)
        self._temperature: NDArray[np.float32] = np.ones(shape[0], dtype=np.float32)

    def write(self, tokens: slice, own: list[int], routing: LayerRoutingParams) -> None:
        self.candidates[tokens, own] = True
        self._top_k[tokens] = routing.top_k
        self._temperature[tokens] = routing.temperature

    def tensors(self, used: NDArray[np.bool_], device: torch.device) -> LayerRoutedTokens:
        parts = (self.candidates[:, used], self._top_k, self._temperature)
        return LayerRoutedTokens(*(sent(torch.from_numpy(part), device) for part in parts))
