"""The [tokens x adapters] matrix of a step: which token runs under which weights.

Weights are data of a step, never part of a shape: fixed mixtures, token routing and the correction
for a merged base differ only in the numbers written here. Under a gate the layers find the weights,
and what they need for that is written here.
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
from router_engine.scheduling.gate_statistics import PromptGates
from router_engine.scheduling.plan import PlannedRow
from router_engine.sparse_weights import SparseWeights


@dataclass(frozen=True, slots=True)
class LayerRoutedTokens:
    """Tokens whose weights arise inside the layers, to be added to those in `total`.

    candidates [tokens, adapters] bool. top_k [tokens] int32: 0 for a token that has no gate.
    temperature [tokens] fp32: 1 there. The equation: `kernels.reference.layer_routing`.
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
    """Weights of one step over its active adapters.

    digests: the columns. total [tokens, adapters]: weights under `sum` (None: no token uses it).
    root [tokens, adapters]: square roots of the weights of tokens under `linear`, or None.
    merged_root [tokens, adapters]: square roots of a merged `linear` mixture on the tokens that do
    not run under it, from which it is taken off; or None. fill: share of `total` that is not zero,
    known without asking the device. gates: of tokens under a layer router, or None. lower: the
    weights of the layers below the probe layer, on steps with tokens whose experts act only from
    the probe layer on; None: they are the same. prompts: of requests whose gates are those of their
    prompts.
    """

    digests: tuple[str, ...]
    total: Tensor | None = None
    root: Tensor | None = None
    merged_root: Tensor | None = None
    fill: float = 1.0
    gates: LayerRoutedTokens | None = None
    lower: StepWeights | None = None
    prompts: tuple[PromptTokens, ...] = ()

    def rows(self, index: Tensor) -> StepWeights:
        """The same step seen by some of its tokens only."""
        total, root, merged = (
            None if part is None else part[index]
            for part in (self.total, self.root, self.merged_root)
        )
        gates = None if self.gates is None else self.gates.rows(index)
        return StepWeights(self.digests, total, root, merged, self.fill, gates)


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
    return replace(whole, lower=below[0]) if below else whole


def _all_under(rows: Sequence[PlannedRow], merged: ResolvedMixture) -> bool:
    """Whether nothing is left to do in any row: as on the bare base, no matrix is made."""
    held = {d: w for d, w in zip(merged.digests, merged.weights, strict=True) if w != 0}
    return all(
        row.gate is None
        and not row.reads_hidden_states
        and not row.reads_whole_prompt
        and row.combination == merged.combination
        and all(
            {row.adapters[column]: w for column, w in weights.items()} == held
            for _, weights in row.weight_runs
        )
        for row in rows
    )


def _used(row: PlannedRow) -> Iterable[str]:
    """The adapters that may act on a row, or whose gates are found in it."""
    if row.gate is not None or row.finds_prompt_gates:
        return row.adapters
    return (row.adapters[column] for _, weights in row.weight_runs for column in weights.columns)


class _Parts:
    """The matrices while they are filled, in fp32 on the host."""

    def __init__(self, columns: dict[str, int], num_tokens: int) -> None:
        self._columns = columns
        shape = (num_tokens, len(columns))
        self._total: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._root: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._merged: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._gates: _GateParts | None = None
        self._prompts: list[PromptTokens] = []

    def fill(self, rows: Sequence[PlannedRow]) -> list[slice]:
        """Write the weights of all rows; where those with a probe lie."""
        position, probed = 0, []
        for row in rows:
            tokens = slice(position, position + len(row.token_ids))
            if row.reads_whole_prompt:
                self._prompts.append(_prompt_tokens(row, position))
            if row.gate is not None:
                self._gate(tokens, [self._columns[each] for each in row.adapters], row.gate)
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
            self._total[tokens, own] = values
        else:
            self._root[tokens, own] = np.sqrt(values)

    def without(self, tokens: Sequence[slice]) -> _Parts:
        """The same with no weights for these tokens."""
        other = copy.copy(self)
        other._total, other._root = self._total.copy(), self._root.copy()
        other._merged = self._merged.copy()
        for each in tokens:
            other._total[each] = 0
            other._root[each] = 0
        return other

    def _gate(self, tokens: slice, own: list[int], gate: LayerRoutingParams) -> None:
        if self._gates is None:
            self._gates = _GateParts(self._total.shape)
        self._gates.write(tokens, own, gate)

    def subtract(self, merged: ResolvedMixture) -> None:
        vector = np.zeros(len(self._columns), dtype=np.float32)
        vector[[self._columns[digest] for digest in merged.digests]] = merged.weights
        if merged.combination == "sum":
            self._total -= vector
            return
        vector = np.sqrt(vector)
        same = (self._root == vector).all(1) & (self._total == 0).all(1)
        self._root[same] = 0
        self._merged[~same] = vector

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which columns [adapters] some token gives a weight to."""
        parts = (self._total, self._root, self._merged)
        used = np.asarray(np.logical_or.reduce([(part != 0).any(0) for part in parts]))
        for prompt in self._prompts:
            if prompt.kept is None:
                used[[self._columns[digest] for digest in prompt.adapters]] = True
        return used if self._gates is None else used | self._gates.candidates.any(0)

    def tensors(self, used: NDArray[np.bool_], device: torch.device) -> StepWeights:
        """The columns that are used."""
        parts = (self._total, self._root, self._merged)
        digests = tuple(digest for digest, column in self._columns.items() if used[column])
        total, root, merged = (
            torch.from_numpy(part[:, used]).to(device) if part.any() else None for part in parts
        )
        fill = float(np.count_nonzero(self._total)) / (len(self._total) * len(digests))
        gates = None if self._gates is None else self._gates.tensors(used, device)
        prompts = tuple(self._prompts)
        return StepWeights(digests, total, root, merged, fill, gates, prompts=prompts)


def _prompt_tokens(row: PlannedRow, first: int) -> PromptTokens:
    count = len(row.token_ids)
    return PromptTokens(
        row.request_id,
        row.adapters,
        first,
        count,
        prompt=len(row.prompt_token_ids),
        kept=row.prompt_gates,
    )


class _GateParts:
    """`LayerRoutedTokens` while they are filled, on the host."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.candidates: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self._top_k: NDArray[np.int32] = np.zeros(shape[0], dtype=np.int32)
        self._temperature: NDArray[np.float32] = np.ones(shape[0], dtype=np.float32)

    def write(self, tokens: slice, own: list[int], gate: LayerRoutingParams) -> None:
        self.candidates[tokens, own] = True
        self._top_k[tokens] = gate.top_k
        self._temperature[tokens] = gate.temperature

    def tensors(self, used: NDArray[np.bool_], device: torch.device) -> LayerRoutedTokens:
        parts = (self.candidates[:, used], self._top_k, self._temperature)
        return LayerRoutedTokens(*(torch.from_numpy(part).to(device) for part in parts))
