"""What one upload sends and what must come of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"

Good = Mapping[str, bytes]  # the files of a sound adapter
Parts = Sequence[tuple[str, Any]]  # of a form, as httpx takes them
Body = tuple[bytes, str]  # a form as it goes over the wire, and its content type


@dataclass(frozen=True, slots=True)
class Case:
    """`make` gives the parts of a form, or all of a body; `said` is in the answer."""

    make: Callable[[Good], Parts | Body]
    said: str = ""
    statuses: tuple[int, ...] = (422,)


def files(*sent: tuple[str, bytes]) -> Parts:
    """A form of these files."""
    return [("files", file) for file in sent]


def with_files(good: Good, **_: Any) -> Parts:
    """The sound adapter as it is."""
    return files(*good.items())


def replaced(good: Good, name: str, content: bytes) -> Parts:
    """The sound adapter with another file in place of one."""
    return files(*{**good, name: content}.items())


def parsed(good: Good) -> tuple[dict[str, Any], bytes]:
    """The header of the sound adapter's tensors, and their data."""
    content = good[TENSORS]
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def tensor_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, true or not; bytes go in as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
