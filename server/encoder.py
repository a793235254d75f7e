"""The encoder worker under a supervisor, as the engine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from router_engine.processes.socket_folder import make_again
from router_engine.processes.supervisor import RestartPolicy, Supervisor
from router_engine.routers.encoder.encoder_child import EncoderChild
from router_engine.routers.encoder.encoder_config import EncoderConfig

_RESTARTS = RestartPolicy(initial_delay=1.0)


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


async def _launch(config: EncoderConfig, prepare: Callable[[], None]) -> EncoderChild:
    await asyncio.to_thread(prepare)
    return await EncoderChild.launch(config)
