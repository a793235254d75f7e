"""The encoder worker's process for callers without an event loop: scripts and benchmarks."""

from __future__ import annotations

from contextlib import ExitStack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from router_engine.routers.encoder.encoder_child import EncoderChild
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.errors import RouterUnavailableError


class EncoderProcess:
    """Owns one worker process, which it does not watch. Its methods block."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._child: EncoderChild | None = None

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int | None:
        """Its process id; None before `start` and after `stop`."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Launch and wait until it is ready; raises RouterUnavailableError when it is not.

        Starting a live worker again is an error.
        """
        if self.alive:
            raise RouterUnavailableError(f"the encoder worker runs already (process {self.pid})")
        self.stop()
        # A loop of its own: it reads what the worker prints and hears of its end.
        self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        try:
            self._child = self._portal.call(EncoderChild.launch, self._config)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 5.0) -> None:
        """End the worker; killed when it has not gone after `timeout` seconds."""
        child, self._child = self._child, None
        if child is not None and self._portal is not None:
            self._portal.call(child.stop, timeout)
        self._portal = None
        self._stack.close()

    def restart(self) -> None:
        """Stop what is left and start anew; sessions and centroids are gone."""
        self.stop()
        self.start()

    def wait(self) -> int | None:
        """Block until the worker ends; its exit status, minus the signal that killed it."""
        if self._child is None or self._portal is None:
            return None
        self._portal.call(self._child.wait)
        return self._child.status
