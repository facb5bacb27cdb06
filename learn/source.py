"""What the newest episodes were like, in the log's names.

The store summarises episodes without knowing what its columns mean. Here the columns that driving
is judged by get their names; a dataset that lacks one of them lacks the metric.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from avtd3.learn.metrics import REWARD_TERMS
from avtd3.learn.report import LearnProgress
from avtd3.store.dataset import SEGMENTS, STAGING, Dataset
from avtd3.store.errors import DatasetError, NoSegmentsError
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.replay.backend import EpisodeSummary
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefreshReport, name_refused
from avtd3.store.spec import EpisodeSpec

END_REASONS = {
    "episode/success": "goal",
    "episode/collision": "collision",
    "episode/off_road": "off_road",
}
"""Metric to the end reason whose share it is."""

TERM_SHARES = {"episode/lane_invasion": "safety/lane_invasion"}
"""Metric to the reward term that the share of episodes is of in which it was not 0."""

VECTOR_COLUMNS = {
    "episode/lateral_deviation": "lateral_m",
    "episode/speed": "speed_mps",
}
"""Metric to the vector's column whose mean size it is, in the column's unit."""


class Episodes:
    """The episodes that no line of the log has told of yet."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.newest_return: float | None = None
        """Mean return of the newest episodes; kept when they are forgotten."""
        self.newest_length: float | None = None
        """Mean steps of the newest episodes; kept likewise."""
        self._spec = spec
        self._new: list[EpisodeSummary] = []

    def add(self, summary: EpisodeSummary) -> None:
        """Take in what a refresh found."""
        if len(summary):
            self._new.append(summary)
            self.newest_return = float(summary.returns.mean())
            self.newest_length = float(summary.lengths.mean())

    @property
    def are_told(self) -> bool:
        """Whether lines of the log have told of all of them."""
        return not self._new

    def forget(self) -> None:
        """Tell of them no more: a line of the log did, before the run was resumed."""
        self._new.clear()

    def scalars(self, version: int | None) -> dict[str, float]:
        """Means for the log, and forget; empty if there were no episodes.

        Args:
            version: Newest published policy.
        """
        if not self._new:
            return {}
        new = EpisodeSummary.join(self._new, self._spec)
        self.forget()
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


POLL_S = 0.2
"""Longest sleep before looking at `should_stop` again, in seconds."""
_BEGINNING = {SEGMENTS, STAGING, GROUP_FILE}

Wait = Callable[[str], None]
"""Told what is waited for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FollowConfig:
    """How to learn while others collect."""

    refresh_seconds: float
    """Seconds between two looks for new segments."""
    learning_starts: int
    """Transitions to wait for before the first update."""
    updates_per_step: float
    """Most updates per transition that the datasets offered after the first `learning_starts`; 0 is
    no limit."""


def open_datasets(
    paths: Sequence[Path], *, follow: bool, should_stop: Callable[[], bool], on_wait: Wait
) -> list[Dataset]:
    """Open datasets, waiting for those that do not exist yet when following.

    Returns:
        The datasets; none if it was told to stop while waiting.

    Raises:
        DatasetError: A path is something else, or missing and nobody is followed.
    """
    datasets: list[Dataset] = []
    for path in paths:
        while follow and not Path(path).exists():
            if should_stop():
                return []
            on_wait(f"waiting for {path} to be made by a collector")
            time.sleep(POLL_S)
        datasets.append(_open(Path(path), follow=follow, should_stop=should_stop, on_wait=on_wait))
    return datasets


def _open(path: Path, *, follow: bool, should_stop: Callable[[], bool], on_wait: Wait) -> Dataset:
    while True:
        has_spec = (path / GROUP_FILE).exists()
        try:
            return Dataset.open(path)
        except DatasetError:
            # a collector makes the directories a moment before it writes the spec beside them
            if not follow or should_stop() or has_spec or not _is_beginning(path):
                raise
            on_wait(f"waiting for {path} to be made by a collector")
            time.sleep(POLL_S)


def _is_beginning(path: Path) -> bool:
    """Whether a directory holds nothing but what a dataset begins with."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= _BEGINNING


