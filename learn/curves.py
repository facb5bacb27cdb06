"""Learning curves: scalars out of a run's event files, as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from avtd3.learn.analysis.reader import read_log
from avtd3.learn.analysis.scalars import Curve


def read_curves(events: Path) -> Mapping[str, Curve]:
    """Read every scalar of a run's event files.

    Args:
        events: Directory that a TensorBoard writer wrote to.

    Raises:
        ConfigError: There are no event files.
    """
    return read_log(events).curves


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
