"""Averages the next-token probabilities of an ensemble's members, and says how far they agree.

p = mean_i softmax(logits_i), a Bayesian model average over the members' weights. Source: Wang et
al., "AdaMix" (2022), section 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.events import TokenUncertainty
from router_engine.scheduling.plan import PlannedRow


class Ensembles:
    """Owns the logits of members that wait for the others of their ensemble."""

    def __init__(self) -> None:
        self._collected: dict[str, dict[int, Tensor]] = {}  # by request, by member: [vocab], fp32

    def draw_from(
        self, logits: Tensor, rows: Sequence[PlannedRow]
    ) -> tuple[Tensor, dict[int, TokenUncertainty]]:
        """What tokens are drawn from, and its uncertainty by row where that is wanted.

        logits [rows, vocab] of a plan's `sampled_rows`, in any float dtype; they come back as they
        are where no row belongs to an ensemble. Else logits [drawn rows, vocab] in fp32 of its
        `drawn_rows`: those of p for an ensemble's.
        """
        if all(row.ensemble_member is None for row in rows):
            return logits, _entropies(logits, rows)
        drawn: list[Tensor] = []
        uncertainties: dict[int, TokenUncertainty] = {}
        for row, own in zip(rows, logits.float().unbind(), strict=True):
            place = row.ensemble_member
            if place is not None:
                collected = self._collected.setdefault(place.ensemble, {})
                collected[place.member] = own.clone()  # the next step may write over it
            if not row.samples_token:
                continue
            if place is not None:
                members = torch.stack([collected[index] for index in range(place.size)])
                own, uncertainties[len(drawn)] = averaged(members)
            elif row.sampling.report_entropy:
                uncertainties[len(drawn)] = TokenUncertainty(float(_entropy(own.log_softmax(-1))))
            drawn.append(own)
        return torch.stack(drawn) if drawn else logits[:0], uncertainties

    def drawn(self, rows: Sequence[PlannedRow]) -> None:
        """A step has drawn its tokens, and is not run again: what they came from may go."""
        for row in rows:
            if row.ensemble_member is not None and row.samples_token:
                self.forget(row.ensemble_member.ensemble)

    def forget(self, request_id: str) -> None:
        """A request has ended; unknown ids are ignored."""
        self._collected.pop(request_id, None)


def averaged(logits: Tensor) -> tuple[Tensor, TokenUncertainty]:
    """Logits of p [vocab] from those of the members [members, vocab], fp32, and its uncertainty.

    They are log p + mean_i log sum e^logits_i: a repetition penalty depends on where 0 lies, so
    equal members must give back their own logits. H[p] - mean_i H[p_i] is taken as the equal
    mean_i KL(p_i || p), which is no small difference of large numbers.
    """
    normalisers = logits.logsumexp(-1, keepdim=True)
    members = logits - normalisers
    mean = members.logsumexp(0) - math.log(len(members))
    shares = members.exp()
    apart = torch.where(shares > 0, members - mean, 0.0)
    information = float((shares * apart).sum(-1).mean())
    entropy = float(_entropy(mean))
    return mean + normalisers.mean(), TokenUncertainty(entropy, max(0.0, information))


def _entropies(logits: Tensor, rows: Sequence[PlannedRow]) -> dict[int, TokenUncertainty]:
    asked = [index for index, row in enumerate(rows) if row.sampling.report_entropy]
    if not asked:
        return {}
    entropies = _entropy(logits[asked].float().log_softmax(-1)).tolist()
    return {index: TokenUncertainty(one) for index, one in zip(asked, entropies, strict=True)}


def _entropy(logprobs: Tensor) -> Tensor:
    """H [..] in nats of log probabilities [.., vocab]."""
    entropy: Tensor = torch.special.entr(logprobs.exp()).sum(-1)
    return entropy
