"""`Keeper`: which checkpoints a run keeps, which of them is the best, and the way back to one.

Kept are the newest, milestones, the last good one (`learn/guards/watch.py`), and the best by a
metric of one's choice, which ``RUN/checkpoints/best.json`` names. Going back by hand destroys
nothing: checkpoints behind the one that is gone back to move to ``RUN/rolled-back/NNN``.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from avtd3.learn.checkpoint import (
    Bookmark,
    list_checkpoints,
    load_checkpoint,
    mend_replaced,
    prune_checkpoints,
    save_checkpoint,
    updates_of,
)
from avtd3.learn.config import LearnConfig
from avtd3.learn.metrics import HIGHER, metric
from avtd3.learn.state import TD3State
from avtd3.store import files
from avtd3.store.errors import CheckpointError, SpecError
from avtd3.store.spec import EpisodeSpec

CHECKPOINTS, ROLLED_BACK, BEST = "checkpoints", "rolled-back", "best.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best checkpoint so far."""

    metric: str
    """By which metric."""
    value: float
    """Its newest value when the checkpoint was made."""
    updates: int
    """Which checkpoint."""
    newest: float
    """The metric's newest value at the newest checkpoint."""

    def after(self, value: float, updates: int) -> Self:
        """The best after one more checkpoint; of two as good, the earlier one."""
        known = metric(self.metric)
        assert known is not None
        better = value > self.value if known.better == HIGHER else value < self.value
        if better:
            return dataclasses.replace(self, value=value, updates=updates, newest=value)
        return dataclasses.replace(self, newest=value)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(
                metric=str(document["metric"]),
                value=float(document["value"]),
                updates=int(document["updates"]),
                newest=float(document["newest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not say which is the best ({error!r}); resume from another"
            ) from error


class Keeper:
    """A run's checkpoints."""

    def __init__(self, run: Path, config: LearnConfig) -> None:
        """Look after a run's checkpoints; nothing is read yet.

        Args:
            run: The run's directory.
            config: How many are kept.
        """
        self.best: Best | None = None
        """The best checkpoint so far; None without `LearnConfig.keep_best`, or before one."""
        self._run, self._config = run, config
        self._directory = run / CHECKPOINTS

    def find(self, rollback: int | None) -> Path | None:
        """The checkpoint to go on from; None if the run has none yet.

        Args:
            rollback: Updates of the one to go back to; None for the newest.

        Raises:
            CheckpointError: There is none of so many updates.
        """
        mend_replaced(self._directory)
        found = {updates_of(path): path for path in list_checkpoints(self._directory)}
        if rollback is None:
            return found[max(found)] if found else None
        if rollback not in found:
            kept = ", ".join(map(str, found)) or "none"
            raise CheckpointError(
                f"--rollback {rollback}: {self._directory} keeps no checkpoint of that update, "
                f"expected one of: {kept}; earlier rollbacks moved theirs to "
                f"{self._run / ROLLED_BACK}"
            )
        return found[rollback]

    def load(
        self, path: Path, state: TD3State, noise: torch.Generator, spec: EpisodeSpec
    ) -> Bookmark:
        """Put a checkpoint into fresh networks and optimisers of the same settings.

        Raises:
            CheckpointError: Torn, altered, or of other networks.
            FormatVersionError: A later avtd3 wrote it.
            SpecError: It was trained on data of another spec.
        """
        bookmark = load_checkpoint(path, state, noise)
        if bookmark.spec_digest != spec.digest:
            raise SpecError(
                f"checkpoint {path} was trained on data of spec {bookmark.spec_digest[:12]}, "
                f"expected {spec.digest[:12]} as the datasets have; resume with its own data"
            )
        self.restore(bookmark)
        return bookmark

    def restore(self, bookmark: Bookmark) -> None:
        """Take the best one from a bookmark, if it is by the metric that is asked for.

        Raises:
            StorageError: The directory cannot be written.
        """
        best = Best.from_json(bookmark.best) if bookmark.best else None
        self.best = best if best is not None and best.metric == self._config.keep_best else None
        self._tell_best()

    def set_aside(self, updates: int) -> Path | None:
        """Move all checkpoints behind an update out of the way, the newest first.

        A run that is killed meanwhile goes on from that update, or from one behind it.

        Returns:
            Where they are now; None if there were none.

        Raises:
            StorageError: The directory cannot be written.
        """
        later = [path for path in list_checkpoints(self._directory) if updates_of(path) > updates]
        if not later:
            return None
        place = self._run / ROLLED_BACK
        with files.storage_errors(place):
            place.mkdir(exist_ok=True)
            number = max((int(p.name) for p in place.iterdir() if p.name.isdecimal()), default=0)
            aside = place / f"{number + 1:03d}"
            aside.mkdir()
            for path in reversed(later):
                path.rename(aside / path.name)
            files.fsync_directory(aside)
            files.fsync_directory(self._directory)
        return aside

    def save(
        self,
        state: TD3State,
        noise: torch.Generator,
        bookmark: Bookmark,
        *,
        newest: Mapping[str, float],
        good: int | None,
    ) -> None:
        """Write a checkpoint and remove those that need not be kept.

        Args:
            state: Networks and optimisers.
            noise: Generator of the target noise.
            bookmark: Everything else; which is the best is filled in here.
            newest: The newest value of each metric that this session logged.
            good: Updates of the last good checkpoint, if there is one.

        Raises:
            StorageError: The disk is full or the directory cannot be written.
        """
        self._judge(bookmark.updates, newest)
        best = {} if self.best is None else dataclasses.asdict(self.best)
        bookmark = dataclasses.replace(bookmark, best=best)
        save_checkpoint(self._directory, state, noise, bookmark)
        if self.best is not None and self.best.updates == bookmark.updates:
            self._tell_best()
        kept = [*self._config.milestones, good, None if self.best is None else self.best.updates]
        milestones = tuple(updates for updates in kept if updates is not None)
        prune_checkpoints(self._directory, self._config.keep_checkpoints, milestones)

    def _judge(self, updates: int, newest: Mapping[str, float]) -> None:
        name = self._config.keep_best
        value = newest.get(name, None if self.best is None else self.best.newest)
        if not name or value is None or value != value:  # NaN is never the best
            return
        if self.best is None:
            self.best = Best(metric=name, value=value, updates=updates, newest=value)
        else:
            self.best = self.best.after(value, updates)

    def _tell_best(self) -> None:
        path = self._directory / BEST
        if self.best is None:
            with files.storage_errors(path):
                path.unlink(missing_ok=True)
            return
        document = dataclasses.asdict(self.best)
        del document["newest"]
        files.write_aside(path, files.canonical_json(document))
