"""What follows a stop alert: the state is kept aside, and the run may go back to a good one.

A rollback takes the networks, their optimisers and the guards from the checkpoint, not the draws
and not the noise: with the very same batches the run would only come to the very same end.
"""

from pathlib import Path

import torch

from avtd3.learn.checkpoints import (
    CheckpointMetadata,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    updates_of,
)
from avtd3.learn.td3 import TD3State
from avtd3.store import files

EMERGENCY = "emergency"
"""Directory in the run for what it was stopped with; nothing is resumed from there by itself."""
_KEPT = 3


def keep_aside(
    run: Path, state: TD3State, noise: torch.Generator, bookmark: CheckpointMetadata
) -> Path:
    """Save what a run was stopped with; returns where.

    Raises:
        StorageError: The disk is full or the directory cannot be written.
    """
    directory = run / EMERGENCY
    path = save_checkpoint(directory, state, noise, bookmark)
    prune_checkpoints(directory, _KEPT, ())
    return path


def go_back(
    run: Path, updates: int, state: TD3State, noise: torch.Generator
) -> CheckpointMetadata | None:
    """Put a run's checkpoint into its networks, and move those behind it aside.

    A run that is killed meanwhile goes on from that checkpoint, or from one behind it.

    Args:
        run: The run's directory.
        updates: Which checkpoint.
        state: Changed in place.
        noise: Generator of the target noise; goes on as it is.

    Returns:
        The checkpoint's bookmark; None if there is none of so many updates.

    Raises:
        CheckpointError: It is torn or of other networks.
        StorageError: The directory cannot be written.
    """
    found = {updates_of(path): path for path in list_checkpoints(run / "checkpoints")}
    if updates not in found:
        return None
    before = noise.get_state()
    bookmark = load_checkpoint(found[updates], state, noise)
    noise.set_state(before)
    aside = run / EMERGENCY
    with files.storage_errors(aside):
        aside.mkdir(exist_ok=True)
        for number in sorted(found, reverse=True):
            if number > updates:
                files.remove_tree(aside / found[number].name)
                found[number].rename(aside / found[number].name)
        files.fsync_directory(run / "checkpoints")
    prune_checkpoints(aside, _KEPT, ())
    return bookmark
