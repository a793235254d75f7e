"""Draws the next token of each row from its logits, for all rows of a step together.

The order of operations is that of transformers' `generate`: repetition penalty, presence and
frequency penalties, stop ids masked below `min_new_tokens`, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_engine.request import SamplingSpec
from router_engine.scheduling.plan import SampledToken
from router_engine.transfers import ReadBack, sent

_FIRST_WIDTH = 256  # candidates looked at for top_k and top_p before more are sorted
_WIDER = 8
_COLDEST = 1e-30  # a temperature that float32 would round to 0


class SamplingRow(msgspec.Struct, frozen=True):
    """What the draw of one row depends on, apart from its logits.

    The token ids are read only where `params.is_penalised`.
    """

    params: SamplingSpec
    prompt_token_ids: Sequence[int] = ()
    generated_token_ids: Sequence[int] = ()
    position: int = 0  # index of the token to draw among the generated ones


@dataclass(frozen=True, slots=True)
class LogitSummary:
    """Per row of logits: the first index of the highest, and log sum e^logit. [rows] each."""

    best: Tensor
    normaliser: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> LogitSummary:
        return cls(logits.argmax(dim=-1), logits.logsumexp(dim=-1))


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of a step, on the device.

    top_ids, top_logprobs [those of `top_rows`, most]: the best under the raw logits.
    """

    rows: Sequence[SamplingRow]
    token_ids: Tensor  # [rows] int64
    logprobs: Tensor  # [rows] fp32
    top_rows: Sequence[int] = ()
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, to be read back."""
        found = (self.token_ids, self.logprobs, self.top_ids, self.top_logprobs)
        return [each for each in found if each is not None]

    def tokens(self, arrays: Sequence[NDArray[Any]]) -> list[SampledToken]:
        """One a row, of what `tensors` hold, on the host."""
        ids, logprobs, *best = (array.tolist() for array in arrays)
        top: dict[int, tuple[tuple[int, float], ...]] = {}
        if best:
            for i, its_ids, its_logprobs in zip(self.top_rows, *best, strict=True):
                count = self.rows[i].params.top_n_tokens
                top[i] = tuple(zip(its_ids, its_logprobs, strict=True))[:count]
        return [
            SampledToken(token_id, logprob, top.get(i, ()))
            for i, (token_id, logprob) in enumerate(zip(ids, logprobs, strict=True))
        ]


class Sampler:
    """Stateless: the same logits and row give the same token, whatever else is in the batch."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], summary: LogitSummary | None = None
    ) -> list[SampledToken]:
        """One token a row, read back. See `draw`."""
        drawn = self.draw(logits, rows, summary)
        return drawn.tokens(ReadBack(drawn.tensors).arrays())

    def draw(
        self, logits: Tensor, rows: Sequence[SamplingRow], summary: LogitSummary | None = None
    ) -> Drawn:
        """One token a row. logits [rows, vocab], any float dtype; all maths is in float32.

        Greedy rows take the first of the highest logits. The others take the inverse of the
        cumulative distribution, in the order of the vocabulary, at the uniform number that
        `uniform(seed, position)` gives; rows with `given_token_ids` take the next of those.
        `summary` is that of `logits`, where a kernel made it.
        """
        raw = logits.float()
        summary = summary or LogitSummary.of(raw)
        scores = penalised(raw, rows)
        token_ids = summary.best if scores is raw else scores.argmax(dim=-1)
        hot = [i for i, row in enumerate(rows) if row.params.temperature > 0]
        if hot:
            index = _index(hot, raw)
            token_ids[index] = _draw(scores[index], [rows[i] for i in hot])
        forced = [i for i, row in enumerate(rows) if row.params.given_token_ids]
        if forced:
            ids = [rows[i].params.given_token_ids[rows[i].position] for i in forced]
            token_ids[_index(forced, raw)] = _index(ids, raw)
        logprobs = raw.gather(1, token_ids[:, None])[:, 0] - summary.normaliser
        asked = [i for i, row in enumerate(rows) if row.params.top_n_tokens > 0]
        if not asked:
            return Drawn(rows, token_ids, logprobs)
        most = min(max(rows[i].params.top_n_tokens for i in asked), raw.shape[1])
        index = _index(asked, raw)
        values, best = raw[index].topk(most, dim=-1)
        top_logprobs = values - summary.normaliser[index][:, None]
        return Drawn(rows, token_ids, logprobs, asked, best, top_logprobs)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) made from (seed, position) alone.

    Source: Philox 4x64-10, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    bits = np.random.Philox(key=seed % 2**128, counter=position).random_raw()
    return float(int(bits) >> 40) * 2.0**-24  # as many bits as a float32 below 1 keeps


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return sent(torch.tensor(values, dtype=torch.int64), like.device)


