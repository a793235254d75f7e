"""`Client`: the HTTP API from ordinary code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeVar

import httpx

from adaptermix.client import adapters, generation, openai, system
from adaptermix.client.calls import Call, Request, StreamCall
from adaptermix.client.connection import address_and_key, connected, translated
from adaptermix.client.http import answer_of, built, document, failure, require_events

P = ParamSpec("P")
T = TypeVar("T")


class Stream(Generic[T]):
    """What comes piece by piece. The request is sent when the first is asked for.

    Whoever stops reading before the end closes it, or uses it in a `with`: the server then cancels
    the request.
    """

    def __init__(self, pieces: Generator[T, None, None]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return next(self._pieces)

    def close(self) -> None:
        """Read no more of it."""
        self._pieces.close()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sender(Protocol):
    def send(self, call: Call[T]) -> T: ...

    def open(self, call: StreamCall[T]) -> Stream[T]: ...


def _method(define: Callable[P, Call[T]]) -> Callable[Concatenate[_Sender, P], T]:
    """A method that executes the call which `define` describes, with its arguments."""

    def method(self: _Sender, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(define(*args, **kwargs))

    document(method, define, "{}")
    return method


def _stream(define: Callable[P, StreamCall[T]]) -> Callable[Concatenate[_Sender, P], Stream[T]]:
    def method(self: _Sender, /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        return self.open(define(*args, **kwargs))

    document(method, define, "Stream[{}]")
    return method


class _Resource:
    """One part of the API, under a name of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def send(self, call: Call[T]) -> T:
        """See Client."""
        return self._client.send(call)

    def open(self, call: StreamCall[T]) -> Stream[T]:
        """See Client."""
        return self._client.open(call)


class Adapters(_Resource):
    """What is in the server's store: `client.adapters`."""

    publish = _method(adapters.publish)
    check = _method(adapters.check)
    list = _method(adapters.list_adapters)
    show = _method(adapters.show)
    delete = _method(adapters.delete)
    texts = _method(adapters.texts)
    set_texts = _method(adapters.set_texts)
    set_alias = _method(adapters.set_alias)
    delete_alias = _method(adapters.delete_alias)
    load = _method(adapters.load)
    pin = _method(adapters.pin)
    unload = _method(adapters.unload)


class Merged(_Resource):
    """What is folded into the base weights: `client.merged`."""

    get = _method(system.merged)
    set = _method(system.set_merged)
    clear = _method(system.clear_merged)


class Client:
    """A client of one server, for any number of threads.

        with Client("http://127.0.0.1:8000") as client:
            print(client.generate("Question: 7 times 6?", mixture=Mixture(math=1.0)).text)

    Every failure is an AdapterMixError; nothing is tried twice.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = 600.0,
    ) -> None:
        """url, api_key: left out, ADAPTERMIX_URL and ADAPTERMIX_KEY; else this machine, no key.

        timeout: seconds without a byte from the server, after which TimedOutError is raised.
        """
        self.address, key = address_and_key(url, api_key)
        self._http = connected(httpx.Client, httpx.HTTPTransport, self.address, key, timeout)
        self._base: str | None = None
        self.adapters = Adapters(self)
        self.merged = Merged(self)

    generate = _method(generation.generate)
    stream = _stream(generation.stream)
    score = _method(generation.score)
    chat = _method(openai.chat)
    stream_chat = _stream(openai.stream_chat)
    complete = _method(openai.complete)
    stream_complete = _stream(openai.stream_complete)
    models = _method(openai.models)
    model = _method(openai.model)
    live = _method(system.live)
    ready = _method(system.ready)
    metrics = _method(system.metrics)
    info = _method(system.info)
    routers = _method(system.routers)

    def base_model(self) -> str:
        """The name of the server's base model, which it is asked for once."""
        if self._base is None:
            self._base = self.send(openai.models())[0].id
        return self._base

    def send(self, call: Call[T]) -> T:
        """Execute a call: what every method does."""
        request = self._complete(call.request)
        opened = nullcontext(None) if request.form is None else request.form()
        with translated(self.address), opened as form:
            return answer_of(call, self._http.send(built(self._http, request, form)))

    def open(self, call: StreamCall[T]) -> Stream[T]:
        """The answer of a call as it comes."""
        return Stream(self._pieces(call))

    def _pieces(self, call: StreamCall[T]) -> Generator[T, None, None]:
        request = self._complete(call.request)
        with translated(self.address):
            response = self._http.send(built(self._http, request, None), stream=True)
            with closing(response):
                if not response.is_success:
                    response.read()
                    raise failure(response)
                require_events(response)
                reader = call.reader(response.headers)
                for chunk in response.iter_bytes():
                    yield from reader.feed(chunk)
        reader.end()

    def _complete(self, request: Request) -> Request:
        return request.under(self.base_model()) if request.needs_base else request

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
