"""A sentence encoder's worker, for an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.process import pulled
from adaptermix.bench.settings import RoutingSettings
from adaptermix.bench.subject import Subject
from router_engine.assets import DEFAULT, DEFAULT_ENCODER
from router_engine.model.tiny import TINY_RANDOM
from router_engine.processes.socket_folder import socket_folder
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder


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
