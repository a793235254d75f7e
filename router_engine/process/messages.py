"""Messages across the process border: commands to the engine, reports from it, in msgpack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from adapters_store.blobs.opening import DEFAULT_CACHE_BYTES
from router_engine.calls import AnyCall
from router_engine.config import EngineConfig
from router_engine.events import EngineEvent, FinalEvent, TokenEvent
from router_engine.info import EngineInfo
from router_engine.process.wire_errors import WireError
from router_engine.request import EngineRequest


class EngineProcessConfig(msgspec.Struct, frozen=True):
    """All that an engine process is told: it reads no environment and no files of settings."""

    engine: EngineConfig
    blobs_url: str  # this and the next two as `adapters_store.blobs.open_blobs` takes them
    blobs_cache_dir: Path | None = None
    blobs_cache_bytes: int = DEFAULT_CACHE_BYTES
    encoder_endpoint: str | None = None  # of the sentence encoder; without it no `similarity`
    log_level: str = "INFO"


class Launch(msgspec.Struct, frozen=True):
    """The one JSON line that a child process reads from its stdin."""

    config: EngineProcessConfig
    address: str  # ZeroMQ endpoint that the parent has bound
    parent_pid: int


class Submit(msgspec.Struct, frozen=True, tag=True):
    request: EngineRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the engine after the step that runs now."""


class CallRequest(msgspec.Struct, frozen=True, tag=True):
    """A call, answered by one CallResult or CallFailed with the same number."""

    number: int
    call: AnyCall


Command = Submit | Cancel | Shutdown | CallRequest


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The first report of an engine that can take requests."""

    info: EngineInfo


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """The only report of an engine that could not be built."""

    error: WireError


class StepEvents(msgspec.Struct, frozen=True, tag=True):
    """All events of one step. A request's tokens come before its end, so two lists keep order."""

    tokens: Sequence[TokenEvent]
    finals: Sequence[FinalEvent]

    @classmethod
    def of(cls, events: Sequence[EngineEvent]) -> StepEvents:
        return cls(
            [event for event in events if isinstance(event, TokenEvent)],
            [event for event in events if isinstance(event, FinalEvent)],
        )


class LongWork(msgspec.Struct, frozen=True, tag=True):
    """The engine begins what may take minutes; None: that has ended."""

    what: str | None


class CallResult(msgspec.Struct, frozen=True, tag=True):
    """The answer to a call; the caller knows the type of `value`."""

    number: int
    value: msgspec.Raw


class CallFailed(msgspec.Struct, frozen=True, tag=True):
    """The error that a call ended with."""

    number: int
    error: WireError


Report = Ready | StartFailed | StepEvents | LongWork | CallResult | CallFailed


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to an engine process")


def _path_from_text(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind.__name__} cannot be read from {value!r}")


encode_launch = msgspec.json.Encoder(enc_hook=_path_as_text).encode
decode_launch = msgspec.json.Decoder(Launch, dec_hook=_path_from_text).decode
encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder[Command](Command).decode
decode_report = msgspec.msgpack.Decoder[Report](Report).decode
