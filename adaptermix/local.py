"""The server's own use case in this process: its event loop on one thread, the engine on another.

What a prompt becomes is decided by the same code as behind POST /generate; only HTTP is left out.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

from adaptermix.answers import Answer, Piece
from adaptermix.client.failures import failure_of_event
from adaptermix.client.generation import answer_of, piece_of
from adaptermix.errors import ClosedError, InvalidInputError, StartFailedError
from adapters_store.errors import StoreError
from router_engine.client.base import EngineClient
from router_engine.client.inline import InlineEngineClient
from router_engine.errors import EngineError
from router_engine.process.loop import SteppedEngine
from router_engine.process.messages import EngineProcessConfig
from server.errors import RequestCancelledError, ServerError, failure_for
from server.generation.generation import Generation, PreparedRequest
from server.generation.generation_input import InputNames
from server.generation.streams import limited
from server.generation.tokenization import Tokenization
from server.http.native_wire import inputs_of, prepared_scores, run_scores, score_reply
from server.http.openai.wire import chat_of
from server.http.rendering import Renderer
from server.runtime import Runtime, Services
from server.schemas.generate import GenerateBody
from server.schemas.openai import ChatBody
from server.schemas.score import ScoreBody, ScoreReply
from server.settings import Settings, SettingsError, use_process_environment

T = TypeVar("T")

_RUNNING = 256  # requests at once where the device decides: no device has more
_QUEUED = 256  # prompts that the engine holds beside those that run; more wait in the batch
_PREPARED_AT_ONCE = 16  # prompts: an encoder routes so many in time
_FIELDS = InputNames("prompt", "max_tokens", "min_tokens", "shorten it or set truncate")
_WARNING = 30  # of logging's levels


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt with all that is asked of it. Of `ids` and `chat` at most one is there.

    Where one is, the body's `inputs` stand for a text that is not known yet.
    """

    body: GenerateBody
    ids: Sequence[int] | None = None
    chat: ChatBody | None = None


class _Held(Generic[T]):
    """A coroutine in another thread's loop, which is cancelled when this context is left.

    Also where an interrupt comes as it is started, and nobody has its future yet.
    """

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._is_left = False

    def start(self) -> Future[T]:
        """Its future; called once."""
        return asyncio.run_coroutine_threadsafe(self._run(), self._loop)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and everything in it has ended
            self._loop.call_soon_threadsafe(self._leave)

    async def _run(self) -> T:
        self._task = asyncio.current_task()
        if self._is_left:
            raise asyncio.CancelledError
        return await self._work

    def _leave(self) -> None:
        self._is_left = True
        if self._task is None:
            self._work.close()  # it has not begun, and does not
        else:
            self._task.cancel()  # one that has ended does not mind


