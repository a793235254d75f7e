"""All that answers prompts, with or without a door: store, engine, encoder, generation.

Wires the parts together, starts them in order and stops them. No HTTP library is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from adapters_store.home import expanded
from adapters_store.limits import StoreLimits
from adapters_store.store import AdapterStore
from router_engine.client.base import EngineClient
from router_engine.errors import EngineNotReadyError
from router_engine.info import EngineInfo, MemoryPart
from router_engine.memory.table import table
from router_engine.process.messages import EngineProcessConfig
from router_engine.processes.socket_folder import socket_folder
from router_engine.routers.centroids import CentroidService
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.registry import RequestServices, RouterRegistry
from server.adapters.encoder import StartingEncoderClient, SupervisedEncoder, TokenizerFiles
from server.adapters.hidden_state_encoder import HiddenStateEncoder
from server.adapters.service import AdapterService
from server.adapters.text_states import TextStates
from server.deadline import Deadline, deadline_of
from server.engine_config import engine_config
from server.engine_figures import EngineFigures, figures_of
from server.generation.admission import Admission
from server.generation.centroids import StoredCentroids
from server.generation.generation import Generation
from server.generation.mixtures import Mixtures
from server.generation.request_routing import RequestRouting
from server.generation.tokenization import Tokenization
from server.metrics import Metrics
from server.models import DEFAULT, NONE, base_files, encoder_directory, encoder_name, load_tokenizer
from server.settings import Settings, SettingsError
from server.threads import BodyThreads, Threads

log = structlog.get_logger(__name__)

_REQUEST_THREADS = 4  # they look up names: each waits for the database
_ADMIN_THREADS = 6
_READING_THREADS = 4  # they read long bodies
_WRITING_THREADS = 4  # they write long answers
_CENTROID_THREADS = 2

EngineFactory = Callable[[EngineProcessConfig, Settings], EngineClient]


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that exist once the server has started."""

    base_name: str
    engine: EngineClient
    info: EngineInfo
    generation: Generation
    mixtures: Mixtures
    routing: RequestRouting
    adapters: AdapterService
    figures: EngineFigures


