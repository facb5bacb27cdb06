"""`ReplaySource`: the data of a training run, and how many updates they allow."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.learn.config import LearnConfig
from avtd3.learn.metrics import REWARD_TERMS
from avtd3.learn.report import LearnProgress
from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetError, DatasetUnreadableError, NoSegmentsError
from avtd3.store.format.layout import GROUP_FILE, SEGMENTS, STAGING
from avtd3.store.replay.backend import EpisodeSummary
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefreshReport, name_refused
from avtd3.store.spec import EpisodeSpec

END_REASONS = {
    "episode/success": "goal",
    "episode/collision": "collision",
    "episode/off_road": "off_road",
}
"""End reason whose share of the episodes a metric is."""

TERM_SHARES = {"episode/lane_invasion": "safety/lane_invasion"}
"""Reward term for which a metric is the share of episodes where its sum is not 0."""

VECTOR_COLUMNS = {
    "episode/lateral_deviation": "lateral_m",
    "episode/speed": "speed_mps",
}
"""Column of the vector whose mean absolute value a metric is, in the column's unit."""

POLL_S = 0.2
"""Longest wait before asking again whether to stop, in seconds."""
_NEW_DATASET = {SEGMENTS, STAGING, GROUP_FILE}
"""All that a dataset contains while it is being created."""

OnWait = Callable[[str], None]
"""Called with what the run is waiting for."""


class EpisodeMetrics:
    """Metrics of the episodes that have not been logged yet.

    The store summarises episodes without knowing the meaning of their columns. This class gives
    names to the columns that matter for driving. If a dataset does not have a column, its metric is
    missing.
    """

    def __init__(self, spec: EpisodeSpec) -> None:
        self.newest_return: float | None = None
        """Mean return of the newest episodes, logged or not."""
        self.newest_length: float | None = None
        """Mean length of the newest episodes in steps, logged or not."""
        self._spec = spec
        self._new: list[EpisodeSummary] = []

    @property
    def are_logged(self) -> bool:
        """Whether the metrics of all episodes have been logged."""
        return not self._new

    def add(self, summary: EpisodeSummary) -> None:
        """Add new episodes."""
        if len(summary):
            self._new.append(summary)
            self.newest_return = float(summary.returns.mean())
            self.newest_length = float(summary.lengths.mean())

    def clear(self) -> None:
        """Skip the episodes so far: they were logged before the run was resumed."""
        self._new.clear()

    def read(self, version: int | None) -> dict[str, float]:
        """Return means over the new episodes, by metric, and start again.

        Args:
            version: Newest published policy.
        """
        if not self._new:
            return {}
        new = EpisodeSummary.join(self._new, self._spec)
        self.clear()
        found = {
            "episode/return": float(new.returns.mean()),
            "episode/length": float(new.lengths.mean()),
        }
        for metric, reason in END_REASONS.items():
            found[metric] = new.end_reasons.count(reason) / len(new)
        return found | self._columns(new) | _policy_lag(new, version)

    def _columns(self, new: EpisodeSummary) -> dict[str, float]:
        spec = self._spec
        sums = new.reward_term_sums.mean(axis=0).tolist()
        found = {REWARD_TERMS + name: x for name, x in zip(spec.reward_terms, sums, strict=True)}
        for metric, name in TERM_SHARES.items():
            if name in spec.reward_terms:
                term = new.reward_term_sums[:, spec.reward_terms.index(name)]
                found[metric] = float((term != 0.0).mean())
        sizes = new.vector_mean_abs.mean(axis=0) * np.array(spec.vector_scales)
        for metric, name in VECTOR_COLUMNS.items():
            if name in spec.vector_names:
                found[metric] = float(sizes[spec.vector_names.index(name)])
        return found


def _policy_lag(new: EpisodeSummary, version: int | None) -> dict[str, float]:
    driven = new.policy_versions[new.policy_versions >= 0]
    if version is None or not len(driven):
        return {}
    lags = version - driven
    return {
        "run/policy_lag": float(lags.mean()),
        "run/policy_lag_min": float(lags.min()),
        "run/policy_lag_max": float(lags.max()),
    }


def open_datasets(
    paths: Sequence[Path], *, follow: bool, should_stop: Callable[[], bool], on_wait: OnWait
) -> list[Dataset]:
    """Open datasets; with `follow`, wait for those that do not exist yet.

    Returns:
        The datasets; none if `should_stop` returned True while waiting.

    Raises:
        DatasetError: If a path is not a dataset, or is missing and `follow` is False.
    """
    datasets: list[Dataset] = []
    for path in paths:
        while follow and not path.exists():
            if should_stop():
                return []
            on_wait(f"waiting for a collector to create {path}")
            time.sleep(POLL_S)
        datasets.append(_open(path, follow=follow, should_stop=should_stop, on_wait=on_wait))
    return datasets


def _open(path: Path, *, follow: bool, should_stop: Callable[[], bool], on_wait: OnWait) -> Dataset:
    while True:
        has_spec = (path / GROUP_FILE).exists()
        try:
            return Dataset.open(path)
        except DatasetError:
            # a collector creates the directories a moment before it writes the spec
            if not follow or should_stop() or has_spec or not _is_new_dataset(path):
                raise
            on_wait(f"waiting for a collector to create {path}")
            time.sleep(POLL_S)


def _is_new_dataset(path: Path) -> bool:
    """Return whether a directory contains only what a dataset starts with."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= _NEW_DATASET


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

    Args:
        datasets: Opened datasets, all of one spec.
        config: The settings of the run.
        scratch: Directory of the replay cache.
        follow: Whether other processes append to the datasets.
        gathers: Whether batches contain frames; see `Sampler`.
        on_wait: Called with the progress of decoding.

    Raises:
        NoSegmentsError: If there is nothing to learn from, and `follow` is False.
        DatasetUnreadableError: The same, because of an I/O error.
        SpecError: If the datasets have different specs.
        StorageError: If the scratch directory cannot be written or is too small.
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

        Args:
            updates: Updates so far.
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
        """Report what the run is waiting for, and sleep for a moment.

        Args:
            updates: Updates so far.
            on_wait: Called with what the run is waiting for.
        """
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
        """Continue sampling where a checkpoint was saved.

        Args:
            state: What `Sampler.state` returned.
            arrays: What `Sampler.arrays` returned.
            episodes_logged: Whether the metrics of all episodes had been logged.

        Returns:
            Whether the sampler has the same segments as for the checkpoint.
        """
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