def _column(values: Iterator[float], like: Tensor) -> Tensor:
    """Values [n] as a float32 column [n, 1] on the device of `like`."""
    return sent(torch.tensor(list(values), dtype=torch.float32), like.device)[:, None]


def penalised(raw: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Scores [rows, vocab] after penalties and masked stop ids, from the raw logits in float32.

    It is `raw` itself, not a copy, when no row asks for any of them.
    """
    scores = raw
    for penalty in (_repetition, _counted, _too_early):
        scores = penalty(scores, raw, rows)
    return scores


def _flat_positions(
    rows: Sequence[SamplingRow],
    wanted: Callable[[SamplingRow], Sequence[int]],
    vocab: int,
) -> NDArray[np.int64]:
    """row * vocab + id for each id that a row wants touched.

    Ids outside the vocabulary have no logit (tokenizers know some that models do not).
    """
    parts = [np.empty(0, dtype=np.int64)]
    for i, row in enumerate(rows):
        if wanted_ids := wanted(row):
            ids = np.asarray(wanted_ids, dtype=np.int64)
            parts.append(ids[(ids >= 0) & (ids < vocab)] + i * vocab)
    return np.concatenate(parts)


def _own(scores: Tensor, raw: Tensor) -> Tensor:
    return scores.clone() if scores is raw else scores


def _repetition(scores: Tensor, raw: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """score / p where positive, score * p where negative, for ids of prompt and text.

    Source: Keskar et al., "CTRL", 2019, section 4.1; ids count once, as in transformers.
    """
    vocab = raw.shape[1]
    flat = _flat_positions(
        rows,
        lambda row: (
            ()
            if row.params.repetition_penalty == 1
            else (*row.prompt_token_ids, *row.generated_token_ids)
        ),
        vocab,
    )
    if flat.size == 0:
        return scores
    flat = np.unique(flat)
    scores = _own(scores, raw)
    penalties = np.array([row.params.repetition_penalty for row in rows], dtype=np.float32)
    at = sent(torch.from_numpy(flat), raw.device)
    by = sent(torch.from_numpy(penalties[flat // vocab]), raw.device)
    values = scores.view(-1)[at]
    scores.view(-1)[at] = torch.where(values > 0, values / by, values * by)
    return scores


def _counted(scores: Tensor, raw: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """score - presence - frequency * count, for generated ids (the OpenAI API's equation)."""
    vocab = raw.shape[1]
    flat = _flat_positions(
        rows,
        lambda row: (
            row.generated_token_ids
            if row.params.presence_penalty or row.params.frequency_penalty
            else ()
        ),
        vocab,
    )
    if flat.size == 0:
        return scores
    flat, counts = np.unique(flat, return_counts=True)
    scores = _own(scores, raw)
    presence = np.array([row.params.presence_penalty for row in rows])
    frequency = np.array([row.params.frequency_penalty for row in rows])
    off = presence[flat // vocab] + frequency[flat // vocab] * counts
    by = sent(torch.from_numpy(off.astype(np.float32)), raw.device)
    scores.view(-1)[sent(torch.from_numpy(flat), raw.device)] -= by
    return scores


def _too_early(scores: Tensor, raw: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Stop ids of rows below their `min_new_tokens` cannot be drawn."""
    flat = _flat_positions(
        rows,
        lambda row: row.params.stop_token_ids if row.position < row.params.min_new_tokens else (),
        raw.shape[1],
    )
    if flat.size == 0:
        return scores
    scores = _own(scores, raw)
    scores.view(-1)[sent(torch.from_numpy(flat), raw.device)] = -torch.inf
    return scores


def distribution(scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """What is drawn from, [rows, vocab], out of `penalised` scores; temperatures are above 0.

    Tokens that top_k, top_p or min_p rule out are 0; the others are not scaled up to sum to 1.
    """
    temperature = _column((row.params.temperature for row in rows), scores).clamp(min=_COLDEST)
    # The highest score is taken off before the division, so that no temperature overflows.
    logits = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    return _truncated(torch.softmax(logits, dim=-1), rows)


def _draw(scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Token ids [rows] by the inverse of the cumulative distribution, in vocabulary order."""
    cumulative = distribution(scores, rows).cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    uniforms = _column((uniform(row.params.seed, row.position) for row in rows), scores)
    drawn = torch.searchsorted(cumulative, uniforms * total, right=True)
    # uniform * total may round up to total: the last token that adds to it is the one then.
    drawn = torch.minimum(drawn, torch.searchsorted(cumulative, total))
    # Logits that are not numbers lead past the end; their logprob, nan, tells the caller.
    return drawn[:, 0].clamp(max=scores.shape[1] - 1)


def _truncated(probabilities: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Probabilities under a row's threshold set to 0; equal probabilities stay or go together.

    One threshold says it all: top_k, top_p and min_p each keep the tokens from some probability
    up. Sources: Holtzman et al. 2020 (top_p); Nguyen et al. 2024 (min_p).
    """
    asked = [
        i
        for i, row in enumerate(rows)
        if row.params.top_k > 0 or row.params.top_p < 1 or row.params.min_p > 0
    ]
    if not asked:
        return probabilities
    index = _index(asked, probabilities)
    some, params = probabilities[index], [rows[i].params for i in asked]
    threshold = _column((p.min_p for p in params), some) * some.amax(dim=-1, keepdim=True)
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        threshold = torch.maximum(threshold, _rank_threshold(some, params))
    probabilities[index] = torch.where(some < threshold, 0.0, some)
    return probabilities


def _rank_threshold(probabilities: Tensor, params: Sequence[SamplingSpec]) -> Tensor:
    """The least probability [rows, 1] that top_k, then top_p over what that leaves, keeps.

    A few hundred of the best tokens nearly always settle it, so the whole vocabulary is sorted
    only when they do not. A card sorts it at once: to ask whether they do would be to wait for it.
    """
    vocab = probabilities.shape[1]
    top_k = _index([p.top_k or vocab for p in params], probabilities)[:, None].clamp(max=vocab)
    top_p = _column((p.top_p for p in params), probabilities)
    no_k, no_p = top_k == vocab, top_p >= 1
    width = min(_FIRST_WIDTH, vocab) if probabilities.device.type == "cpu" else vocab
    while True:
        best = probabilities.topk(width, dim=-1).values  # [rows, width], highest first
        enough = no_p | (best.sum(-1, keepdim=True) > top_p)
        if width == vocab or bool(torch.where(no_k, enough, top_k <= width).all()):
            break
        width = min(width * _WIDER, vocab)
    kth = best.gather(1, top_k.clamp(max=width) - 1)
    best = torch.where((best < kth) & ~no_k, 0.0, best)
    mass = torch.where(no_k, 1.0, best.sum(-1, keepdim=True))
    better = best.cumsum(dim=-1) - best  # what the tokens before weigh together
    allowed = (best > 0) & (no_p | (better < top_p * mass))
    least = best.gather(1, allowed.sum(-1, keepdim=True).clamp(min=1) - 1)
    return torch.where(no_k & no_p, 0.0, least)
