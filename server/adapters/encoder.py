"""The sentence encoder's process, under a supervisor, as the engine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from router_engine.processes.socket_folder import make_again
from router_engine.processes.supervisor import RestartPolicy, Supervisor
from router_engine.routers.encoder.encoder_child import EncoderChild
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from server.models import is_tiny_encoder
from server.settings import Settings

_RESTARTS = RestartPolicy(initial_delay=1.0)
_STOP_SECONDS = 5.0  # for the batch under way


class TokenizerFiles:
    """The base model's tokenizer, in a folder that every worker reads when it starts."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        """`folder` lies in one of `socket_folder`."""
        self._tokenizer = tokenizer
        self.folder = folder
        self._files: list[Path] = []

    def write(self) -> None:
        """Write them, again where one has gone. Raises OSError.

        The folder is a temporary one, and a machine may clean away what is old there.
        """
        if self._files and all(file.is_file() for file in self._files):
            return
        make_again(self.folder.parent)
        self._tokenizer.save_pretrained(self.folder)
        self._files = [file for file in self.folder.rglob("*") if file.is_file()]


def encoder_supervisor(
    config: EncoderConfig,
    patience: float | None = None,
    *,
    prepare: Callable[[], None] = lambda: None,
) -> Supervisor[EncoderChild]:
    """A supervisor that has started nothing yet; `patience` [seconds] is that of `Supervisor`.

    `prepare` is called on a thread before every launch, which fails if it raises.
    """
    launch = partial(_launch, config, prepare)
    return Supervisor("encoder", launch, policy=_RESTARTS, patience=patience)


class SupervisedEncoder:
    """The encoder of one server: nothing runs before `start`. Used from one event loop."""

    def __init__(
        self,
        settings: Settings,
        find: Callable[[], Path | None],
        tokenizer: TokenizerFiles,
        endpoint: str,
    ) -> None:
        """find: the encoder's directory, None where none is to run; it is called on a thread."""
        self._settings = settings
        self._find = find
        self._tokenizer = tokenizer
        self._endpoint = endpoint
        self._starting = asyncio.Lock()
        self._supervisor: Supervisor[EncoderChild] | None = None

    @property
    def restarts(self) -> int:
        """Times that it came back after its end."""
        return 0 if self._supervisor is None else self._supervisor.restarts

    async def start(self) -> None:
        """Begin to start it, unless that was done before.

        Raises AssetError, SettingsError, RouterInputError and OSError.
        """
        async with self._starting:
            if self._supervisor is not None:
                return
            folder = await asyncio.to_thread(self._find)
            if folder is None:
                return
            await asyncio.to_thread(self._tokenizer.write)
            self._supervisor = encoder_supervisor(
                self._config(folder),
                patience=self._settings.engine_patience,
                prepare=self._tokenizer.write,
            )
            self._supervisor.start_soon()

    async def close(self) -> None:
        """End it, if it runs."""
        if self._supervisor is not None:
            await self._supervisor.close(_STOP_SECONDS)

    def _config(self, folder: Path) -> EncoderConfig:
        settings = self._settings
        return EncoderConfig(
            encoder_dir=folder,
            tokenizer_dir=self._tokenizer.folder,
            endpoint=self._endpoint,
            environment=settings.child_environment(settings.encoder_threads),
            dtype=settings.encoder_dtype,
            num_threads=settings.encoder_threads,
            make_tiny=is_tiny_encoder(settings),
        )


class StartingEncoderClient(EncoderClient):
    """A client that has the encoder started when it first has something to ask."""

    def __init__(self, process: SupervisedEncoder, endpoint: str, patience: float) -> None:
        """patience: seconds to wait until it is there."""
        super().__init__(endpoint, connect_seconds=patience)
        self._process = process

    async def connected(self) -> int:
        """See EncoderClient; raises what `SupervisedEncoder.start` raises, too."""
        await self._process.start()
        return await super().connected()


async def _launch(config: EncoderConfig, prepare: Callable[[], None]) -> EncoderChild:
    await asyncio.to_thread(prepare)
    return await EncoderChild.launch(config)
