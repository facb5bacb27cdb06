"""`ReplaySource`: the data of a training run, and how many updates they allow."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from avtd3.learn.config import LearnConfig
from avtd3.learn.evaluation import EpisodeMetrics
from avtd3.learn.ranks import ALONE, Order, Ranks, hash_of
from avtd3.learn.report import LearnProgress
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    NoSegmentsError,
    RankLostError,
)
from avtd3.store.files import exists, is_directory, remote_url
from avtd3.store.format.layout import GROUP_FILE, SEGMENTS, STAGING
from avtd3.store.remote.background import Background, Mirror, PolicyPush, mirror_path
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefreshReport, RefusedSegment, name_refused

POLL_S = 0.2
"""Longest wait before asking again whether to stop, in seconds."""
ALIGN_S = 120.0
"""Longest time in which all ranks must find the same segments, in seconds."""
STALLED_REFRESHES = 20
"""Refreshes without new steps after which a collector may be waiting for a policy."""
_NEW_DATASET = {SEGMENTS, STAGING, GROUP_FILE}
"""All that a dataset contains while it is being created."""

OnWait = Callable[[str], None]
"""Called with what the run is waiting for."""


def open_datasets(
    ranks: Ranks,
    paths: Sequence[Path],
    *,
    follow: bool,
    should_stop: Callable[[], bool],
    on_wait: OnWait,
) -> list[Dataset]:
    """Open datasets on all ranks; return none if stopped meanwhile.

    With `follow`, rank 0 waits for missing ones, and the others wait for rank 0.
    """

    def agree(order: Order) -> Order:
        return ranks.agree(Order.END if should_stop() else order)[0]

    while not ranks.is_first and (order := agree(Order.UPDATE)) is not Order.REFRESH:
        if order is Order.END:
            return []
    datasets: list[Dataset] = []
    for path in paths:
        while (dataset := _open(path, follow=follow)) is None:
            if ranks.is_first and agree(Order.WAIT) is Order.END:
                return []
            on_wait(f"waiting for a collector to create {path}")
            time.sleep(POLL_S)
        datasets.append(dataset)
    if ranks.is_first and ranks.size > 1 and agree(Order.REFRESH) is Order.END:
        return []
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


def check_pace(config: LearnConfig) -> None:
    """Raise `ConfigError` if a learner that follows could never start as it is configured."""
    starts, capacity = config.learning_starts, config.replay.capacity
    if capacity < starts:
        raise ConfigError(
            f"learn.learning_starts is {starts}, expected at most learn.replay.capacity, {capacity}"
            ": the replay would drop steps before the first update; lower the one or raise the "
            "other"
        )


def scratch_directory(run: Path) -> Path:
    """Return the default directory of a run's replay cache: beside the run, shared with others.

    If the parent directory is another disk (such as a container's volume) or cannot be written, it
    is in the run's directory. /tmp may be in memory, and the dataset read-only or on a network.
    """
    run = run.resolve()
    if run.parent.stat().st_dev == run.stat().st_dev and os.access(run.parent, os.W_OK):
        return run.parent
    return run / "scratch"


class RunCopies:
    """The directories that stand for the URLs of a run on this machine, and their threads."""

    def __init__(
        self,
        run: Path,
        datasets: Sequence[Path],
        policies: Path | str,
        config: LearnConfig,
        run_id: str,
    ) -> None:
        self.datasets = [mirror_path(run, path) for path in datasets]
        """The datasets as directories."""
        limits = {"max_bytes": config.mirror_bytes, "steps": config.replay.capacity}
        self._mirrors = {
            number: Mirror(url, self.datasets[number], **limits)
            for number, path in enumerate(datasets)
            if (url := remote_url(path)) is not None
        }
        self._policies_url = remote_url(policies)
        self.policies = Path(policies) if self._policies_url is None else run / "policies"
        """Where the run publishes its policies."""
        self._prunes, self._run_id = bool(config.keep_policies), run_id
        self._threads: list[Background] = []
        self.unsent = ""
        """What could not be copied to a URL before the run was stopped, and what to do."""

    @contextlib.contextmanager
    def kept(
        self, ranks: Ranks, *, follow: bool, should_stop: Callable[[], bool], on_wait: OnWait
    ) -> Iterator[bool]:
        """Keep directories and URLs alike inside; at the end, wait for the policies.

        Only rank 0 does; the others wait until the datasets are there. Yield whether they are;
        False if stopped before.
        """
        are_ready = True
        if self._mirrors:
            mirrors = self._mirrors.values() if ranks.is_first and not follow else ()
            is_filled = all(mirror.fill(should_stop, on_wait) for mirror in mirrors)
            ranks.meet()  # unlike `share`, this waits for as long as it takes
            are_ready = bool(ranks.share(is_filled))
        if not are_ready or not ranks.is_first:
            yield are_ready
            return
        with contextlib.ExitStack() as stack:
            for mirror in self._mirrors.values() if follow else ():
                self._threads.append(stack.enter_context(mirror))
            push = None
            if self._policies_url is not None:
                push = PolicyPush(
                    self._policies_url, self.policies, prunes=self._prunes, run=self._run_id
                )
                push.adopt(should_stop)
                self._threads.append(stack.enter_context(push))
            for thread in self._threads:
                stack.callback(thread.stop)  # all at once, before waiting for each
            yield True
            if push is None:
                return
            copying = f"copying the newest policies to {push.url}"
            if not push.finish(should_stop, lambda reason: on_wait(reason or copying)):
                self.unsent = (
                    f"the newest policies are not at {push.url} yet: {push.waiting}; to copy "
                    f"them: avtd3 push {push.path} {push.url}"
                )

    def keep_wanted(self, sampler: Sampler) -> None:
        """Let mirrors keep what a sampler wants as long as possible."""
        for number, mirror in self._mirrors.items():
            mirror.wanted = functools.partial(sampler.segments_of, number)

    def check(self) -> None:
        """Raise the error that ended a thread, if any."""
        for thread in self._threads:
            thread.check()

    @property
    def steps_elsewhere(self) -> int:
        """Steps at URLs that were never copied here."""
        return sum(mirror.steps_elsewhere for mirror in self._mirrors.values())

    @property
    def mirror_bytes(self) -> int | None:
        """Bytes of all mirrors; None if there are none."""
        return sum(m.size_bytes for m in self._mirrors.values()) if self._mirrors else None

    @property
    def waiting(self) -> str:
        """What the threads wait for, if anything."""
        return "; ".join(thread.waiting for thread in self._threads if thread.waiting)

    @property
    def refused(self) -> list[RefusedSegment]:
        """Segments at URLs that cannot be copied here."""
        return [
            RefusedSegment(dataset=mirror.path, segment_id=name, reason=reason)
            for mirror in self._mirrors.values()
            for name, reason in tuple(mirror.problems.items())
        ]


class ReplaySource:
    """The data side of a run: its sampler, its newest episodes, and how many updates are allowed.

    With `follow`, it looks for new segments, and limits the number of updates per transition.
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
        copies: RunCopies | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.sampler = Sampler(
            datasets,
            config.replay,
            seed=config.seed,
            scratch=scratch,
            gathers=gathers,
            grows=follow,
            part=(ranks.rank, ranks.size),
            on_progress=lambda done, total: on_wait(
                f"reading the datasets: {done} of {total} frames"
            ),
        )
        self.absent: tuple[Path, ...] = ()
        """Datasets that have disappeared."""
        self.episodes = EpisodeMetrics(self.sampler.spec)
        """Metrics of the newest episodes."""
        self._config, self._follow, self._ranks = config, follow, ranks
        self._paths = ", ".join(str(dataset.path) for dataset in datasets)
        self._copies = copies or RunCopies(scratch, [], scratch, config, "")
        self._copies.keep_wanted(self.sampler)
        self._next_refresh_s = self._news_s = time.monotonic()
        if not follow and not self.sampler.steps:
            error = self._no_steps()
            self.close()
            raise error
        self.episodes.add(self.sampler.opening.episodes)
        self._limit_updates()

    @property
    def steps_seen(self) -> int:
        """Steps that collectors have published so far, whether or not they may be sampled.

        The pace of the learner counts these, as that of a collector (`CollectAheadConfig`) does.
        """
        return self.sampler.steps_published + self._copies.steps_elsewhere

    @property
    def is_stalled(self) -> bool:
        """Whether no new steps have arrived for so long that collectors may wait for a policy."""
        return time.monotonic() - self._news_s > STALLED_REFRESHES * self._config.refresh_seconds

    def ready(self, updates: int) -> bool:
        """Return whether another update is allowed; look for new or unreadable segments if due."""
        self._copies.check()
        if self.is_due:
            self.refresh()
        elif self.sampler.has_news:
            self._add(self.sampler.news())
        return updates < self._allowed

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for new or unreadable segments."""
        is_time = time.monotonic() >= self._next_refresh_s
        return is_time and (self._follow or self.sampler.has_refused)

    def refresh(self) -> None:
        """Look for new or unreadable segments."""
        sampler, before = self.sampler, self.steps_seen
        report = sampler.refresh() if self._follow else sampler.retry_refused()
        self.absent = report.absent
        self._add(report)
        if self.steps_seen > before:
            self._news_s = time.monotonic()
        self._next_refresh_s = time.monotonic() + self._config.refresh_seconds

    def align(self) -> None:
        """Let all ranks sample the same batches: from the same segments, in the state of rank 0."""
        give_up_s = time.monotonic() + ALIGN_S
        while not self._finds_the_same(is_over=time.monotonic() > give_up_s):
            time.sleep(POLL_S)
            self._add(self.sampler.refresh())
        states = self._ranks.gather(hash_of(self.sampler.state()))
        if len(set(states)) > 1:
            state = self._ranks.share(self.sampler.state())
            data = self._ranks.share_bytes(safetensors.numpy.save(self.sampler.arrays()))
            self.sampler.restore(state, safetensors.numpy.load(data))

    def _finds_the_same(self, *, is_over: bool) -> bool:
        """Return whether all ranks have the same segments; exclude those that a rank refuses."""
        refused = [(str(s.dataset), s.segment_id, s.reason) for s in self.sampler.refused]
        found = self._ranks.gather([self.sampler.digest, refused, is_over])
        if len({digest for digest, _, _ in found}) == 1:
            return True
        if found[0][2]:
            raise RankLostError(
                f"rank {self._ranks.rank}: the ranks find different segments in {self._paths} "
                f"since {ALIGN_S:g} seconds, expected the same; check that all their machines see "
                "the same files, then continue with --resume"
            )
        self.sampler.refuse(
            RefusedSegment(dataset=Path(path), segment_id=name, reason=reason)
            for _, others, _ in found
            for path, name, reason in others
        )
        return False

    def wait(self, updates: int, on_wait: OnWait) -> None:
        """Report what the run is waiting for, and sleep for a moment."""
        waits = (f"waiting for {self._awaited(updates)}", self._copies.waiting)
        on_wait("; ".join(filter(None, waits)))
        time.sleep(min(POLL_S, self._config.refresh_seconds))

    def _awaited(self, updates: int) -> str:
        starts, ratio = self._config.learning_starts, self._config.updates_per_step
        seen = self.steps_seen
        if seen < max(starts, 1):
            return f"segments in {self._paths}: {seen} of {max(starts, 1)} steps are collected"
        if not self.sampler.steps:
            why = self.sampler.excluded or "all segments are refused"
            return f"steps to sample in {self._paths}: {seen} steps are collected, but {why}"
        return (
            f"more steps in {self._paths}: {updates} updates are {ratio:g} for each of "
            f"{seen - starts} steps after the first {starts}"
        )

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
            refused=(*self.sampler.refused, *self._copies.refused),
            absent=self.absent,
            mirror_bytes=self._copies.mirror_bytes,
            steps_by_collector=self.sampler.steps_by_collector,
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
        self.episodes.add(report.episodes)
        self._limit_updates()

    def _limit_updates(self) -> None:
        starts, ratio = self._config.learning_starts, self._config.updates_per_step
        if self._follow and (self.steps_seen < starts or not self.sampler.steps):
            self._allowed = 0.0
        elif self._follow and ratio:
            # As published: the first steps only start the training; they allow no updates.
            self._allowed = ratio * (self.steps_seen - starts)
        else:
            self._allowed = float("inf")
