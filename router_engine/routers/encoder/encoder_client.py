"""The encoder worker, seen from an asyncio loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray
from zmq.utils.monitor import parse_monitor_message

from router_engine.errors import RouterError
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.scoring import Window

logger = logging.getLogger(__name__)

ClientAsk = m.Embed | m.Route | m.Retrieve | m.PutEncoderCentroids | m.PutExamples | m.AskInfo
_Reply = TypeVar("_Reply", m.Embedded, m.Routed, m.Retrieved, m.Done, m.Info)

_EMBED_TEXTS = 8  # texts of one message: what a live routed request may have to wait behind
_CONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED
_LOST = zmq.Event.DISCONNECTED


class EncoderClient:
    """Owns one connection. Used from one loop, between `start` and `close` (or `async with`).

    When the worker dies, the asks under way fail with RouterUnavailableError. Later ones wait up
    to `connect_seconds` for it to come back; `connections` then has grown by one, and whoever
    put centroids puts them again.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        connect_seconds: float = 5.0,
        answer_seconds: float = 60.0,
        max_waiting: int = 1024,
    ) -> None:
        self._endpoint = endpoint
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._max_waiting = max_waiting
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._connected = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[m.Reply]] = {}
        self._ids = itertools.count()
        self.connections = 0

    @property
    def is_connected(self) -> bool:
        """Whether the worker is there now."""
        return self._connected.is_set()

    @property
    def waiting(self) -> int:
        """Asks that have no answer yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Begin to connect; the worker need not be there yet."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)  # milliseconds
        monitor = self._socket.get_monitor_socket(_CONNECTED | _LOST)
        self._socket.connect(self._endpoint)
        self._tasks = [
            asyncio.create_task(self._watch(monitor)),
            asyncio.create_task(self._read(self._socket)),
        ]

    async def close(self) -> None:
        """Drop the connection; asks under way fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lose()
        if self._socket is not None and self._context is not None:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
        self._socket = self._context = None

    async def __aenter__(self) -> EncoderClient:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def embed(self, texts: Sequence[str], *, window: Window = "tail") -> NDArray[np.float32]:
        """Texts [n] -> embeddings [n, d]. Long lists go in pieces, live requests between them."""
        parts = [np.zeros((0, (await self.info()).dimension), dtype=np.float32)]
        for start in range(0, len(texts), _EMBED_TEXTS):
            several = texts[start : start + _EMBED_TEXTS]
            part = tuple(m.part_read(text, window) for text in several)
            reply = await self._ask(m.Embed(next(self._ids), part, window), m.Embedded)
            parts.append(m.unpack_vectors(reply.vectors, reply.dimension))
        return np.concatenate(parts)

    async def route(
        self, text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        """Weights of the candidates [k] (digests whose centroids were put) from a text."""
        part = _part_read(text, params)
        ask = m.Route(next(self._ids), part, tuple(candidates), dict(params))
        return (await self._ask(ask, m.Routed)).weights

    async def retrieve(
        self, text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> m.Retrieved:
        """Weights of the candidates [k] (digests of sample texts), or whose examples it lacks."""
        part = _part_read(text, params)
        ask = m.Retrieve(next(self._ids), part, tuple(candidates), dict(params))
        return await self._ask(ask, m.Retrieved)

    async def put_examples(self, examples: Mapping[str, NDArray[np.float32]]) -> None:
        """Register examples [n, d] by the digest of the texts; the worker may drop them later."""
        packed = {key: m.pack_vector(rows) for key, rows in examples.items()}
        await self._ask(m.PutExamples(next(self._ids), packed), m.Done)

    async def put_centroids(self, centroids: Mapping[str, NDArray[np.float32]]) -> None:
        """Register centroids [d] by adapter digest; the worker keeps them until it ends."""
        packed = {digest: m.pack_vector(vector) for digest, vector in centroids.items()}
        await self._ask(m.PutEncoderCentroids(next(self._ids), packed), m.Done)

    async def info(self) -> m.Info:
        """The encoder's digest and dimension."""
        return await self._ask(m.AskInfo(next(self._ids)), m.Info)

    async def connected(self) -> int:
        """Wait for the worker; the number of the connection. Raises RouterUnavailableError."""
        if self._connected.is_set():
            return self.connections
        try:
            await asyncio.wait_for(self._connected.wait(), self._connect_seconds)
        except TimeoutError as error:
            raise RouterUnavailableError(
                f"the encoder worker at {self._endpoint} is away: it is not running or restarts"
            ) from error
        return self.connections

    async def _ask(self, ask: ClientAsk, kind: type[_Reply]) -> _Reply:
        await self.connected()
        if self._socket is None:
            raise RouterUnavailableError("the encoder client is closed")
        if len(self._waiting) >= self._max_waiting:
            raise RouterUnavailableError(f"{len(self._waiting)} asks wait for the encoder worker")
        future: asyncio.Future[m.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[ask.id] = future
        reply: m.Reply | None = None
        try:
            async with asyncio.timeout(self._answer_seconds):
                await self._socket.send(m.encode(ask))
                reply = await future
        except TimeoutError as error:
            raise RouterUnavailableError(
                f"the encoder worker gave no answer in {self._answer_seconds:g} s"
            ) from error
        finally:
            self._waiting.pop(ask.id, None)
            if reply is None:
                self._cancel(ask.id)
        if isinstance(reply, kind):
            return reply
        if not isinstance(reply, m.Failed):
            raise RouterError(f"unexpected {reply!r}")
        raise (RouterUnavailableError if reply.is_away else RouterError)(reply.error)

    def _cancel(self, id_: int) -> None:
        """Tell the worker that nobody waits for this answer.

        Also one that has come in place of a dead one: it may be handed what that one never read.
        Behind more than the socket holds it is sent when there is room, as the ask itself is.
        """
        if self._socket is not None:
            self._socket.send(m.encode(m.CancelQuery(id_)))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            reply = m.decode_reply((await socket.recv_multipart())[-1])
            if isinstance(reply, m.SessionRouted | m.SessionFailed) or reply.id is None:
                logger.warning("the encoder worker says: %r", reply)
                continue
            future = self._waiting.get(reply.id)
            if future is not None and not future.done():
                future.set_result(reply)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == _CONNECTED:
                self.connections += 1
                self._connected.set()
            else:
                self._lose()

    def _lose(self) -> None:
        self._connected.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    RouterUnavailableError("the encoder worker died while it held this ask")
                )


def _part_read(text: str, params: Mapping[str, Any]) -> str:
    """What the encoder reads of a request's text."""
    return m.part_read(text, "head" if params.get("window") == "head" else "tail")
