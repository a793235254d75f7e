"""One encoder worker's process from launch to exit, seen from its parent."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import Self

import msgspec
import zmq
import zmq.asyncio

from router_engine.processes.child_process import ChildProcess, ChildWithProcess
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.encoder.encoder_config import EncoderConfig, StartOrder
from router_engine.routers.errors import RouterUnavailableError

_MODULE = "router_engine.routers.encoder.worker"

_output_logger = logging.getLogger("router_engine.encoder_process")


class EncoderChild(ChildWithProcess):
    """A running encoder worker. Belongs to one asyncio loop."""

    def __init__(self) -> None:
        super().__init__(ChildProcess(_MODULE, _output_logger))
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)  # milliseconds

    @classmethod
    async def launch(cls, config: EncoderConfig) -> Self:
        """Start a worker and return when it answers.

        Raises RouterUnavailableError with the end of its output when it died, or did not get ready.
        """
        child = cls()
        try:
            await child._start(config)
            async with asyncio.timeout(config.start_seconds):
                await child._handshake()
        except TimeoutError:
            await child.kill()
            raise RouterUnavailableError(
                f"the encoder worker was not ready after {config.start_seconds:g} s{child.tail()}"
            ) from None
        except (OSError, zmq.ZMQError) as error:
            await child.kill()
            raise RouterUnavailableError(f"the encoder worker did not start: {error}") from error
        except BaseException:  # a cancelled launch must not leave a process behind either
            await child.kill()
            raise
        return child

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal that killed it; None while it runs."""
        return self._process.status

    @property
    def long_work(self) -> str | None:
        """None: a worker's turn is one batch of texts."""
        return None

    async def heartbeat(self) -> None:
        """Return when the worker has answered between two batches."""
        await self._socket.send(m.encode(m.AskInfo(0)))
        await self._socket.recv_multipart()

    async def stop(self, timeout: float) -> None:
        """Ask it to end after its batch, kill it after `timeout` seconds, free what it held."""
        if self.alive:
            self._process.close_stdin()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._process.exited.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kill it if it still runs, and free what it held."""
        await self._process.kill()
        self._socket.close(linger=0)
        self._context.term()

    async def _start(self, config: EncoderConfig) -> None:
        self._socket.connect(config.endpoint)
        order = StartOrder(
            encoder_dir=str(config.encoder_dir),
            tokenizer_dir=str(config.tokenizer_dir),
            endpoint=config.endpoint,
            dtype=config.dtype,
            num_threads=config.num_threads,
            max_batch=config.max_batch,
            parent_pid=os.getpid(),
            make_tiny=config.make_tiny,
        )
        await self._process.start(config.environment, msgspec.json.encode(order))

    async def _handshake(self) -> None:
        answer = asyncio.ensure_future(self.heartbeat())
        exited = asyncio.ensure_future(self._process.exited.wait())
        try:
            await asyncio.wait((answer, exited), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await self._process.kill()  # for the end of its output
                how = self._process.how_it_ended
                raise RouterUnavailableError(
                    f"the encoder worker {how} before it was ready{self.tail()}"
                )
            await answer
        finally:
            answer.cancel()
            exited.cancel()
