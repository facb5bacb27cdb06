"""`ReplaySource`: the data of a training run, and how many updates they allow."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from avtd3.learn.config import LearnConfig
from avtd3.learn.evaluation import EpisodeMetrics
from avtd3.learn.report import LearnProgress
from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetError, DatasetUnreadableError, NoSegmentsError
from avtd3.store.files import exists, is_directory
from avtd3.store.format.layout import GROUP_FILE, SEGMENTS, STAGING
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefreshReport, name_refused

POLL_S = 0.2
"""Longest wait before asking again whether to stop, in seconds."""
_NEW_DATASET = {SEGMENTS, STAGING, GROUP_FILE}
"""All that a dataset contains while it is being created."""

OnWait = Callable[[str], None]
"""Called with what the run is waiting for."""


def open_datasets(
    paths: Sequence[Path], *, follow: bool, should_stop: Callable[[], bool], on_wait: OnWait
) -> list[Dataset]:
    """Open datasets; with `follow`, wait for missing ones; return none if stopped meanwhile."""
    datasets: list[Dataset] = []
    for path in paths:
        while (dataset := _open(path, follow=follow)) is None:
            if should_stop():
                return []
            on_wait(f"waiting for a collector to create {path}")
            time.sleep(POLL_S)
        datasets.append(dataset)
    return datasets


def _open(path: Path, *, follow: bool) -> Dataset | None:
    """Open a dataset; with `follow`, return None while a collector has not yet created it."""
    try:
        return Dataset.open(path)
    except DatasetUnreadableError:
        raise
    except DatasetError:
        if not follow:
            raise
        if exists(path / GROUP_FILE):  # written meanwhile, or no spec
            return Dataset.open(path)
        # a collector creates the directories a moment before it writes the spec
        if not exists(path) or _is_new_dataset(path):
            return None
        raise


def _is_new_dataset(path: Path) -> bool:
    """Return whether a directory contains only what a dataset starts with."""
    return is_directory(path) and {entry.name for entry in path.iterdir()} <= _NEW_DATASET


def scratch_directory(run: Path) -> Path:
    """Return the default directory of a run's replay cache: beside the run.

    Runs of the same dataset that are side by side share one cache. /tmp may be in memory, and the
    dataset may be read-only or on a network. If the parent directory is another disk (such as a
    container's volume) or cannot be written, the cache is in the run's directory.
    """
    run = run.resolve()
    if run.parent.stat().st_dev == run.stat().st_dev and os.access(run.parent, os.W_OK):
        return run.parent
    return run / "scratch"


class ReplaySource:
    """The data side of a run: its sampler, its newest episodes, and how many updates are allowed.

    Without `follow`, the datasets are read once and any number of updates is allowed. With
    `follow`, other processes append to the datasets: the source looks for new segments, and limits
    the number of updates per transition.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: LearnConfig,
        *,
        scratch: Path,
        follow: bool = False,
        gathers: bool = True,
        on_wait: OnWait = lambda _: None,
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.sampler = Sampler(
            datasets,
            config.replay,
            seed=config.seed,
            scratch=scratch,
            gathers=gathers,
            grows=follow,
            on_progress=lambda done, total: on_wait(
                f"reading the datasets: {done} of {total} frames"
            ),
        )
        self.steps_seen = self.sampler.opening.steps_added
        """Transitions that the datasets have offered so far."""
        self.absent: tuple[Path, ...] = ()
        """Datasets that have disappeared."""
        self.episodes = EpisodeMetrics(self.sampler.spec)
        """Metrics of the newest episodes."""
        self._config, self._follow = config, follow
        self._paths = ", ".join(str(dataset.path) for dataset in datasets)
        self._next_refresh_s = time.monotonic()
        self._allowed: float = float("inf")
        if not follow and not self.sampler.steps:
            error = self._no_steps()
            self.close()
            raise error
        self.episodes.add(self.sampler.opening.episodes)
        self._limit_updates()

    def ready(self, updates: int) -> bool:
        """Return whether another update is allowed; look for new segments if it is time to.

        Without `follow`, try segments again that could not be read.
        """
        is_due = time.monotonic() >= self._next_refresh_s
        if is_due and (self._follow or self.sampler.has_refused):
            sampler = self.sampler
            report = sampler.refresh() if self._follow else sampler.retry_refused()
            self.absent = report.absent
            self._add(report)
            self._next_refresh_s = time.monotonic() + self._config.refresh_seconds
        elif self.sampler.has_news:
            self._add(self.sampler.news())
        return updates < self._allowed

    def wait(self, updates: int, on_wait: OnWait) -> None:
        """Report what the run is waiting for, and sleep for a moment."""
        starts = self._config.learning_starts
        if self._allowed == 0.0:
            text = f"waiting for segments in {self._paths}: {self.sampler.steps} of "
            on_wait(f"{text}{max(starts, 1)} steps")
        else:
            on_wait(
                f"waiting for steps in {self._paths}: {updates} updates are "
                f"{self._config.updates_per_step:g} for each of {self.steps_seen - starts} steps "
                f"after the first {starts}"
            )
        time.sleep(min(POLL_S, self._config.refresh_seconds))

    def restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, episodes_logged: bool
    ) -> bool:
        """Continue where a checkpoint was saved; return whether the segments are the same."""
        is_exact = self.sampler.restore(dict(state), arrays)
        if is_exact and episodes_logged:
            self.episodes.clear()
        return is_exact

    def describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in the fields of a progress report that depend on the data."""
        return dataclasses.replace(
            progress,
            episode_return=self.episodes.newest_return,
            refused=self.sampler.refused,
            absent=self.absent,
        )

    def close(self) -> None:
        """Free the scratch space; safe to call twice."""
        self.sampler.close()

    def lost_all(self, error: NoSegmentsError) -> None:
        """Raise an error, because no segment can be used; with `follow`, wait for others."""
        if not self._follow or self.sampler.steps:
            raise (error if self.sampler.steps else self._no_steps()) from error
        self._limit_updates()

    def _no_steps(self) -> DatasetError:
        refused = self.sampler.refused
        fix = self.sampler.excluded or "run avtd3 collect, or add --follow to wait for it"
        is_unreadable = any(segment.is_unreadable for segment in refused)
        return (DatasetUnreadableError if is_unreadable else NoSegmentsError)(
            f"{self._paths}: there is no published step to learn from, expected at least one; "
            f"{name_refused(refused) if refused else fix}"
        )

    def _add(self, report: RefreshReport) -> None:
        self.steps_seen += report.steps_added
        self.episodes.add(report.episodes)
        self._limit_updates()

    def _limit_updates(self) -> None:
        if not self._follow:
            return
        config = self._config
        if self.sampler.steps < max(config.learning_starts, 1):
            self._allowed = 0.0
        elif config.updates_per_step:
            # As published: the first steps only start the training; they allow no updates.
            self._allowed = config.updates_per_step * (self.steps_seen - config.learning_starts)
        else:
            self._allowed = float("inf")
