"""The encoder worker's answers to messages, apart from sockets: sessions, texts, batches."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from router_engine.errors import RouterError
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.encoder.examples import MAX_SETS, ExampleBank
from router_engine.routers.encoder.owned_queue import Client, OwnedQueue
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.knn import RetrievalParams, nearest, weights_from_neighbours
from router_engine.routers.scoring import (
    SimilarityParams,
    Vector,
    Window,
    cosine_scores,
    unit_rows,
    weights_from_scores,
    winner_is_pushed_down,
)

logger = logging.getLogger(__name__)

Answer = tuple[Client, m.Reply]


class Encoder(Protocol):
    """What the service needs of `SentenceEncoder`."""

    dimension: int

    @property
    def digest(self) -> str: ...

    def encode(self, texts: Sequence[str], window: Window = ...) -> NDArray[np.float32]: ...


@dataclass(slots=True)
class _Session:
    """A request's text. It keeps the centroids that it began with, as it keeps its adapters."""

    centroids: Vector  # of length 1 [k, d]
    params: SimilarityParams
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pending:
    """One text that waits for the encoder, and what is made of its embedding [d]."""

    read: Callable[[], str]
    window: Window
    answer: Callable[[NDArray[np.float32]], m.Reply]
    fail: Callable[[str], m.Reply]


