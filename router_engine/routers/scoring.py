"""Scores and weights from an embedding and centroids: cosines, then `softmax` or `paper`.

`paper` is step 3-4 of "Token-Level Adaptation of LoRA Adapters for Downstream Task
Generalization" (2023, doi 10.1145/3639592.3639615).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from router_engine.routers.params import parse_params
from router_engine.sparse_weights import SparseWeights

Vector = NDArray[np.float64]
Window = Literal["tail", "head"]

_OF_SCORING = {"softmax": {"temperature", "top_k", "threshold"}, "paper": {"sharpening"}}


class CosineParams(BaseModel):
    """Parameters of every router that turns cosines into weights. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    temperature: float = Field(
        default=0.1, gt=0, le=100, description="Of the softmax: smaller is sharper."
    )
    top_k: int | None = Field(
        default=None, ge=1, description="At most this many weights above 0; none: all."
    )
    threshold: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Where the best cosine is below it, all weights are 0 and the base answers; "
        "none: never.",
    )


class SimilarityParams(CosineParams):
    """Parameters of the router `similarity`. Unknown keys are refused."""

    scoring: Literal["softmax", "paper"] = Field(
        default="softmax",
        description="softmax: w = softmax(s / temperature) over the top_k best; paper: the largest "
        "score times `sharpening`, then softmax over all, with no temperature, top_k or threshold.",
    )
    sharpening: float = Field(
        default=4.0, gt=0, le=1000, description="scoring paper: factor on the largest score."
    )
    window: Window = Field(
        default="tail",
        description="Which word pieces the encoder reads of a text that is too long for it: "
        "the latest (tail) or the first (head, as the paper's code does).",
    )

    @model_validator(mode="after")
    def _refuse_what_would_not_act(self) -> SimilarityParams:
        for scoring, fields in _OF_SCORING.items():
            idle = sorted(fields & self.model_fields_set) if scoring != self.scoring else []
            if idle:
                raise ValueError(
                    f"{', '.join(idle)} does nothing under scoring={self.scoring!r}: "
                    f"leave it out or use scoring={scoring!r}"
                )
        return self

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> SimilarityParams:
        """Raises RouterInputError naming every wrong key or value."""
        return parse_params(cls, "similarity", params)


def unit_rows(rows: ArrayLike) -> Vector:
    """Rows [k, d] scaled to length 1; a zero row stays zero, so that its cosine is 0."""
    matrix = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, 1e-12))


def cosine_scores(embedding: ArrayLike, centroids: ArrayLike) -> Vector:
    """s_j = cos(e, c_j): e [d], c [k, d] -> s [k]."""
    return np.asarray(unit_rows(centroids) @ unit_rows(embedding)[0])


def softmax(scores: Vector) -> Vector:
    """exp(s_j) / sum_i exp(s_i) over the last axis [k]."""
    exponentials = np.exp(scores - scores.max())
    weights: Vector = exponentials / exponentials.sum()
    return weights


def falls_back(scores: Vector, params: CosineParams) -> bool:
    """Whether nothing is alike enough, so that the base answers alone."""
    return params.threshold is not None and float(scores.max()) < params.threshold


def best_scores(scores: Vector, top_k: int | None) -> NDArray[np.intp]:
    """Where the top_k largest finite scores are, best first; the earlier of two equal ones wins."""
    order = np.argsort(-scores, kind="stable")
    return order[np.isfinite(scores[order])][:top_k]


def weights_from_scores(scores: Vector, params: CosineParams) -> tuple[float, ...]:
    """Weights [k] from scores [k]: they sum to 1, or are all 0 below the threshold.

    The rule is that of `weigh_rows`, or the paper's.
    """
    if isinstance(params, SimilarityParams) and params.scoring == "paper":
        sharpened = scores.copy()
        sharpened[int(scores.argmax())] *= params.sharpening
        return tuple(softmax(sharpened).tolist())
    return weigh_rows(scores[None], params)[0].dense


def weigh_rows(scores: NDArray[np.floating[Any]], params: CosineParams) -> list[SparseWeights]:
    """softmax(s / temperature) over the top_k best of each of scores [n, k], for all rows at once.

    Among equal scores the earlier candidate wins. A score of -inf gets weight 0, as do all below
    the threshold. A row with a NaN gets weights that are NaN, and changes no other row's.
    """
    spoilt = np.isnan(scores).any(axis=1)
    scores = np.where(spoilt[:, None], 0, scores)
    count, limit = scores.shape[1], params.top_k or scores.shape[1]
    if limit < count:
        # Of equal scores the earlier stays: only the few that may be kept are put in order.
        least = -np.partition(-scores, limit - 1, axis=1)[:, limit - 1 : limit]
        chosen = scores > least
        ties = scores == least
        room = limit - chosen.sum(axis=1, keepdims=True)
        chosen |= ties & (ties.cumsum(axis=1) <= room)
        columns = np.nonzero(chosen)[1].reshape(-1, limit)
    else:
        columns = np.broadcast_to(np.arange(count), scores.shape)
    exact = np.take_along_axis(scores, columns, axis=1).astype(np.float64)
    best = exact.max(axis=1, keepdims=True)
    powers = np.exp((exact - best) / params.temperature)
    powers /= powers.sum(axis=1, keepdims=True)
    if params.threshold is not None:
        powers[best[:, 0] < params.threshold] = 0
    powers[spoilt] = np.nan
    rows = zip(columns.tolist(), powers.tolist(), strict=True)
    return [_sparse(count, owners, weights) for owners, weights in rows]


def _sparse(size: int, columns: list[int], weights: list[float]) -> SparseWeights:
    """A low temperature, or the threshold, leaves zeros among those that were kept."""
    if 0.0 in weights:
        columns = [column for column, weight in zip(columns, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    return SparseWeights(size, tuple(columns), tuple(weights))


def winner_is_pushed_down(scores: Vector, params: SimilarityParams) -> bool:
    """Whether `paper` lowers the best candidate: a negative score times a factor above 1."""
    return params.scoring == "paper" and params.sharpening > 1 and float(scores.max()) < 0
