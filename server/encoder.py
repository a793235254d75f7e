"""The encoder worker under a supervisor, as the engine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router_engine.processes.supervisor import RestartPolicy, Supervisor
from router_engine.routers.encoder.child import EncoderChild
from router_engine.routers.encoder.config import EncoderConfig

_RESTARTS = RestartPolicy(initial_delay=1.0)


def encoder_supervisor(
    config: EncoderConfig, prepare: Callable[[], None], patience: float | None = None
) -> Supervisor[EncoderChild]:
    """A supervisor that has started nothing yet.

    `prepare` blocks, and is called before every launch until it has worked once. `patience`
    [seconds] is that of `Supervisor`.
    """
    prepared = False

    async def launch() -> EncoderChild:
        nonlocal prepared
        if not prepared:
            await asyncio.to_thread(prepare)
            prepared = True
        return await EncoderChild.launch(config)

    return Supervisor("encoder", launch, policy=_RESTARTS, patience=patience)
