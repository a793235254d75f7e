"""Gate values and arrow's weights of one step, as the routers inside layers gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from router_engine.scheduling.plan import GateColumns, GateValues, PromptGates


@dataclass(frozen=True, slots=True)
class GateTensors:
    """values [layers, tokens, width]: gates, fp32 on the host; the adapter's weight is not in them.

    NaN where a token does not use the adapter at that layer, and where the layer has no such gate.
    columns: whose gates stand where, (digest, first column, how many), in the routers' own order.
    of_prompts: by request, the gates of the prompts that were computed in this step and hold for
    all that follows.
    """

    values: Tensor
    columns: GateColumns
    of_prompts: Mapping[str, PromptGates] = field(default_factory=dict)

    def as_numpy(self) -> GateValues:
        """The same without torch."""
        return GateValues(self.values.numpy(), self.columns, self.of_prompts)
