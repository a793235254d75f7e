"""The token router `similarity`: feeds token deltas to the encoder worker from a thread."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from queue import Empty, SimpleQueue

import zmq
from zmq.utils.monitor import parse_monitor_message

from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights
from router_engine.routers.encoder import encoder_messages as m

SessionAsk = m.Begin | m.Extend | m.End

_CONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED
_LOST = zmq.Event.DISCONNECTED
_AWAY = "the encoder worker is away"
_DIED = "the encoder worker died while it held this request's text"


@dataclass(frozen=True, slots=True)
class TokenRouterTimeouts:
    """Seconds until an ask that gets no answer fails its request."""

    connect: float = 5.0  # while the worker is away
    answer: float = 60.0  # while it is there but silent


class SimilarityTokenRouter:
    """`TokenRouter` over an encoder worker; the engine's side of it never blocks.

    When the worker dies, the requests that it was routing fail at once, each with an error
    answer: their text is not sent again. New requests wait up to `timeouts.connect` seconds
    for it to come back and then fail as well.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        wake: Callable[[], None] = lambda: None,
        timeouts: TokenRouterTimeouts | None = None,
    ) -> None:
        """`wake` is called, on the router's own thread, when answers have come."""
        self._asks: SimpleQueue[SessionAsk] = SimpleQueue()
        self._answers: deque[RoutedWeights] = deque()
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        link = _Link(endpoint, timeouts or TokenRouterTimeouts())
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(link, wake), name="similarity-router", daemon=True
        )
        self._thread.start()

    def begin(
        self,
        request_id: str,
        token_ids: Sequence[int],
        candidates: Sequence[str],
        routing: TokenRouting,
    ) -> None:
        self._post(m.Begin(request_id, tuple(token_ids), tuple(candidates), dict(routing.params)))

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._post(m.Extend(request_id, tuple(token_ids)))

    def end(self, request_id: str) -> None:
        self._post(m.End(request_id))

    def poll(self) -> Sequence[RoutedWeights]:
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def close(self) -> None:
        """End the thread and the connection; further calls do nothing useful."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake_thread()
        self._thread.join()
        os.close(self._bell)
        os.close(self._ring)

    def _post(self, ask: SessionAsk) -> None:
        self._asks.put(ask)
        self._wake_thread()

    def _wake_thread(self) -> None:
        try:
            os.write(self._ring, b"!")
        except BlockingIOError:
            return  # the pipe is full of wake-ups that have not been read: one more adds nothing

    def _run(self, link: _Link, wake: Callable[[], None]) -> None:
        link.watch(self._bell)
        try:
            while not self._closing.is_set():
                if link.wait():
                    os.read(self._bell, 4096)
                link.hear()
                for ask in _drain(self._asks):
                    link.post(ask)
                link.expire()
                answers = link.take_answers()
                if answers:
                    self._answers.extend(answers)
                    wake()
        finally:
            link.close()


@dataclass(slots=True)
class _Live:
    num_tokens: int
    deadline: float | None  # of the answer that is awaited


class _Link:
    """The connection and the live sessions on it. Used by one thread."""

    def __init__(self, endpoint: str, timeouts: TokenRouterTimeouts) -> None:
        self._timeouts = timeouts
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)  # milliseconds
        self._socket.setsockopt(zmq.SNDHWM, 0)  # never block: one ask a request is bound enough
        self._monitor = self._socket.get_monitor_socket(_CONNECTED | _LOST)
        self._socket.connect(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._bell = -1
        self._connected = False
        self._held: dict[str, list[SessionAsk]] = {}  # by session: asked while the worker is away
        self._live: dict[str, _Live] = {}
        self._answers: list[RoutedWeights] = []

    def watch(self, bell: int) -> None:
        """Let `wait` return, true, when this file descriptor has something to read."""
        self._bell = bell
        self._poller.register(bell, zmq.POLLIN)

    def wait(self) -> bool:
        """Block until something happens or the next deadline; whether the bell rang."""
        deadlines = [live.deadline for live in self._live.values() if live.deadline is not None]
        now = time.monotonic()
        timeout = max(0, int((min(deadlines) - now) * 1000) + 1) if deadlines else None
        return self._bell in dict(self._poller.poll(timeout))

    def hear(self) -> None:
        """Read answers, then whether the worker came or went."""
        for payload in _receive_all(self._socket):
            self._answer(m.decode_reply(payload[-1]))
        for frames in _receive_all(self._monitor):
            if parse_monitor_message(frames)["event"] == _CONNECTED:
                self._connect()
            else:
                self._lose()

    def post(self, ask: SessionAsk) -> None:
        if not self._register(ask):
            return
        if isinstance(ask, m.End):
            self._end(ask.session)
        elif self._connected:
            self._socket.send(m.encode(ask))
        elif isinstance(ask, m.Begin):
            self._held[ask.session] = [ask]
        else:
            self._held[ask.session].append(ask)

    def expire(self) -> None:
        """Fail the sessions whose answer is overdue."""
        now = time.monotonic()
        for name, live in list(self._live.items()):
            if live.deadline is not None and live.deadline <= now:
                silent = f"the encoder worker gave no answer in {self._timeouts.answer:g} s"
                self._fail(name, silent if self._connected else _AWAY, is_away=True)

    def take_answers(self) -> list[RoutedWeights]:
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._context.destroy(linger=0)

    def _register(self, ask: SessionAsk) -> bool:
        """Note what is asked; false when there is nothing to send."""
        if isinstance(ask, m.End):
            return self._live.pop(ask.session, None) is not None
        seconds = self._timeouts.answer if self._connected else self._timeouts.connect
        deadline = time.monotonic() + seconds
        if isinstance(ask, m.Begin):
            self._live[ask.session] = _Live(len(ask.token_ids), deadline)
            return True
        live = self._live.get(ask.session)
        if live is None:  # it has failed, and its request was told so
            return False
        live.num_tokens += len(ask.token_ids)
        live.deadline = deadline
        return True

    def _connect(self) -> None:
        self._connected = True
        deadline = time.monotonic() + self._timeouts.answer
        for live in self._live.values():
            live.deadline = deadline
        for ask in chain.from_iterable(self._held.values()):
            self._socket.send(m.encode(ask))
        self._held.clear()

    def _lose(self) -> None:
        self._connected = False
        for name in list(self._live):
            self._fail(name, _DIED, is_away=True)

    def _answer(self, reply: m.Reply) -> None:
        if not isinstance(reply, m.SessionRouted | m.SessionFailed):
            return
        live = self._live.get(reply.session)
        if live is None:
            return
        if isinstance(reply, m.SessionFailed):
            self._fail(reply.session, reply.error, is_away=reply.is_away)
            return
        if reply.num_tokens >= live.num_tokens:
            live.deadline = None
        self._answers.append(RoutedWeights(reply.session, reply.num_tokens, reply.weights))

    def _fail(self, name: str, error: str, *, is_away: bool = False) -> None:
        live = self._live.pop(name)
        self._answers.append(RoutedWeights(name, live.num_tokens, error=error, is_away=is_away))
        self._end(name)

    def _end(self, name: str) -> None:
        """Take back what was asked for a session, so that the worker keeps and encodes none of it.

        The worker is told even when it has died: the next one may be handed what it never read.
        """
        if self._held.pop(name, None) is None:
            with suppress(zmq.Again):  # no connection is even tried: it holds nothing either
                self._socket.send(m.encode(m.End(name)), zmq.NOBLOCK)


def _receive_all(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    received = []
    while True:
        try:
            received.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return received


def _drain(queue: SimpleQueue[SessionAsk]) -> list[SessionAsk]:
    drained = []
    while True:
        try:
            drained.append(queue.get_nowait())
        except Empty:
            return drained
