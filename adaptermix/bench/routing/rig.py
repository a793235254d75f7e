"""An engine and an encoder's worker that know the same adapters, and the batches put to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.offline import Offline, Window
from adaptermix.bench.routing.cases import RoutingCase, Size, around, even_mixture
from adaptermix.bench.server import pulled
from adaptermix.bench.settings import RoutingSettings
from adaptermix.bench.subject import Subject
from adaptermix.bench.workload import make_prompts
from adapters_store.types import SampleTexts
from router_engine.assets import DEFAULT, DEFAULT_ENCODER
from router_engine.model.tiny import TINY_RANDOM
from router_engine.processes.socket_folder import socket_folder
from router_engine.request import EngineRequest, Reports, SamplingSpec
from router_engine.routers.centroids import (
    Centroid,
    CentroidService,
    Examples,
    MadeCentroid,
    Routable,
)
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder
from router_engine.routers.registry import RouterRegistry


@contextmanager
def encoder_worker(
    subject: Subject, settings: RoutingSettings, folder: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Run it until the block ends; gives its endpoint. `folder` is an empty one of its own.

    Raises BenchmarkError for a directory that is not there, RouterError when it does not start.
    """
    tokenizer = folder / "tokenizer"
    subject.tokenizer.save_pretrained(tokenizer)
    encoder = _files(subject, settings.encoder, folder / "encoder")
    with socket_folder() as sockets:
        config = EncoderConfig(
            encoder_dir=encoder,
            tokenizer_dir=tokenizer,
            endpoint=f"ipc://{Path(sockets) / 'socket'}",
            environment=environment,
            dtype=settings.encoder_dtype,
            num_threads=settings.encoder_threads,
        )
        worker = EncoderProcess(config)
        worker.start()
        try:
            yield config.endpoint
        finally:
            worker.stop()


def _files(subject: Subject, encoder: str, scratch: Path) -> Path:
    if encoder != DEFAULT:
        if not Path(encoder).is_dir():
            raise BenchmarkError(f"encoder is {encoder!r}: use {DEFAULT!r} or a directory")
        return Path(encoder)
    if subject.model == TINY_RANDOM:
        return save_tiny_encoder(scratch)
    return Path(pulled(DEFAULT_ENCODER))


_EXAMPLES = 32  # of an adapter, as those in `examples/adapters` have
_TEXTS = "random"  # in the place of a digest of texts


class RandomTexts:
    """`CentroidStore` of adapters with given centroids and random examples around these."""

    def __init__(self, centroids: Mapping[str, Centroid]) -> None:
        self._centroids = centroids

    def sample_texts(self, digest: str) -> SampleTexts:
        """None: only their embeddings are asked for."""
        return SampleTexts("", ())

    def get_centroid(self, digest: str, encoder_digest: str, texts: str) -> Centroid:
        return self._centroids[digest]

    def get_examples(self, digest: str, encoder_digest: str, texts: str) -> NDArray[np.float32]:
        """Flat [_EXAMPLES * d]."""
        centroid = self._centroids[digest]
        generator = np.random.default_rng(int(texts.partition(" ")[2]))
        noise = generator.normal(size=(_EXAMPLES, len(centroid))) * len(centroid) ** -0.5
        return np.asarray(centroid + noise, dtype=np.float32).ravel()

    def put_centroid(
        self, digest: str, encoder_digest: str, made: MadeCentroid, examples: Examples | None
    ) -> None:
        """Nothing is made here."""

    def centroids(self, encoder_digest: str) -> dict[str, MadeCentroid]:
        return {}


async def centroid_service(
    client: EncoderClient, centroids: Mapping[str, Centroid]
) -> CentroidService:
    """A service that has put all of these centroids to the worker, and has examples for them."""
    service = CentroidService(RandomTexts(centroids), client, client)
    await service.ensure(
        Routable(digest, digest, f"{_TEXTS} {index}") for index, digest in enumerate(centroids)
    )
    return service


CONTEXT = 64  # tokens of a prompt before its turn's own
_TAIL = 16  # tokens of these, at most
_MOST_SECONDS = 1.5  # of a window, from when on two tokens of each request are enough
_FEWEST_PROMPTS = 8  # for the spread of their embeddings

Fixed = tuple[tuple[str, ...], tuple[float, ...]]  # digests, weights