class Runtime:
    """All parts but the door. `start` and `close` are called in one event loop, once each."""

    def __init__(
        self, settings: Settings, engine_factory: EngineFactory, *, on_demand: bool = False
    ) -> None:
        """on_demand: the sentence encoder starts, and what routers know of adapters is computed,
        when a request first needs it, and not before.
        """
        self.settings = settings
        self.metrics = Metrics(settings.metrics_adapters)
        self.admission = Admission(settings.max_waiting, self.metrics.refused.inc)
        self._engine_factory = engine_factory
        self._on_demand = on_demand
        self.threads = Threads("requests", _REQUEST_THREADS, settings.lookup_patience)
        self._stack = AsyncExitStack()
        self._services: Services | None = None
        self._encoder: SupervisedEncoder | None = None
        self._store = open_store(settings)
        self._stack.callback(self._store.close)
        self._admin_threads = Threads("admin", _ADMIN_THREADS)
        self.bodies = BodyThreads(
            Threads("bodies", _READING_THREADS), Threads("answers", _WRITING_THREADS)
        )
        self._readers = Threads("centroids", _CENTROID_THREADS, settings.lookup_patience)
        self._writers = Threads("centroids-kept", 1)
        bodies = (self.bodies.reading, self.bodies.writing)
        centroids = (self._readers, self._writers)
        for threads in (self.threads, self._admin_threads, *bodies, *centroids):
            self._stack.callback(threads.close)

    @property
    def is_started(self) -> bool:
        return self._services is not None

    @property
    def restarts(self) -> dict[str, int]:
        """Times that each child process came back after its end."""
        engine = 0 if self._services is None else self._services.engine.restarts
        return {"engine": engine, "encoder": 0 if self._encoder is None else self._encoder.restarts}

    @property
    def store(self) -> AdapterStore:
        return self._store

    @property
    def services(self) -> Services:
        """Raises EngineNotReadyError before `start` has ended."""
        if self._services is None:
            raise EngineNotReadyError("the server is starting")
        return self._services

    @property
    def generation(self) -> Generation:
        return self.services.generation

    def deadline(self, seconds: float | None) -> Deadline:
        """Of a request that begins now. Raises InputError for more than the settings allow."""
        settings = self.settings
        return deadline_of(seconds, settings.default_timeout, settings.max_timeout)

    def check_files(self) -> None:
        """Raises AssetError and SettingsError, before anything starts, for what is not there."""
        settings = self.settings
        base_files(settings)
        if not self._on_demand or settings.encoder != DEFAULT:  # nobody has named the default one
            encoder_directory(settings, settings.cache_dir)
        adapters = settings.adapters
        if adapters is not None and not expanded(adapters).is_dir():
            raise SettingsError(f"adapters = {str(adapters)!r} is not a directory")

    async def start(self) -> None:
        """Start encoder and engine beside each other, then what needs them.

        Raises SettingsError, EngineError and RouterUnavailableError.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop everything that was started, last things first."""
        self._services = None
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        scratch = Path(self._stack.enter_context(socket_folder()))
        files = await asyncio.to_thread(base_files, settings)
        find_encoder = partial(encoder_directory, settings, scratch)
        if not self._on_demand:
            await asyncio.to_thread(find_encoder)  # what it lacks is told before a model is loaded
        has_encoder = settings.encoder != NONE
        endpoint = f"ipc://{scratch / 'encoder.sock'}" if has_encoder else None
        engine = self._engine_factory(
            EngineProcessConfig(
                engine=engine_config(settings, files.load),
                blobs_url=settings.blobs_url or str(settings.store_dir / "blobs"),
                blobs_cache_dir=settings.store_dir / "cache",
                encoder_endpoint=endpoint,
                log_level=settings.log_level.upper(),
            ),
            settings,
        )
        self._stack.push_async_callback(engine.close)
        tokenizer, _ = await asyncio.gather(
            asyncio.to_thread(load_tokenizer, files), engine.start()
        )
        encoder = None
        if endpoint is not None:
            tokenizer_files = TokenizerFiles(tokenizer, scratch / "tokenizer")
            self._encoder = SupervisedEncoder(settings, find_encoder, tokenizer_files, endpoint)
            self._stack.push_async_callback(self._encoder.close)
            encoder = await self._connect(self._encoder, endpoint)
        info = await engine.info()
        _tell_memory(info.memory, settings)
        self._services = self._wire(files.name, engine, info, tokenizer, encoder)
        if settings.adapters is not None:
            await self._services.adapters.publish_folder(expanded(settings.adapters))

    async def _connect(self, encoder: SupervisedEncoder, endpoint: str) -> EncoderClient:
        patience = self.settings.routing_patience
        if self._on_demand:
            client: EncoderClient = StartingEncoderClient(encoder, endpoint, patience)
        else:
            await encoder.start()  # after the engine: it is what a first request needs
            client = EncoderClient(endpoint, connect_seconds=patience)
        return await self._stack.enter_async_context(client)

    def _wire(
        self,
        base_name: str,
        engine: EngineClient,
        info: EngineInfo,
        tokenizer: object,
        encoder: EncoderClient | None,
    ) -> Services:
        settings, store = self.settings, self._store
        registry = RouterRegistry.discover()
        _warn_of_unusable_tokens(tokenizer, info.vocab_size)
        tokenization = Tokenization(tokenizer, info.eos_token_ids, info.max_model_len)
        stored = StoredCentroids(store)
        hidden_encoder = HiddenStateEncoder(
            engine, info, tokenization, registry.hidden_names, self._readers
        )
        service = partial(CentroidService, stored, readers=self._readers, writers=self._writers)
        centroids = service(encoder, encoder) if encoder else None
        hidden = service(hidden_encoder)
        routing = RequestRouting(
            registry,
            registry.request_routers(RequestServices(encoder, centroids)),
            info.token_routers,
            info.layer_routers,
            centroids,
            hidden,
            settings.routing_patience,
        )
        mixtures = Mixtures(
            store,
            info.base,
            routing,
            settings.max_candidates,
            self.threads,
        )
        generation = Generation(
            engine,
            info,
            tokenization,
            mixtures,
            self.admission,
            self.metrics,
            settings.default_max_new_tokens,
            self.bodies,
        )
        states = TextStates(
            None if self._on_demand else centroids,
            None if self._on_demand else hidden,
            encoder_name(settings),
        )
        adapters = AdapterService(
            store, engine, info, states, mixtures, base_name, self._admin_threads
        )
        self._stack.push_async_callback(adapters.close)
        figures = EngineFigures(partial(figures_of, engine))
        self._stack.push_async_callback(figures.close)
        return Services(base_name, engine, info, generation, mixtures, routing, adapters, figures)


def _tell_memory(parts: Sequence[MemoryPart], settings: Settings) -> None:
    """What the device's memory is for: a table for people, numbers for a collector of logs."""
    text = "memory of the device"
    if settings.log_format == "console":
        lines = f"{text}\n{table(parts)}"
        log.info(lines)
    else:
        log.info(text, **{part.name: part.num_bytes for part in parts})


def _warn_of_unusable_tokens(tokenizer: Any, vocab_size: int) -> None:
    """Ids that the tokenizer gives and the model has no row for: requests with them are refused."""
    unusable = sorted(i for i in tokenizer.get_vocab().values() if i >= vocab_size)
    if unusable:
        log.warning(
            "the tokenizer has tokens that the model has not",
            count=len(unusable),
            first=unusable[0],
            last=unusable[-1],
            vocab_size=vocab_size,
        )


def open_store(settings: Settings) -> AdapterStore:
    """The store that the settings name."""
    return AdapterStore.open(
        settings.store_dir,
        database_url=settings.database_url,
        blobs_url=settings.blobs_url,
        limits=StoreLimits(max_upload_bytes=int(settings.max_upload)),
        patience=settings.database_patience,
    )
