"""The inputs of all graphs but attention's, at fixed addresses: a graph reads the first of each."""

from __future__ import annotations

import torch
from torch import Tensor

from router_engine.backends.cuda.room import MAX_COLUMNS
from router_engine.backends.cuda.staging import HostAndDevice, StepRoom
from router_engine.backends.cuda.table_mixtures import ColumnWeights
from router_engine.backends.step_arrays import StepArrays
from router_engine.mixture.weights import StepWeights

_IDS, _POSITIONS, _SLOTS, _SAMPLES = range(4)


class StaticInputs:
    """Written by the engine's thread before a replay, while the step before may still run.

    Copies and replays are in the order of one stream, so that step reads what was its own.
    """

    def __init__(self, room: StepRoom, hidden: int, device: torch.device) -> None:
        self.room = room
        self._numbers = HostAndDevice((4, room.tokens), device)
        self._numbers.device[_SLOTS] = -1  # what runs before a step is written stores nothing
        weights = torch.zeros(4, room.tokens, MAX_COLUMNS, device=device)
        self._weights = ColumnWeights(*weights)
        self.hidden_states = torch.zeros(room.tokens, hidden, device=device)  # written
        self.finite = torch.zeros(room.tokens, dtype=torch.bool, device=device)  # written

    def numbers(self, tokens: int) -> Tensor:
        """[3, tokens]: token ids, positions, slots."""
        return self._numbers.device[:_SAMPLES, :tokens]

    def samples(self, count: int) -> Tensor:
        """[count]: the tokens whose logits are wanted; past those of a step, the first."""
        return self._numbers.device[_SAMPLES, :count]

    def write(
        self,
        arrays: StepArrays,
        block_size: int,
        tokens: int,
        weights: StepWeights | None,
        token_ids: Tensor | None = None,
    ) -> None:
        """A step for a graph of so many tokens; those that are added store and see nothing.

        weights: None where the graph reads none; what is none of the step's adapters is not read.
        token_ids: those of `arrays`, where only the device has them.
        """
        self._write_numbers(arrays, block_size, tokens)
        if token_ids is not None:
            self._numbers.device[_IDS, : len(token_ids)].copy_(token_ids)
        if weights is not None:
            self._write_weights(weights, len(arrays.token_ids))

    def weights(self, tokens: int, *, linear: bool) -> ColumnWeights:
        """Of a graph of so many tokens. linear: it has some under `linear` among them."""
        sums, lower, roots, lower_roots = (part[:tokens] for part in self._weights.parts)
        if not linear:
            return ColumnWeights(sums, lower)
        return ColumnWeights(sums, lower, roots, lower_roots)

    def _write_weights(self, weights: StepWeights, count: int) -> None:
        below = weights.below_probe or weights
        parts = [weights.sum_weights, below.sum_weights]
        if weights.sqrt_weights is not None:
            parts += [weights.sqrt_weights, below.sqrt_weights]
        for buffer, part in zip(self._weights.parts, parts, strict=False):
            own = buffer[:count, : len(weights.digests)]
            _ = own.zero_() if part is None else own.copy_(part)

    def _write_numbers(self, arrays: StepArrays, block_size: int, tokens: int) -> None:
        self._numbers.turn()
        host = self._numbers.host[:, :tokens].numpy()
        count, samples = len(arrays.token_ids), len(arrays.samples)
        host[_IDS, :count] = arrays.token_ids
        host[_POSITIONS, :count] = arrays.positions
        host[_SLOTS, :count] = arrays.slots(block_size)
        host[:_SLOTS, count:] = 0
        host[_SLOTS, count:] = -1
        host[_SAMPLES, :samples] = arrays.samples
        host[_SAMPLES, samples:] = 0
        self._numbers.send(slice(None), slice(tokens))
