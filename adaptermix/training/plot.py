"""The loss curves as a small PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

GATE_CURVES = ("gate mean", "gate std")  # numbers between 0 and 1, no losses
_SMOOTHING = 0.9  # of an exponential moving average


def plot_losses(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw every curve of a training run, one above the other, each with its moving average."""
    figure = Figure(figsize=(5, 3 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color="0.75", linewidth=0.8, label="batch")
        axes.plot(steps, _smooth(values), color="C0", label="moving average")
        axes.set_ylabel(name if name in GATE_CURVES else f"{name}, nats per completion token")
        axes.legend(frameon=False)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def plot_gates(means: Sequence[Sequence[float]], labels: Sequence[str], path: Path) -> None:
    """Draw the mean gate of every expert in every layer, [layers][experts], as a heat map."""
    figure = Figure(figsize=(2 + 0.5 * len(labels), 2 + 0.15 * len(means)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(means, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axes.set_ylabel("layer")
    figure.colorbar(image, label="mean gate")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _smooth(values: Sequence[float]) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(_SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * value if smooth else value)
    return smooth
