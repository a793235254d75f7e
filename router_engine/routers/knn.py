"""The mathematics of the router `retrieval`: from the nearest sample texts to weights.

After LoraRetriever (Zhao et al. 2024, arXiv 2402.09997): adapters are found by their samples, once
for a request. There a sample set counts as one mean; here every text counts for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from router_engine.routers.params import parse_params
from router_engine.routers.scoring import (
    CosineParams,
    Vector,
    Window,
    best_scores,
    falls_back,
    weights_from_scores,
)

Indices = NDArray[np.intp]

MAX_EXAMPLES = 64  # sample texts of one adapter that are compared with a prompt


class RetrievalParams(CosineParams):
    """Parameters of the router `retrieval`. Unknown keys are refused."""

    k: int = Field(
        default=16, ge=1, le=4096, description="How many of the nearest sample texts are looked at."
    )
    weighting: Literal["softmax", "uniform"] = Field(
        default="softmax",
        description="softmax: of each chosen adapter's best cosine / temperature; uniform: all "
        "chosen adapters alike.",
    )
    window: Window = Field(
        default="tail",
        description="Which word pieces the encoder reads of a prompt that is too long for it: the "
        "latest (tail) or the first (head).",
    )

    @model_validator(mode="after")
    def _refuse_what_would_not_act(self) -> RetrievalParams:
        if self.weighting == "uniform" and "temperature" in self.model_fields_set:
            raise ValueError(
                "temperature does nothing under weighting='uniform': leave it out or use "
                "weighting='softmax'"
            )
        return self

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> RetrievalParams:
        """Raises RouterInputError naming every wrong key or value."""
        return parse_params(cls, "retrieval", params)


def example_indices(num_texts: int) -> Indices:
    """Which of an adapter's texts are its examples: all, or MAX_EXAMPLES evenly over the list."""
    count = min(num_texts, MAX_EXAMPLES)
    return np.arange(count) * num_texts // max(count, 1)


@dataclass(frozen=True, slots=True)
class ExampleView:
    """The examples of some candidates in a larger matrix.

    rows [N, d] of length 1; index [n]: which of them count; owners [n]: whose each of those is.
    """

    rows: NDArray[np.float32]
    index: Indices
    owners: Indices


def nearest(embedding: Vector, examples: ExampleView, k: int) -> tuple[Indices, Vector]:
    """Owners [<= k] and cosines [<= k] of the k examples nearest to `embedding`, nearest first.

    embedding [d] of length 1. One product in float32 finds them; those that may be among them are
    compared again in float64, row by row. So the outcome does not depend on how the product was
    cut, and of equal examples the earlier ones are nearer.
    """
    rows, index = examples.rows, examples.index
    single = embedding.astype(np.float32)
    few = len(index) * _COPY_COST < len(rows)
    scores = rows[index] @ single if few else (rows @ single)[index]
    near = np.arange(len(scores))
    if len(scores) > k:
        near = np.flatnonzero(scores >= np.partition(scores, -k)[-k] - _FLOAT32_ERROR)
    exact = np.einsum("nd,d->n", rows[index[near]].astype(np.float64), embedding)
    order = np.argsort(-exact, kind="stable")[:k]
    return examples.owners[near[order]], exact[order]


def weights_from_neighbours(
    owners: Indices, cosines: Vector, num_candidates: int, params: RetrievalParams
) -> tuple[float, ...]:
    """Weights [num_candidates] from the owners [n] and cosines [n] of the nearest examples."""
    best = np.full(num_candidates, -np.inf)
    np.maximum.at(best, owners, cosines)
    if params.weighting == "softmax":
        return weights_from_scores(best, params)
    weights = np.zeros(num_candidates)
    if not falls_back(best, params):
        chosen = best_scores(best, params.top_k)
        weights[chosen] = 1 / len(chosen)
    return tuple(weights.tolist())


_COPY_COST = 8  # rows that are multiplied in the time that one is copied in
_FLOAT32_ERROR = 1e-4  # of a cosine: above d * 2**-24 for every d of a sentence encoder
