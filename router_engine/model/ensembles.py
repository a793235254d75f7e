"""Averages the next-token probabilities of an ensemble's members, and says how far they agree.

p = mean_i softmax(logits_i), a Bayesian model average over the members' weights. Source: Wang et
al., "AdaMix" (2022), section 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.events import Uncertainty
from router_engine.scheduling.plan import PlannedRow


class Ensembles:
    """Owns the log probabilities of members that wait for the others of their ensemble."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, Tensor]] = {}  # by request, by member: [vocab], fp32

    def draw_from(
        self, logits: Tensor, rows: Sequence[PlannedRow]
    ) -> tuple[Tensor, dict[int, Uncertainty]]:
        """What tokens are drawn from, and its uncertainty by row where that is wanted.

        logits [rows, vocab] of a plan's `sampled_rows`, in any float dtype; they come back as they
        are where no row belongs to an ensemble. Else logits [drawn rows, vocab] in fp32 of its
        `drawn_rows`: log p for an ensemble's.
        """
        if all(row.seat is None for row in rows):
            return logits, _entropies(logits, rows)
        drawn: list[Tensor] = []
        found: dict[int, Uncertainty] = {}
        for row, own in zip(rows, logits.float().unbind(), strict=True):
            if row.seat is not None:
                kept = self._kept.setdefault(row.seat.ensemble, {})
                kept[row.seat.index] = own.log_softmax(-1)
            if not row.draws:
                continue
            if row.seat is not None:
                kept = self._kept.pop(row.seat.ensemble)
                members = torch.stack([kept[index] for index in range(row.seat.size)])
                own, found[len(drawn)] = averaged(members)
            elif row.sampling.report_entropy:
                found[len(drawn)] = Uncertainty(float(_entropy(own.double().log_softmax(-1))))
            drawn.append(own)
        return torch.stack(drawn) if drawn else logits[:0], found

    def forget(self, request_id: str) -> None:
        """A request has ended; unknown ids are ignored."""
        self._kept.pop(request_id, None)


def averaged(logprobs: Tensor) -> tuple[Tensor, Uncertainty]:
    """log p [vocab] in fp32 from the members' log probabilities [members, vocab]; its uncertainty.

    In fp64: the information is a small difference of large entropies.
    """
    members = logprobs.double().log_softmax(-1)
    mean = members.logsumexp(0) - math.log(len(members))
    entropy = float(_entropy(mean))
    information = max(0.0, entropy - float(_entropy(members).mean()))
    return mean.float(), Uncertainty(entropy, information)


def _entropies(logits: Tensor, rows: Sequence[PlannedRow]) -> dict[int, Uncertainty]:
    asked = [index for index, row in enumerate(rows) if row.sampling.report_entropy]
    if not asked:
        return {}
    entropies = _entropy(logits[asked].double().log_softmax(-1)).tolist()
    return {index: Uncertainty(one) for index, one in zip(asked, entropies, strict=True)}


def _entropy(logprobs: Tensor) -> Tensor:
    """H [..] in nats of log probabilities [.., vocab]."""
    return torch.special.entr(logprobs.exp()).sum(-1)
