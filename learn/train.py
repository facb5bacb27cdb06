"""The loop: sample, update, log, publish, checkpoint; offline or behind running collectors.

A run directory holds::

    RUN/config.json      resolved settings of its last session
    RUN/events/          TensorBoard event files
    RUN/alerts.jsonl     see learn/guards/alerts.py; made at the first alert
    RUN/checkpoints/     see learn/checkpoint.py
    RUN/emergency/       what stop alerts found, in the form of checkpoints
    RUN/policies/        published policies, unless they go elsewhere
    RUN/scratch/         the replay cache, where it cannot lie beside RUN (`scratch_directory`)

A run that is killed at any moment goes on from its newest checkpoint: what is under its name is
whole. The update itself takes so much longer than drawing a batch (400 ms against 1 ms for images
on a CPU; on a GPU the draw overlaps with the update before it) that no thread draws ahead, and a
checkpoint has exactly the state of the draws.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from avtd3.learn.allocator import keep_freed_memory
from avtd3.learn.config import LearnConfig
from avtd3.learn.prepare import cpu_threads, prepare_run
from avtd3.learn.report import LearnProgress, LearnReport
from avtd3.learn.session import Session
from avtd3.learn.source import FollowConfig, Source, open_datasets, open_sampler, scratch_directory
from avtd3.store.dataset import Dataset
from avtd3.store.errors import TrainingHalted

__all__ = ["LearnConfig", "LearnProgress", "LearnReport", "train"]

PROGRESS_INTERVAL_S = 0.1
"""Shortest time between two reports of progress, in seconds."""


def train(
    datasets: Sequence[Path],
    run: Path,
    config: LearnConfig,
    *,
    policies: Path | None = None,
    follow: bool = False,
    resume: bool = False,
    rollback: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[LearnProgress], None] = lambda _: None,
) -> LearnReport:
    """Train TD3 from datasets and publish policies.

    Args:
        datasets: Directories to learn from.
        run: The run's own directory.
        config: Settings.
        policies: Where to publish; the run's own ``policies`` if None.
        follow: Learn while others collect: wait for data, and look for new ones.
        resume: Go on from the run's newest checkpoint.
        rollback: Go back to the checkpoint of so many updates and on from there, as
            `learn/keeping.py` says.
        should_stop: Asked often; once true, the run is saved, published and left.
        on_progress: Told where the run stands, at most ten times a second.

    Raises:
        ConfigError: The run's directory is taken, or a setting is impossible here.
        DatasetError: A dataset is missing or something else.
        NoSegmentsError: There is nothing to learn from, and nobody is followed.
        CheckpointError: The run's checkpoint cannot be used.
        SpecError: The datasets, or the checkpoint, hold different data.
        StorageError: The disk is full.
    """
    directory = policies or run / "policies"
    document = {
        "learn": dataclasses.asdict(config),
        "datasets": [str(path) for path in datasets],
        "policies": str(directory),
        "follow": follow,
    }
    prepare_run(run, document, resume=resume or rollback is not None)
    keep_freed_memory()
    with cpu_threads(config.threads):
        trainer = _Trainer(run, directory, config, should_stop, on_progress)
        return trainer.run(datasets, follow=follow, resume=resume, rollback=rollback)


class _Trainer:
    """The loop, with what it keeps count of."""

    def __init__(
        self,
        run: Path,
        policies: Path,
        config: LearnConfig,
        should_stop: Callable[[], bool],
        on_progress: Callable[[LearnProgress], None],
    ) -> None:
        self._run, self._policies, self._config = run, policies, config
        self._should_stop, self._on_progress = should_stop, on_progress
        self._session: Session | None = None
        self._source: Source | None = None
        self._started_s = time.monotonic()
        self._told_s = float("-inf")
        self._waited_s = 0.0

    def run(
        self, paths: Sequence[Path], *, follow: bool, resume: bool, rollback: int | None
    ) -> LearnReport:
        """Open everything, learn, and close everything."""
        datasets = open_datasets(
            paths, follow=follow, should_stop=self._should_stop, on_wait=self._tell
        )
        if not datasets:
            return self._report(halted=None, exact=None)
        with contextlib.ExitStack() as stack:
            session = Session(
                datasets[0].spec,
                self._run,
                self._policies,
                self._config,
                resume=resume,
                rollback=rollback,
            )
            stack.callback(session.close)
            self._session = session
            session.publish_first()
            source = self._open_source(session, datasets, paths, follow=follow, stack=stack)
            self._source = source
            exact = session.restore_sampler(source) if session.resumed_from else None
            halted = self._loop(session, source)
            session.finish(source, halted=halted is not None)
            return self._report(halted=halted, exact=exact)

    def _open_source(
        self,
        session: Session,
        datasets: Sequence[Dataset],
        paths: Sequence[Path],
        *,
        follow: bool,
        stack: contextlib.ExitStack,
    ) -> Source:
        config = self._config
        sampler = open_sampler(
            datasets,
            config.replay,
            seed=config.seed,
            scratch=scratch_directory(self._run),
            gathers=session.gathers,
            grows=follow,
            on_wait=self._tell,
        )
        stack.callback(sampler.close)
        self._told_s = float("-inf")  # said once, so it may not fall between two reports
        self._tell(str(sampler.mode))
        pace = FollowConfig(
            refresh_seconds=config.refresh_seconds,
            learning_starts=config.learning_starts,
            updates_per_step=config.updates_per_step,
        )
        return Source(sampler, paths, pace if follow else None)

    def _loop(self, session: Session, source: Source) -> str | None:
        """Update until there are enough; the reason if a guard said no."""
        try:
            while session.updates < self._config.updates and not self._should_stop():
                if source.ready(session.updates):
                    before = session.alerts
                    session.step(source)
                    if session.alerts is not before:
                        self._told_s = float("-inf")  # an alert may not fall between two reports
                    self._tell("")
                else:
                    before_s = time.monotonic()
                    source.wait(session.updates, self._tell)
                    waited_s = time.monotonic() - before_s
                    self._waited_s += waited_s
                    session.pace.leave_out(waited_s)
        except TrainingHalted as error:
            self._told_s = float("-inf")
            self._tell("")
            return str(error)
        return None

    def _tell(self, waiting: str) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < PROGRESS_INTERVAL_S:
            return
        self._told_s = now_s
        progress = LearnProgress(updates=0, target=self._config.updates, waiting=waiting)
        if self._session is not None:
            progress = self._session.describe(progress)
        if self._source is not None:
            progress = self._source.describe(progress)
        self._on_progress(progress)

    def _report(self, *, halted: str | None, exact: bool | None) -> LearnReport:
        session, source = self._session, self._source
        updates = 0 if session is None else session.updates
        pace = None if session is None else session.pace.updates_per_second
        return LearnReport(
            run=str(self._run),
            updates=updates,
            session_updates=0 if session is None else session.pace.done,
            updates_per_second=0.0 if pace is None else pace,
            policy_version=None if session is None else session.policy_version,
            policies=str(self._policies),
            halted=halted,
            stopped=halted is None and updates < self._config.updates,
            seconds=time.monotonic() - self._started_s,
            waited_s=self._waited_s,
            replay="" if source is None else str(source.sampler.mode),
            steps=0 if source is None else source.sampler.steps,
            skipped=0 if session is None else session.skipped,
            alerts={} if session is None else dict(session.watch.alerts.levels),
            rollbacks=0 if session is None else session.watch.rollbacks,
            resumed_exactly=exact,
            refused=() if source is None else source.sampler.refused,
            absent=() if source is None else source.absent,
        )
