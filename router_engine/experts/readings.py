"""What the routers inside layers said in one step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

GateColumns = tuple[tuple[str, int, int], ...]  # (digest, first, count)


@dataclass(frozen=True, slots=True)
class GateReadings:
    """values [layers, tokens, width]: gates, fp32 on the host; the adapter's weight is not in them.

    NaN where a token does not use the adapter at that layer, and where the layer has no such gate.
    columns: whose gates stand where, (digest, first column, how many), in the routers' own order.
    """

    values: Tensor
    columns: GateColumns
