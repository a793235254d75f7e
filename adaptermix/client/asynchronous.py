"""`AsyncClient`: the HTTP API from coroutines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import httpx
from anyio import to_thread

from adaptermix.client import adapters, generation, openai, system
from adaptermix.client.calls import Call, Request, StreamCall
from adaptermix.client.connection import address_and_key, connected, translated
from adaptermix.client.http import answer_of, built, document, failure, require_events

P = ParamSpec("P")
T = TypeVar("T")


class AsyncStream(Generic[T]):
    """What comes piece by piece. The request is sent when the first is asked for.

    Whoever stops reading before the end closes it, or uses it in an `async with`: the server then
    cancels the request.
    """

    def __init__(self, pieces: AsyncGenerator[T, None]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await anext(self._pieces)

    async def close(self) -> None:
        """Read no more of it."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Sender(Protocol):
    async def send(self, call: Call[T]) -> T: ...

    def open(self, call: StreamCall[T]) -> AsyncStream[T]: ...


def _method(
    define: Callable[P, Call[T]],
) -> Callable[Concatenate[_Sender, P], Coroutine[Any, Any, T]]:
    """A method that executes the call which `define` describes, with its arguments."""

    async def method(self: _Sender, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(define(*args, **kwargs))

    document(method, define, "Coroutine[Any, Any, {}]")
    return method


def _stream(
    define: Callable[P, StreamCall[T]],
) -> Callable[Concatenate[_Sender, P], AsyncStream[T]]:
    def method(self: _Sender, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T]:
        return self.open(define(*args, **kwargs))

    document(method, define, "AsyncStream[{}]")
    return method


class _Resource:
    """One part of the API, under a name of its own."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def send(self, call: Call[T]) -> T:
        """See AsyncClient."""
        return await self._client.send(call)

    def open(self, call: StreamCall[T]) -> AsyncStream[T]:
        """See AsyncClient."""
        return self._client.open(call)


class AsyncAdapters(_Resource):
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


class AsyncMerged(_Resource):
    """What is folded into the base weights: `client.merged`."""

    get = _method(system.merged)
    set = _method(system.set_merged)
    clear = _method(system.clear_merged)


class AsyncClient:
    """A client of one server, for any number of tasks of one event loop.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            answer = await client.generate("Question: 7 times 6?", mixture=Mixture(math=1.0))

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
        self._http = connected(
            httpx.AsyncClient, httpx.AsyncHTTPTransport, self.address, key, timeout
        )
        self._base: str | None = None
        self.adapters = AsyncAdapters(self)
        self.merged = AsyncMerged(self)

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

    async def base_model(self) -> str:
        """The name of the server's base model, which it is asked for once."""
        if self._base is None:
            self._base = (await self.send(openai.models()))[0].id
        return self._base

    async def send(self, call: Call[T]) -> T:
        """Execute a call: what every method does."""
        request = await self._complete(call.request)
        with translated(self.address), ExitStack() as stack:
            form = None
            if request.form is not None:  # whose files are checked: that takes a while
                form = await to_thread.run_sync(stack.enter_context, request.form())
            return answer_of(call, await self._http.send(built(self._http, request, form)))

    def open(self, call: StreamCall[T]) -> AsyncStream[T]:
        """The answer of a call as it comes."""
        return AsyncStream(self._pieces(call))

    async def _pieces(self, call: StreamCall[T]) -> AsyncGenerator[T, None]:
        request = await self._complete(call.request)
        with translated(self.address):
            response = await self._http.send(built(self._http, request, None), stream=True)
            async with aclosing(response):
                if not response.is_success:
                    await response.aread()
                    raise failure(response)
                require_events(response)
                reader = call.reader(response.headers)
                async for chunk in response.aiter_bytes():
                    for piece in reader.feed(chunk):
                        yield piece
        reader.end()

    async def _complete(self, request: Request) -> Request:
        return request.under(await self.base_model()) if request.needs_base else request

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
