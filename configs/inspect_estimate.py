"""`avtd3 replay-inspect --estimate`: bytes per step, of a dataset or of a configuration."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from avtd3.configs.command_line import answer, section
from avtd3.store.errors import ConfigError

MEASURED_STEPS = 600
"""Steps that are driven to measure a configuration: half a minute at 20 Hz."""


def show_estimate(
    datasets: Sequence[Path], config: str | None, overrides: list[str] | None, *, as_json: bool
) -> None:
    """Print what a step costs on the disk.

    Args:
        datasets: One to measure; none to drive `MEASURED_STEPS` of the configured world, through
            the real writer, into a directory that is removed again.
        config: File or preset with the ``collect`` section.
        overrides: As ``collect.task.image_size=96``.
        as_json: Print JSON.

    Raises:
        Avtd3Error: More than one dataset, one that cannot be opened, or a world that fails.
    """
    from avtd3.store.audit.estimate import estimate
    from avtd3.store.dataset import Dataset

    if len(datasets) > 1:
        raise ConfigError(f"--estimate measures one dataset, {len(datasets)} are given")
    if datasets:
        found = estimate(Dataset.open(datasets[0]))
    else:
        from avtd3.collect.collector import collect

        with tempfile.TemporaryDirectory(prefix="avtd3-estimate-") as folder:
            path = Path(folder) / "data"
            collect(path, section("collect", config, overrides), steps=MEASURED_STEPS)
            found = estimate(Dataset.open(path))
    answer(found.document(), as_json, found.summary())
