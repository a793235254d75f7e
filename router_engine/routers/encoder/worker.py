"""The encoder worker's process: one thread, one ROUTER socket.

Started by `EncoderChild`: its first line on stdin is the start order; that it answers on its socket
says that it is ready. It exits when stdin ends, which it does when the parent dies.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import msgspec
import zmq

from router_engine.model.checkpoint import refused
from router_engine.process.gc import freeze_loaded
from router_engine.processes.parent import die_with_parent
from router_engine.routers.encoder.encoder_config import StartOrder
from router_engine.routers.encoder.encoder_messages import encode
from router_engine.routers.encoder.folder import EncoderFolder
from router_engine.routers.encoder.service import Answer, EncoderService

MAX_PENDING = 4096  # asks taken in; more wait in the sockets' own bounded queues
MAX_MESSAGE_BYTES = 64 << 20


def build_service(order: StartOrder) -> EncoderService:
    """Load encoder and tokenizer.

    The heavy imports are in here: by then this process ends with its parent.
    """
    directory = Path(order.encoder_dir)
    if not order.make_tiny:
        EncoderFolder.read(directory)  # what is no encoder is told before torch is loaded
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from router_engine.routers.encoder.sentence import SentenceEncoder

    torch.set_num_threads(order.num_threads)
    transformers_logging.disable_progress_bar()
    read = partial(
        AutoTokenizer.from_pretrained,
        order.tokenizer_dir,
        local_files_only=True,
        trust_remote_code=False,
    )
    tokenizer = refused(str(order.tokenizer_dir), "no tokenizer can be loaded", read)
    if order.make_tiny:
        from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder

        save_tiny_encoder(directory)
    encoder = SentenceEncoder(directory, dtype=order.dtype, max_batch=order.max_batch)

    def decode(token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))

    return EncoderService(encoder, decode, max_batch=order.max_batch)


def listen(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to a client that left is an error
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.bind(endpoint)
    return socket


def serve(service: EncoderService, socket: zmq.Socket[bytes], parent: int) -> None:
    """Answer until `parent` (a file descriptor) becomes readable, which is to say: ends."""
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(parent, zmq.POLLIN)
    while True:
        ready = dict(poller.poll(0 if service.pending else None))
        if parent in ready:
            return
        _take_in(service, socket)
        for answer in service.work():
            _send(service, socket, answer)


def _take_in(service: EncoderService, socket: zmq.Socket[bytes]) -> None:
    while service.pending < MAX_PENDING:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        service.receive(frames[0], frames[-1])


def _send(service: EncoderService, socket: zmq.Socket[bytes], answer: Answer) -> None:
    client, reply = answer
    try:
        socket.send_multipart([client, encode(reply)], zmq.NOBLOCK)
    except zmq.ZMQError as error:
        # EHOSTUNREACH: it has gone; EAGAIN: it has not read thousands of answers
        if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            raise
        service.forget(client)


def main() -> None:
    # A terminal or a service manager signals the whole group; the parent decides when this ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=StartOrder)
    die_with_parent(order.parent_pid)
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        service = build_service(order)
        freeze_loaded()
        # Only now: whoever reaches the socket takes the worker for one that answers.
        socket = listen(context, order.endpoint)
    except Exception as error:  # one line: the parent puts it into what it says
        sys.exit("".join(traceback.format_exception_only(error)).strip())
    serve(service, socket, sys.stdin.fileno())
    context.destroy(linger=0)
    os._exit(0)  # nothing is left to write, and torch takes a second to fold up


if __name__ == "__main__":
    main()