class EncoderService:
    """Owns sessions, centroids, examples and the queue of texts. Only `work` encodes.

    Every ask is answered once, those of one session in order, but for what waits when its session
    ends or is begun anew, or when it is cancelled: that is dropped. Texts of all sessions and
    requests that wait share one encoder batch. Centroid texts (`Embed`) come after them, one
    message a turn, so that publishing an adapter slows live routing but never stops it.
    """

    def __init__(
        self,
        encoder: Encoder,
        decode: Callable[[list[int]], str],
        *,
        max_batch: int = 32,
        max_sessions: int = 4096,
        max_example_sets: int = MAX_SETS,
    ) -> None:
        """`decode`: the base model's tokenizer, over all ids of a text at once."""
        self._encoder = encoder
        self._decode = decode
        self._max_batch = max_batch
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[tuple[Client, str], _Session] = OrderedDict()
        self._centroids: dict[str, NDArray[np.float32]] = {}
        self._examples = ExampleBank(encoder.dimension, num_sets=max_example_sets)
        self._matrices: OrderedDict[tuple[str, ...], Vector] = OrderedDict()
        self._texts: OwnedQueue[_Pending] = OwnedQueue()
        self._embeds: OwnedQueue[m.Embed] = OwnedQueue()
        self._ready: deque[Answer] = deque()
        self._warned = False

    @property
    def pending(self) -> int:
        """Messages taken in that still need work."""
        return len(self._texts) + len(self._embeds) + len(self._ready)

    @property
    def sessions(self) -> int:
        """Sessions that have begun and not ended."""
        return len(self._sessions)

    def receive(self, client: Client, payload: bytes) -> None:
        """Take one message in; what cannot be read or done is answered with an error."""
        try:
            ask = m.decode_ask(payload)
        except msgspec.DecodeError as error:
            self._ready.append((client, m.Failed(_read_id(payload), f"unreadable ask: {error}")))
            return
        try:
            self._take(client, ask)
        except (RouterError, ValueError) as error:
            self._refuse(client, ask, error)

    def work(self) -> list[Answer]:
        """Encode one batch of texts, then one Embed; the answers, in the order of the asks."""
        answers = [*self._ready]
        self._ready.clear()
        if self._texts:
            taken = self._texts.take(self._max_batch)
            answers += self._route([(client, pending) for (client, _), pending in taken])
        answers += [self._embed(client, ask) for (client, _), ask in self._embeds.take(1)]
        return answers

    def forget(self, client: Client) -> None:
        """Drop what a client that has gone left behind."""
        for key in [key for key in self._sessions if key[0] == client]:
            del self._sessions[key]
        self._texts.drop_client(client)
        self._embeds.drop_client(client)

    def _take(self, client: Client, ask: m.Ask) -> None:
        match ask:
            case m.Embed():
                self._embeds.put((client, ask.id), _checked(ask))
            case m.Route():
                self._texts.put((client, ask.id), self._one_text(ask))
            case m.Retrieve():
                self._texts.put((client, ask.id), self._one_retrieval(ask))
            case m.PutEncoderCentroids() | m.PutExamples():
                self._put(ask)
                self._ready.append((client, m.Done(ask.id)))
            case m.AskInfo():
                info = m.Info(ask.id, self._encoder.digest, self._encoder.dimension)
                self._ready.append((client, info))
            case m.Begin():
                self._begin(client, ask)
            case m.Extend():
                self._extend(client, ask.session, ask.token_ids)
            case m.End():
                self._drop_session(client, ask.session)
            case m.CancelQuery():
                self._texts.drop((client, ask.id))
                self._embeds.drop((client, ask.id))

    def _drop_session(self, client: Client, name: str) -> int:
        """Forget it; how many of its texts waited."""
        self._sessions.pop((client, name), None)
        return self._texts.drop((client, name))

    def _refuse(self, client: Client, ask: m.Ask, error: Exception) -> None:
        is_away = isinstance(error, RouterUnavailableError)
        match ask:
            case m.Begin() | m.Extend():
                self._drop_session(client, ask.session)
                self._ready.append((client, m.SessionFailed(ask.session, 0, str(error), is_away)))
            case m.End() | m.CancelQuery():
                logger.warning("cannot do %r: %s", ask, error)
            case _:
                self._ready.append((client, m.Failed(ask.id, str(error), is_away)))

    def _one_text(self, ask: m.Route) -> _Pending:
        params = SimilarityParams.parse(ask.params)
        centroids = self._matrix(ask.candidates)
        return _Pending(
            lambda: ask.text,
            params.window,
            answer=lambda embedding: m.Routed(ask.id, self._weigh(embedding, centroids, params)),
            fail=lambda error: m.Failed(ask.id, error),
        )

    def _one_retrieval(self, ask: m.Retrieve) -> _Pending:
        params = RetrievalParams.parse(ask.params)
        if not ask.candidates:
            raise RouterError("no candidates to route between")
        return _Pending(
            lambda: ask.text,
            params.window,
            answer=lambda embedding: self._retrieve(embedding, ask, params),
            fail=lambda error: m.Failed(ask.id, error),
        )

    def _begin(self, client: Client, ask: m.Begin) -> None:
        params = SimilarityParams.parse(ask.params)
        session = _Session(self._matrix(ask.candidates), params)
        self._drop_session(client, ask.session)
        self._sessions[client, ask.session] = session
        if len(self._sessions) > self._max_sessions:  # left behind by a client that died
            self._evict(*next(iter(self._sessions)))
        self._extend(client, ask.session, ask.token_ids)

    def _evict(self, client: Client, name: str) -> None:
        if self._drop_session(client, name):
            error = "the encoder worker holds too many sessions"
            self._ready.append((client, m.SessionFailed(name, 0, error, is_away=True)))

    def _extend(self, client: Client, name: str, token_ids: Sequence[int]) -> None:
        session = self._sessions.get((client, name))
        if session is None:
            raise RouterUnavailableError(f"the encoder worker knows no session {name!r}")
        self._sessions.move_to_end((client, name))
        session.token_ids.extend(token_ids)
        count = len(session.token_ids)
        self._texts.put(
            (client, name),
            _Pending(
                # Only once its turn has come: a session that ends before costs nothing.
                lambda: self._decode(session.token_ids[:count]),
                session.params.window,
                answer=lambda embedding: m.SessionRouted(
                    name, count, self._weigh(embedding, session.centroids, session.params)
                ),
                fail=lambda error: m.SessionFailed(name, count, error),
            ),
        )

    def _require_centroids(self, candidates: Sequence[str]) -> None:
        if not candidates:
            raise RouterError("no candidates to route between")
        unknown = [digest for digest in candidates if digest not in self._centroids]
        if unknown:
            raise RouterUnavailableError(
                f"the encoder worker has no centroid of {', '.join(unknown)}"
            )

    def _put(self, ask: m.PutEncoderCentroids | m.PutExamples) -> None:
        if isinstance(ask, m.PutEncoderCentroids):
            self._put_centroids(ask)
            return
        for key, data in ask.examples.items():
            self._examples.put(key, m.unpack_vectors(data, self._encoder.dimension))

    def _put_centroids(self, ask: m.PutEncoderCentroids) -> None:
        vectors = {
            digest: m.unpack_vectors(data, self._encoder.dimension)
            for digest, data in ask.centroids.items()
        }
        for digest, vector in vectors.items():
            if len(vector) != 1 or not np.isfinite(vector).all():
                raise RouterError(
                    f"the centroid of {digest} must be {self._encoder.dimension} finite numbers"
                )
        self._centroids.update((digest, vector[0]) for digest, vector in vectors.items())
        self._matrices.clear()

    def _route(self, batch: list[tuple[Client, _Pending]]) -> Iterator[Answer]:
        try:
            embeddings = self._encode([pending for _, pending in batch])
        except Exception as error:  # the loop must outlive a bad text, and so must the others
            if len(batch) > 1:
                return chain.from_iterable(self._route([each]) for each in batch)
            logger.exception("the sentence encoder failed")
            said = f"the sentence encoder failed: {error}"
            return iter([(client, pending.fail(said)) for client, pending in batch])
        return (
            (client, pending.answer(embedding))
            for (client, pending), embedding in zip(batch, embeddings, strict=True)
        )

    def _encode(self, batch: list[_Pending]) -> list[NDArray[np.float32]]:
        embeddings: dict[int, NDArray[np.float32]] = {}
        for window in {pending.window for pending in batch}:
            rows = [i for i, pending in enumerate(batch) if pending.window == window]
            vectors = self._encoder.encode([batch[i].read() for i in rows], window)
            embeddings.update(zip(rows, vectors, strict=True))
        return [embeddings[i] for i in range(len(batch))]

    def _weigh(
        self, embedding: NDArray[np.float32], centroids: Vector, params: SimilarityParams
    ) -> tuple[float, ...]:
        scores = cosine_scores(embedding, centroids)
        if not self._warned and winner_is_pushed_down(scores, params):
            self._warned = True
            logger.warning(
                "paper scoring multiplied a negative largest score (%.3f), which pushes the "
                "best candidate down; said once for the life of this worker",
                scores.max(),
            )
        return weights_from_scores(scores, params)

    def _retrieve(
        self, embedding: NDArray[np.float32], ask: m.Retrieve, params: RetrievalParams
    ) -> m.Reply:
        lacking = self._examples.lacking(ask.candidates)
        if lacking:
            return m.Retrieved(ask.id, lacking=lacking)
        examples = self._examples.view(ask.candidates)
        owners, cosines = nearest(unit_rows(embedding)[0], examples, params.k)
        weights = weights_from_neighbours(owners, cosines, len(ask.candidates), params)
        return m.Retrieved(ask.id, weights)

    def _matrix(self, candidates: tuple[str, ...]) -> Vector:
        """Centroids of length 1 [k, d], kept for candidate lists in use. Raises RouterError."""
        self._require_centroids(candidates)
        matrix = self._matrices.get(candidates)
        if matrix is None:
            matrix = unit_rows([self._centroids[digest] for digest in candidates])
            self._matrices[candidates] = matrix
        self._matrices.move_to_end(candidates)
        if len(self._matrices) > 64:
            self._matrices.popitem(last=False)
        return matrix

    def _embed(self, client: Client, ask: m.Embed) -> Answer:
        try:
            vectors = self._encoder.encode(ask.texts, ask.window)
        except Exception as error:
            logger.exception("the sentence encoder failed")
            return client, m.Failed(ask.id, f"the sentence encoder failed: {error}")
        return client, m.Embedded(ask.id, m.pack_vector(vectors), self._encoder.dimension)


def _checked(ask: m.Embed) -> m.Embed:
    if len(ask.texts) > m.MAX_TEXTS:
        raise RouterError(f"{len(ask.texts)} texts in one ask; at most {m.MAX_TEXTS}")
    return ask


def _read_id(payload: bytes) -> int | None:
    """The `id` of a message that is wrong otherwise."""
    try:
        value = msgspec.msgpack.decode(payload)
    except msgspec.DecodeError:
        return None
    request_id = value.get("id") if isinstance(value, dict) else None
    return request_id if isinstance(request_id, int) else None
