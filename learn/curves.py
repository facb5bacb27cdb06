"""Learning curves: scalars out of a run's event files, as one picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One scalar over a run."""

    name: str
    """The metric's name, as logged."""
    updates: NDArray[np.int64]
    """int64 (N,), gradient updates done."""
    values: NDArray[np.float64]
    """float64 (N,), the metric."""


def read_curves(events: Path) -> dict[str, Curve]:
    """Read every scalar of a directory of event files.

    Args:
        events: Directory that a TensorBoard writer wrote to.

    Raises:
        CheckpointError: There are no event files.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(events.glob("*tfevents*")):
        raise CheckpointError(f"{events} holds no event files; give the directory of a run")
    accumulator = EventAccumulator(str(events), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    curves = {}
    for name in accumulator.Tags()["scalars"]:
        points = accumulator.Scalars(name)
        curves[name] = Curve(
            name=name,
            updates=np.array([p.step for p in points], np.int64),
            values=np.array([p.value for p in points], np.float64),
        )
    return curves


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str, columns: int = 3) -> None:
    """Draw each curve in a panel of its own and write a PNG.

    Args:
        curves: At least one.
        path: The file.
        title: Printed above the panels.
        columns: Panels in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, curve in zip(panels, curves, strict=False):
        panel.plot(curve.updates, curve.values, color="#2f6fb7", linewidth=1.2)
        panel.set_title(curve.name, fontsize=10)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    figure.supxlabel("gradient updates", fontsize=9)
    figure.savefig(path, dpi=110)
