"""The graphs of steps, captured before any step asks for one."""

from __future__ import annotations

from router_engine.backends.cuda.cuda_steps import CudaSteps
from router_engine.processes.progress import OnProgress


class StepCaptures:
    """As `backends.base.Captures`."""

    def __init__(self, steps: CudaSteps) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return self._steps.sizes.count

    def prepare(self) -> None:
        """See `Captures.prepare`."""
        self._steps.prepare()

    def capture(self, count: int, on_progress: OnProgress) -> None:
        """See `Captures.capture`."""
        keys = self._steps.keys()[:count]
        for done, key in enumerate(keys, 1):
            self._steps.capture(key)
            on_progress(done, len(keys))

    def clear(self) -> None:
        """See `Captures.clear`."""
        self._steps.graphs.clear()
