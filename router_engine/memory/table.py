"""The parts of a device's memory as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from router_engine.info import MemoryPart


def table(parts: Sequence[MemoryPart]) -> str:
    """A line a part: its name, GiB, and what fits there; then the sum."""
    total = MemoryPart("together", sum(part.num_bytes for part in parts), "")
    return "\n".join(
        f"{part.name:<9} {part.num_bytes / 2**30:>8.2f} GiB  {part.told}".rstrip()
        for part in (*parts, total)
    )
