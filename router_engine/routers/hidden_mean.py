"""The token router `hidden_mean`: the base's own hidden states are the embedding.

e is the mean of the base's hidden states at the probe layer over the latest tokens of the text so
far, each scaled to a root mean square of 1, as some are a hundred times as large as others. The
window goes with the text, so that an answer can change from one skill to another. An adapter is
known by two vectors, c and q: the means of e and of e^2 over its sample texts, each read in
quarters, as the router reads texts that have only begun. No second model runs and nothing waits:
the states are there when the pass is over.

Hidden states of all texts share one large direction, and a few of their dimensions vary more than
all others together. So both are standardised: with m the mean of the candidates' c and
d = sqrt(mean q - m^2), s_j = cos((e - m) / d, (c_j - m) / d); then w = softmax(s / temperature)
over the top_k best.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from router_engine.request import TokenRouting
from router_engine.routers.base import HiddenQuery, HiddenWeights, Prior
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec
from router_engine.routers.scoring import CosineParams, weigh_rows
from router_engine.sparse_weights import SparseWeights

_KEPT = 64  # matrices of candidates in use
_LEAST = 1e-6  # of a variance, so that one text alone can be routed to

Matrix = NDArray[np.float32]


class HiddenMeanParams(CosineParams):
    """Parameters of the router `hidden_mean`. Unknown keys are refused."""

    temperature: float = Field(
        default=0.05, gt=0, le=100, description="Of the softmax: smaller is sharper."
    )
    prior: Literal["base", "uniform"] = Field(
        default="base",
        description="What the prompt runs under until its states are there: no adapter, or all "
        "candidates with equal weights.",
    )
    warmup: int = Field(
        default=32,
        ge=0,
        description="Tokens of the prompt under the prior, after which the rest of it runs under "
        "the weights that they give; 0: all of the prompt runs under the prior.",
    )
    window: int | None = Field(
        default=32,
        ge=1,
        description="How many tokens are read, the latest, up to whole blocks of the KV cache; "
        "none: all of the text.",
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """mean, spread [hidden]: of the candidates' texts. units [k, hidden]: of length 1."""

    mean: Matrix
    spread: Matrix
    units: Matrix

    @classmethod
    def of(cls, vectors: Matrix) -> _Candidates:
        """From c and q of each, [k, 2 hidden]."""
        centroids, squares = np.split(vectors.astype(np.float64), 2, axis=1)
        mean = centroids.mean(axis=0)
        spread = np.sqrt(np.maximum(squares.mean(axis=0) - mean**2, _LEAST))
        units = _units((centroids - mean) / spread)
        return cls(*(part.astype(np.float32) for part in (mean, spread, units)))

    def scores(self, means: Matrix) -> Matrix:
        """means [n, hidden] -> cosines [n, k].

        By torch, on the threads of the step: numpy's own would wait for work beside them. It is
        imported here as the HTTP process, which has no torch, reads the parameters above.
        """
        import torch

        standard, units = _units((means - self.mean) / self.spread), torch.from_numpy(self.units)
        product: Matrix = (torch.from_numpy(standard) @ units.T).numpy()
        return product


class _Group:
    """The live requests with these candidates and parameters: one product weighs them all."""

    def __init__(self, candidates: tuple[str, ...], params: HiddenMeanParams) -> None:
        self.candidates = candidates
        self.params = params


class HiddenMeanRouter:
    """`HiddenRouter` over centroids that the server has put here."""

    def __init__(self) -> None:
        self._centroids: dict[str, Matrix] = {}
        self._sessions: dict[str, _Group] = {}
        self._groups = WeakValueDictionary[tuple[tuple[str, ...], HiddenMeanParams], _Group]()
        self._matrices: OrderedDict[tuple[str, ...], _Candidates] = OrderedDict()

    def put(self, centroids: Mapping[str, Sequence[float]]) -> None:
        """See `HiddenRouter.put`."""
        self._centroids.update(
            (digest, np.asarray(vector, np.float32)) for digest, vector in centroids.items()
        )
        self._matrices.clear()

    def begin(self, request_id: str, candidates: Sequence[str], routing: TokenRouting) -> Prior:
        """See `HiddenRouter.begin`."""
        params = parse_params(HiddenMeanParams, "hidden_mean", routing.params)
        unknown = [digest for digest in candidates if digest not in self._centroids]
        if unknown:
            # This engine was started after they were put, and will be given them in a moment.
            raise RouterUnavailableError(f"the engine has no centroid of {', '.join(unknown)}")
        group = _Group(tuple(candidates), params)
        self._sessions[request_id] = self._groups.setdefault((group.candidates, params), group)
        return Prior(_prior(params, len(candidates)), params.warmup or None, params.window)

    def weigh(self, questions: Sequence[HiddenQuery]) -> list[HiddenWeights]:
        """See `HiddenRouter.weigh`."""
        groups: dict[_Group, list[HiddenQuery]] = {}
        answers: list[HiddenWeights] = []
        for question in questions:
            group = self._sessions[question.request_id]
            if question.mean is None:
                weights = _prior(group.params, len(group.candidates))
                sparse = SparseWeights.from_dense(weights)
                answers.append(HiddenWeights(question.request_id, question.num_tokens, sparse))
            else:
                groups.setdefault(group, []).append(question)
        for group, members in groups.items():
            answers += self._weigh(group, members)
        return answers

    def end(self, request_id: str) -> None:
        """Forget a request."""
        self._sessions.pop(request_id, None)

    def _weigh(self, group: _Group, questions: Sequence[HiddenQuery]) -> Iterator[HiddenWeights]:
        candidates = self._matrix(group.candidates)
        means = np.stack([question.mean for question in questions if question.mean is not None])
        rows = weigh_rows(candidates.scores(means), group.params)
        for question, row in zip(questions, rows, strict=True):
            yield HiddenWeights(question.request_id, question.num_tokens, row)

    def _matrix(self, candidates: tuple[str, ...]) -> _Candidates:
        matrix = self._matrices.get(candidates)
        if matrix is None:
            rows = np.stack([self._centroids[digest] for digest in candidates])
            matrix = self._matrices[candidates] = _Candidates.of(rows)
        self._matrices.move_to_end(candidates)
        if len(self._matrices) > _KEPT:
            self._matrices.popitem(last=False)
        return matrix


def _prior(params: HiddenMeanParams, count: int) -> tuple[float, ...]:
    if params.prior == "base":
        return (0.0,) * count
    return (1.0 / count,) * count


def _units(rows: Matrix) -> Matrix:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))  # numpy.linalg.norm takes twice as long
    return np.asarray(rows / np.maximum(norms, 1e-12)[:, None])


SPEC = RouterSpec(
    name="hidden_mean",
    summary="Similarity of the base's own hidden states, at no cost.",
    params=HiddenMeanParams,
    hidden=HiddenMeanRouter,
)