class Rig:
    """Owns the prompts, and which fixed weights each router is compared with."""

    def __init__(
        self, system: Offline, subject: Subject, client: EncoderClient, settings: RoutingSettings
    ) -> None:
        self.system = system
        self.client = client
        self._settings = settings
        self._tokenizer = subject.tokenizer
        count = max(_FEWEST_PROMPTS, *settings.requests)
        seed = f"routing {settings.seed}"
        texts = make_prompts([CONTEXT + _TAIL] * count, seed, subject.count_tokens)
        self._prompts = [self._encode(text)[:CONTEXT] for text in texts]
        self._fixed: dict[tuple[str, Size], list[Fixed]] = {}
        self._turns = itertools.count()
        self.centroids: dict[str, Centroid] = {}  # by digest, of the encoder

    async def prepare(self) -> None:
        """Load all adapters, and let every router have their centroids."""
        self.system.load()
        digests, seed = self.system.digests, self._settings.seed
        texts = [self._tokenizer.decode(prompt) for prompt in self._prompts]
        rows = around(await self.client.embed(texts), len(digests), seed)
        self.centroids = dict(zip(digests, rows, strict=True))
        await self.client.put_centroids(self.centroids)
        hidden = self._hidden()
        centroids = around(hidden, len(digests), seed)
        states = np.concatenate((centroids, centroids**2 + hidden.var(axis=0)), axis=1)
        for router in RouterRegistry.discover().hidden_names:
            vectors = dict(zip(digests, states.tolist(), strict=True))
            self.system.engine.put_centroids(router, vectors)

    def practise(self, case: RoutingCase, size: Size) -> None:
        """Uncounted. The first case of a router says which weights its baseline has."""
        requests = self._requests(case, size, report=True)
        window = self._window(requests, None)
        if (case.router, size) not in self._fixed:
            self._fixed[case.router, size] = [
                self._mixture(window.weights[request.request_id], index, size)
                for index, request in enumerate(requests)
            ]

    def window(
        self, case: RoutingCase, size: Size, within: AbstractContextManager[object] | None = None
    ) -> Window:
        """A turn of a case that has been practised."""
        return self._window(self._requests(case, size, report=False), within)

    async def settle(self) -> None:
        """Wait until the worker is done with texts of requests that have ended."""
        await self.client.route("settled", self.system.digests[:1], {})

    def active(self, router: str, size: Size) -> int:
        """Different adapters of a router's baseline."""
        return len({digest for digests, _ in self._fixed[router, size] for digest in digests})

    def _window(
        self, requests: Sequence[EngineRequest], within: AbstractContextManager[object] | None
    ) -> Window:
        return self.system.window(requests, self._settings.steps, _MOST_SECONDS, within)

    def _requests(self, case: RoutingCase, size: Size, *, report: bool) -> list[EngineRequest]:
        """Prompts end in what is their turn's own: the worker remembers texts, and would be free.

        All before is found in the prefix cache, unless weights come from the whole text.
        """
        turn = next(self._turns)
        sampling = SamplingSpec(max_new_tokens=longest(self._settings))
        requests = []
        for index in range(size.requests):
            tokens = (*self._prompts[index], *self._encode(f" {turn:05d}"))
            request = EngineRequest(f"{turn}.{index}", tokens, sampling)
            if case.is_routed:
                candidates = self.system.digests[: size.candidates]
                is_told = report and "routing" in case.fields
                request = replace(request, adapters=candidates, reports=Reports(weights=is_told))
            else:
                digests, weights = self._weights(case.router, size)[index]
                request = replace(request, adapters=digests, weights=weights)
            fields: Mapping[str, Any] = case.fields
            requests.append(replace(request, **fields))
        return requests

    def _weights(self, router: str, size: Size) -> list[Fixed]:
        if (router, size) not in self._fixed:
            raise BenchmarkError(f"no case of {router} gave the weights to compare with")
        return self._fixed[router, size]

    def _mixture(self, weights: Sequence[float], index: int, size: Size) -> Fixed:
        """The weights that are not 0."""
        digests = self.system.digests[: size.candidates]
        named = [pair for pair in zip(digests, weights, strict=bool(weights)) if pair[1] != 0]
        if not named:
            return even_mixture(digests, index)
        return tuple(digest for digest, _ in named), tuple(weight for _, weight in named)

    def _hidden(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The base's mean hidden state over each prompt [n, hidden]."""
        requests = [
            EngineRequest(
                f"hidden {index}",
                prompt,
                SamplingSpec(max_new_tokens=1),
                reads_hidden_states=True,
                reports=Reports(hidden_mean=True),
            )
            for index, prompt in enumerate(self._prompts)
        ]
        answers = self.system.run(requests)
        return np.array([answers[request.request_id].end.hidden for request in requests])

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def longest(settings: RoutingSettings) -> int:
    """New tokens of a request: none ends before the last of its batch is timed."""
    return 4 * settings.steps + 64


def cache_tokens(settings: RoutingSettings, num_cases: int) -> int:
    """Tokens of the KV cache: what one round computes stays there, so that the next finds it."""
    prompts = num_cases * len(settings.candidates) * sum(settings.requests) * (CONTEXT + _TAIL)
    live = max(*settings.requests, _FEWEST_PROMPTS) * (CONTEXT + _TAIL + longest(settings))
    return prompts + live
