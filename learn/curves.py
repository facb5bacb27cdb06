"""Read the learning curves of a run and draw them as one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from avtd3.learn.analysis.pages import curves_page
from avtd3.learn.analysis.reader import read_log
from avtd3.learn.analysis.scalars import Curve
from avtd3.store.files import write_aside


def read_curves(events: Path) -> Mapping[str, Curve]:
    """Read every scalar of a run's event files, by tag.

    Args:
        events: Directory with the event files of a TensorBoard writer.

    Raises:
        ConfigError: If there are no event files.
    """
    return read_log(events).curves


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Write a page with a plot of each curve over gradient updates, each with its meaning.

    The page is one file, without script or network, and fits a phone as well as a wide screen.

    Args:
        curves: What to draw, each with at least one point.
        path: The HTML file; it is replaced if it exists.
        title: Heading of the page.
    """
    write_aside(path, curves_page(curves, title=title).encode())
