"""The loss curve as a small PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

_SMOOTHING = 0.9  # of an exponential moving average


def plot_losses(losses: Sequence[float], path: Path) -> None:
    """Draw the training loss of every step, and its moving average."""
    smooth: list[float] = []
    for loss in losses:
        smooth.append(_SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * loss if smooth else loss)
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="batch")
    axes.plot(steps, smooth, color="C0", label="moving average")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per completion token")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=80, metadata={"Software": None})