class LocalRuntime:
    """A `Runtime` with its engine in this process, for callers on any thread."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidInputError and StartFailedError, and leaves nothing behind then."""
        _prepare_process(settings)
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore((settings.max_running or _RUNNING) + _QUEUED)
        self._preparing = asyncio.Semaphore(_PREPARED_AT_ONCE)
        self._thread = threading.Thread(target=self._run_loop, name="adaptermix", daemon=True)
        self._thread.start()
        try:
            self._runtime = asyncio.run_coroutine_threadsafe(_start(settings), self._loop).result()
        except BaseException as error:
            self._stop()
            if isinstance(error, SettingsError):
                raise InvalidInputError(str(error)) from error
            if isinstance(error, EngineError | StoreError | OSError):
                raise StartFailedError(str(error)) from error
            raise

    @property
    def services(self) -> Services:
        """Raises ClosedError."""
        self._require_open()
        return self._runtime.services

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns, run in the loop; an interrupt here cancels it there.

        Raises StatusError where the server would tell of an error, and ClosedError.
        """
        try:
            self._require_open()
        except ClosedError:
            work.close()
            raise
        held = _Held(work, self._loop)
        with _as_told(), held:
            return held.start().result()

    def answers(self, prompts: Sequence[Prompt], answered: Callable[[int], None]) -> list[Answer]:
        """Whole answers in the order of the prompts, which share batches as they come.

        answered: is told the tokens of each that has come, on another thread. The first error
        ends all of them.
        """
        return self.run(self._answers(prompts, answered))

    def stream(self, prompt: Prompt) -> Generator[Piece, None, None]:
        """The pieces of one answer as they come; closing it early cancels the request."""
        arrived: SimpleQueue[Piece | None] = SimpleQueue()
        self._require_open()
        held = _Held(self._stream(prompt, arrived.put), self._loop)
        with _as_told(), held:
            future = held.start()
            future.add_done_callback(lambda _: arrived.put(None))
            while (piece := arrived.get()) is not None:
                yield piece
            future.result()

    def score(self, body: ScoreBody) -> ScoreReply:
        """The scores of given completions."""
        return self.run(self._score(body))

    def close(self) -> None:
        """Cancel what is under way, and end both threads. It may be called again."""
        if self._loop.is_closed():
            return
        try:
            self.run(self._runtime.close())
        finally:
            self._stop()

    def abandon(self) -> None:
        """`close` for whoever may not wait, such as the garbage collector on any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.create_task, self._close_and_stop())

    def _require_open(self) -> None:
        if self._loop.is_closed():
            raise ClosedError("the LLM is closed")

    async def _close_and_stop(self) -> None:
        with suppress(EngineError):  # of an engine that had failed: nobody asks any more
            await self._runtime.close()
        self._loop.stop()

    async def _answers(
        self, prompts: Sequence[Prompt], answered: Callable[[int], None]
    ) -> list[Answer]:
        async def one(index: int, prompt: Prompt) -> Answer:
            async with self._places:
                try:
                    answer = await self._answer(prompt)
                except Exception as error:
                    error.add_note(f"prompt {index} of {len(prompts)}, counted from 0")
                    raise
            answered(len(answer.tokens))
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(*each)) for each in enumerate(prompts)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled for its sake
        return [task.result() for task in tasks]

    async def _answer(self, prompt: Prompt) -> Answer:
        generation = self._runtime.generation
        async with self._runtime.deadline(prompt.body.timeout).within():
            job, renderer = await self._prepare(prompt, generation)
            completion = await generation.run(job)
        return answer_of(renderer.reply(completion))

    async def _stream(self, prompt: Prompt, send: Callable[[Piece], None]) -> None:
        generation = self._runtime.generation
        deadline = self._runtime.deadline(prompt.body.timeout)
        async with deadline.within():
            job, renderer = await self._prepare(prompt, generation)
        async with aclosing(limited(generation.stream(job), deadline)) as updates:
            async for update in updates:
                for frame in renderer.frames(update):
                    send(piece_of(frame))

    async def _prepare(
        self, prompt: Prompt, generation: Generation
    ) -> tuple[PreparedRequest, Renderer]:
        async with self._preparing:
            body, ids = _read(prompt, generation.tokenization)
            read = partial(inputs_of, body, generation, ids)
            ask, seed = await generation.read(read, len(body.inputs))
            job = await generation.prepare(replace(ask, fields=_FIELDS))
        return job, Renderer(
            generation.tokenization, body.parameters, job.plan, seed, prompt=body.inputs
        )

    async def _score(self, body: ScoreBody) -> ScoreReply:
        generation = self._runtime.generation
        async with self._runtime.deadline(body.timeout).within():
            return score_reply(
                await run_scores(await prepared_scores(body, generation), generation)
            )

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_end_tasks())
        finally:
            self._loop.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _read(
    prompt: Prompt, tokenization: Tokenization
) -> tuple[GenerateBody, tuple[int, ...] | None]:
    """The body with its text, and token ids that are not made of it alone."""
    body = prompt.body
    if prompt.chat is not None:
        ids, text = chat_of(prompt.chat, tokenization)
    elif prompt.ids is not None:
        ids = tokenization.check_ids(prompt.ids, "prompt")
        text = tokenization.decode(ids)
    else:
        return body, None
    return body.model_copy(update={"inputs": text}), ids


@contextmanager
def _as_told() -> Iterator[None]:
    """Raises the use case's errors as whoever asks a server is told of them."""
    try:
        yield
    except (RequestCancelledError, CancelledError) as error:  # nothing else cancels it
        raise ClosedError("the LLM was closed meanwhile") from error
    except (EngineError, StoreError, ServerError) as error:
        failure = failure_for(error)
        told = None if failure is None else failure_of_event(failure.native(), {})
        if told is None:
            raise
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error
    except SettingsError as error:  # of an encoder that starts when it is first needed
        raise InvalidInputError(str(error)) from error


async def _start(settings: Settings) -> Runtime:
    runtime = Runtime(settings, _inline_engine, on_demand=True)
    try:
        runtime.check_files()
        await runtime.start()
    except BaseException:
        await runtime.close()
        raise
    return runtime


def _inline_engine(config: EngineProcessConfig, settings: Settings) -> EngineClient:
    return InlineEngineClient(partial(_engine, config, settings.engine_threads))


def _engine(
    config: EngineProcessConfig, threads: int | None, wake: Callable[[], None]
) -> SteppedEngine:
    """Made on the engine's thread, for which the count of threads is set, and for no other."""
    from torch import set_num_threads

    from router_engine.process.engine_factory import build_engine

    if threads is not None:
        set_num_threads(threads)
    return build_engine(config, wake)


def _prepare_process(settings: Settings) -> None:
    """What a process has once, before torch is there: its environment, torch itself, a log."""
    if "torch" not in sys.modules:
        use_process_environment(settings.child_environment(settings.engine_threads))
    # All of it before two threads load a tokenizer and a model, neither of which may find the
    # libraries half imported, or torch hidden as it is where only a tokenizer is wanted.
    import_module("router_engine.process.engine_factory")
    import_module("router_engine.model.tokenizer")
    if not structlog.is_configured():  # by whoever owns this process
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(_WARNING),
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )


async def _end_tasks() -> None:
    """Cancel what still runs in this loop, and end its threads."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
