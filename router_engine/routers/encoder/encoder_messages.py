"""Messages to and from the encoder worker, as msgpack. Vectors are little-endian float32."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from router_engine.routers.scoring import Window

MAX_CHARACTERS = 1 << 16  # of one text: no encoder reads as many (see `part_read`)
MAX_TEXTS = 64  # of one Embed: a longer one would hold up the routing of live requests


class EncoderMessage(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages; the tag is the class name."""


class Embed(EncoderMessage, frozen=True):
    """Texts to embed: answered by Embedded or Failed."""

    id: int
    texts: tuple[str, ...]
    window: Window


class Route(EncoderMessage, frozen=True):
    """Weights from one text: answered by Routed or Failed."""

    id: int
    text: str
    candidates: tuple[str, ...]
    params: dict[str, Any]


class Retrieve(EncoderMessage, frozen=True):
    """Weights from one text and the examples nearest to it: answered by Retrieved or Failed."""

    id: int
    text: str
    candidates: tuple[str, ...]  # digests of their sample texts
    params: dict[str, Any]


class PutExamples(EncoderMessage, frozen=True):
    """Embeddings of single sample texts by the texts' digest, each [n, d]: Done or Failed."""

    id: int
    examples: dict[str, bytes]


class PutEncoderCentroids(EncoderMessage, frozen=True):
    """Centroids by adapter digest, each [d]: answered by Done or Failed."""

    id: int
    centroids: dict[str, bytes]


class AskInfo(EncoderMessage, frozen=True):
    """Who is there: answered by Info."""

    id: int


class Begin(EncoderMessage, frozen=True):
    """A request's prompt: answered by SessionRouted or SessionFailed. Replaces a namesake."""

    session: str
    token_ids: tuple[int, ...]
    candidates: tuple[str, ...]
    params: dict[str, Any]


class Extend(EncoderMessage, frozen=True):
    """More tokens of a session: answered as Begin is."""

    session: str
    token_ids: tuple[int, ...]


class End(EncoderMessage, frozen=True):
    """Forget a session and what waits of it. No answer."""

    session: str


class CancelQuery(EncoderMessage, frozen=True):
    """Drop the ask `id` if it still waits: nobody waits for its answer. No answer."""

    id: int


class Embedded(EncoderMessage, frozen=True):
    id: int
    vectors: bytes  # [n, d]
    dimension: int


class Routed(EncoderMessage, frozen=True):
    id: int
    weights: tuple[float, ...]


class Retrieved(EncoderMessage, frozen=True):
    """Either weights, or the candidates whose examples must be put first."""

    id: int
    weights: tuple[float, ...] = ()
    lacking: tuple[str, ...] = ()


class Done(EncoderMessage, frozen=True):
    id: int


class Info(EncoderMessage, frozen=True):
    id: int
    digest: str
    dimension: int


class Failed(EncoderMessage, frozen=True):
    """The ask `id` got no answer; id None when not even that could be read.

    is_away: the worker lacks what one before it was given, and will have it in a moment.
    """

    id: int | None
    error: str
    is_away: bool = False


class SessionRouted(EncoderMessage, frozen=True):
    session: str
    num_tokens: int  # the weights were made from the first `num_tokens` tokens
    weights: tuple[float, ...]


class SessionFailed(EncoderMessage, frozen=True):
    """A session that gets no more answers; is_away as in `Failed`."""

    session: str
    num_tokens: int
    error: str
    is_away: bool = False


Ask = (
    Embed
    | Route
    | Retrieve
    | PutEncoderCentroids
    | PutExamples
    | AskInfo
    | CancelQuery
    | Begin
    | Extend
    | End
)
Reply = Embedded | Routed | Retrieved | Done | Info | Failed | SessionRouted | SessionFailed

encode = msgspec.msgpack.Encoder().encode
_asks: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def decode_ask(payload: bytes) -> Ask:
    """Raises msgspec.DecodeError (or its ValidationError) on anything else."""
    return _asks.decode(payload)


def decode_reply(payload: bytes) -> Reply:
    """Raises msgspec.DecodeError (or its ValidationError) on anything else."""
    return _replies.decode(payload)


def part_read(text: str, window: Window, most: int = MAX_CHARACTERS) -> str:
    """The end (`tail`) or the beginning (`head`) of a text that is longer than an encoder reads.

    Whoever sends a text cuts it first, and the encoder cuts all texts alike, so that it is the
    same text whichever way it came.
    """
    return text[-most:] if window == "tail" else text[:most]


def pack_vector(vector: ArrayLike) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def unpack_vectors(data: bytes, dimension: int) -> NDArray[np.float32]:
    """Bytes -> [n, dimension]; raises ValueError when they are no whole number of vectors."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, dimension).astype(np.float32)
