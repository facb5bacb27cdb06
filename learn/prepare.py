"""Before a run: its directory with its settings, and the threads that it may use."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from avtd3.learn.checkpoint import list_checkpoints
from avtd3.store import files
from avtd3.store.errors import ConfigError

CONFIG_FILE = "config.json"


def prepare_run(run: Path, document: Mapping[str, Any], *, resume: bool) -> None:
    """Make the run's directory and write down its settings.

    Raises:
        ConfigError: There is a run already and `resume` is not set, or the other way round.
        StorageError: The directory cannot be written.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--run {run} is a file, expected a directory; choose another")
    if not resume and list_checkpoints(run / "checkpoints"):
        raise ConfigError(
            f"--run {run} already holds a run; add --resume to go on, or choose another directory"
        )
    if resume and not (run / CONFIG_FILE).exists():
        raise ConfigError(f"--run {run} holds no run to resume; start it without --resume")
    with files.storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    files.write_aside(run / CONFIG_FILE, text.encode())


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile; 0 leaves it alone."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
