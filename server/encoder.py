"""The encoder worker under a supervisor, as the engine is."""

from __future__ import annotations

from functools import partial

from router_engine.processes.supervisor import RestartPolicy, Supervisor
from router_engine.routers.encoder.child import EncoderChild
from router_engine.routers.encoder.config import EncoderConfig

_RESTARTS = RestartPolicy(initial_delay=1.0)


def encoder_supervisor(
    config: EncoderConfig, patience: float | None = None
) -> Supervisor[EncoderChild]:
    """A supervisor that has started nothing yet; `patience` [seconds] is that of `Supervisor`."""
    launch = partial(EncoderChild.launch, config)
    return Supervisor("encoder", launch, policy=_RESTARTS, patience=patience)