class Source:
    """A sampler and its pace: how many updates the data allow so far."""

    def __init__(
        self, sampler: Sampler, paths: Sequence[Path], config: FollowConfig | None
    ) -> None:
        """Start with what the datasets hold.

        Args:
            sampler: Open, on the datasets.
            paths: Their directories, for messages.
            config: None to learn from what is there and never look again.

        Raises:
            NoSegmentsError: There is nothing to learn from, and nobody is followed.
        """
        self.sampler = sampler
        self.steps_seen = sampler.opening.steps_added
        self.absent: tuple[Path, ...] = ()
        self.episodes = Episodes(sampler.spec)
        self._config = config
        self._where = ", ".join(str(path) for path in paths)
        self._refresh_at_s = time.monotonic()
        self._allowed: float = float("inf")
        if config is None and sampler.steps == 0:
            refused = sampler.refused
            mend = sampler.left_out or "run avtd3 collect, or add --follow to wait for it"
            raise NoSegmentsError(
                f"{self._where}: nothing is published that can be learned from, expected at least "
                f"one step; {name_refused(refused) if refused else mend}"
            )
        self.episodes.add(sampler.opening.episodes)
        self._pace()

    def ready(self, updates: int) -> bool:
        """Whether one more update may be done; looks for new segments when it is time to.

        Args:
            updates: Updates done so far.
        """
        if self._config is not None and time.monotonic() >= self._refresh_at_s:
            report = self.sampler.refresh()
            self.absent = report.absent
            self._take(report)
            self._refresh_at_s = time.monotonic() + self._config.refresh_seconds
        elif self.sampler.has_news:
            self._take(self.sampler.news())
        return updates < self._allowed

    def describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in what is known of the data."""
        return dataclasses.replace(
            progress,
            episode_return=self.episodes.newest_return,
            refused=self.sampler.refused,
            absent=self.absent,
        )

    def wait(self, updates: int, on_wait: Wait) -> None:
        """Say what is waited for, and sleep for a moment."""
        assert self._config is not None
        if self._allowed == 0.0:
            text = f"waiting for segments in {self._where}: {self.sampler.steps} of "
            on_wait(f"{text}{max(self._config.learning_starts, 1)} steps")
        else:
            starts = self._config.learning_starts
            on_wait(
                f"waiting for steps in {self._where}: {updates} updates are "
                f"{self._config.updates_per_step:g} for each of {self.steps_seen - starts} steps "
                f"after the first {starts}"
            )
        time.sleep(min(POLL_S, self._config.refresh_seconds))

    def _take(self, report: RefreshReport) -> None:
        self.steps_seen += report.steps_added
        self.episodes.add(report.episodes)
        self._pace()

    def _pace(self) -> None:
        if self._config is None:
            return
        if self.sampler.steps < max(self._config.learning_starts, 1):
            self._allowed = 0.0
        elif self._config.updates_per_step:
            # As published: the first steps are waited for, and give no updates of their own.
            later = self.steps_seen - self._config.learning_starts
            self._allowed = self._config.updates_per_step * later
        else:
            self._allowed = float("inf")


def scratch_directory(run: Path) -> Path:
    """Where a run's replay cache lies unless the configuration says: beside the run.

    Runs lie side by side, so those of one dataset share it. Not in /tmp, which may be memory, and
    not beside the dataset, which may be another's or on a network. Inside the run only where its
    parent is another disk (a container's volume) or cannot be written.
    """
    run = run.resolve()
    if run.parent.stat().st_dev == run.stat().st_dev and os.access(run.parent, os.W_OK):
        return run.parent
    return run / "scratch"


def open_sampler(
    datasets: Sequence[Dataset],
    config: ReplayConfig,
    *,
    seed: int,
    scratch: Path,
    gathers: bool,
    grows: bool,
    on_wait: Wait,
) -> Sampler:
    """Open the datasets for replay, saying how far it is with decoding.

    Args:
        datasets: Where to read.
        config: What to keep and how to draw.
        seed: Seed of the draws.
        scratch: Directory for the replay cache; see `scratch_directory`.
        gathers: Whether batches are to hold frames; see `Sampler`.
        grows: Whether more is expected to be published.
        on_wait: Told how far it is.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    return Sampler(
        datasets,
        config,
        seed=seed,
        scratch=scratch,
        gathers=gathers,
        grows=grows,
        on_progress=lambda done, total: on_wait(f"reading the datasets: {done} of {total} frames"),
    )
