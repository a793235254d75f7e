"""What the routers inside layers said in one step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from router_engine.scheduling.gates import GateColumns, StepReadings


@dataclass(frozen=True, slots=True)
class GateReadings:
    """values [layers, tokens, width]: gates, fp32 on the host; the adapter's weight is not in them.

    NaN where a token does not use the adapter at that layer, and where the layer has no such gate.
    columns: whose gates stand where, (digest, first column, how many), in the routers' own order.
    """

    values: Tensor
    columns: GateColumns

    def as_numpy(self) -> StepReadings:
        """The same without torch."""
        return StepReadings(self.values.numpy(), self.columns)
