"""Before a run: its directory with its settings, and the threads that it may use."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.learn.batch import Batch, Shifting, flatten_sequences, to_batch
from avtd3.learn.checkpoints import CheckpointManager, CheckpointMetadata, list_checkpoints
from avtd3.learn.config import LearnConfig
from avtd3.learn.cuda_graph import updater
from avtd3.learn.device import autocast_type, keep_freed_memory, pick_device
from avtd3.learn.device_cache import DeviceFrameCache, open_device_cache
from avtd3.learn.evaluation import HeldOutEvaluator
from avtd3.learn.guards.limits import Finding
from avtd3.learn.guards.monitor import GuardMonitor
from avtd3.learn.guards.rollback import go_back, keep_aside
from avtd3.learn.logging import MetricLogger, Throughput
from avtd3.learn.policy import PolicyStore
from avtd3.learn.report import LearnProgress, LearnReport
from avtd3.learn.source import FollowConfig, Source, open_datasets, open_sampler, scratch_directory
from avtd3.learn.td3 import Update, create_state
from avtd3.store import files
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, TrainingHalted
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import EpisodeSpec

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How batches are drawn."""

    replay: ReplayConfig
    """Single transitions or sequences, and their discount."""
    device: torch.device
    """Where the networks are."""
    dtype: torch.dtype
    """Floating type of the pixels."""
    shifting: Shifting | None
    """How images are shifted; None leaves them alone."""
    ring: DeviceFrameCache | None
    """Where the frames are already, if the sampler does not gather them."""
    pace: Throughput
    """Told how long the sampler took."""

    def __call__(self, sampler: Sampler) -> tuple[Batch, NDArray[np.int64] | None]:
        """A batch, and what names its transitions if draws are prioritised."""
        before_s = time.monotonic()
        if self.replay.sequence_length:
            sequences = sampler.sample_sequences()
            self.pace.sampled(before_s)
            gamma = self.replay.gamma
            return flatten_sequences(sequences, gamma, self.device, self.dtype, self.shifting), None
        transitions = sampler.sample()
        self.pace.sampled(before_s)
        stacks = None
        if self.ring is not None and transitions.frames is None:
            stacks = self.ring.stacks(sampler, transitions.frame_rows)
        batch = to_batch(transitions, self.device, self.dtype, self.shifting, stacks)
        return batch, transitions.index


class Session:
    """Networks, their optimisers, and where they are logged, published and saved."""

    def __init__(
        self,
        spec: EpisodeSpec,
        run: Path,
        policies: Path,
        config: LearnConfig,
        *,
        resume: bool,
        rollback: int | None = None,
    ) -> None:
        """Make fresh networks, or take those of the run's newest checkpoint.

        Args:
            spec: The data's spec.
            run: The run's directory, prepared by `prepare_run`.
            policies: Where policies are published.
            config: Settings.
            resume: Go on from the newest checkpoint, if there is one.
            rollback: Go back to the checkpoint of so many updates; later ones are set aside.

        Raises:
            CheckpointError: The checkpoint is torn, of other networks, or not there.
            SpecError: The checkpoint is of other data.
        """
        self.spec, self.config = spec, config
        self.policy_version: int | None = None
        self.pace = Throughput()
        self._run = run
        self._device = pick_device(config.device)
        self._autocast = autocast_type(config.precision, self._device)
        self._state = create_state(spec, config.network, config.td3, self._device, config.seed)
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        pad = config.image_shift
        ring = open_device_cache(spec.image, self._device, wanted=config.device_frames)
        self.gathers = ring is None  # else the frames are on the device
        self._draw = Draw(
            replay=config.replay,
            device=self._device,
            dtype=self._autocast or torch.float32,
            shifting=Shifting(pad=pad, generator=self._noise) if pad else None,
            ring=ring,
            pace=self.pace,
        )
        self._keeper = CheckpointManager(run, config)
        self._policies = PolicyStore(policies)
        features, delay = config.network.features if spec.image else 0, config.td3.policy_delay
        self.watch = GuardMonitor(run, config.guards, features=features, policy_delay=delay)
        self._saved_at = self._published_at = -1
        self._is_rolled_back = rollback is not None
        self.resumed_from = self._load(rollback) if resume or self._is_rolled_back else None
        self._update = self._updater()
        self._journal = MetricLogger(
            run / "events",
            features=features,
            first_step=self.updates + 1,
            gathered={} if self.resumed_from is None else self.resumed_from.gathered,
        )

    @property
    def updates(self) -> int:
        """Updates so far, those before a resume included."""
        return self._state.updates

    @property
    def skipped(self) -> int:
        """Updates left out because something was not finite."""
        return int(self._state.skipped.item())

    @property
    def alerts(self) -> tuple[str, ...]:
        """The newest alerts, in words; another object once there is a new one."""
        return self.watch.alerts.newest

    def describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in what is known of the learning."""
        shown = self._journal.newest
        return dataclasses.replace(
            progress,
            updates=self.updates,
            updates_per_second=shown.get("run/updates_per_second", self.pace.updates_per_second),
            critic_loss=shown.get("critic/loss"),
            actor_loss=shown.get("actor/loss"),
            q=shown.get("critic/q1_mean"),
            policy_version=self.policy_version,
            alerts=self.alerts,
        )

    def restore_sampler(self, source: Source) -> bool:
        """Let the draws go on where the checkpoint left them.

        Returns:
            Whether the sampler holds the very segments that it held then.
        """
        assert self.resumed_from is not None
        bookmark = self.resumed_from
        exact = source.sampler.restore(dict(bookmark.sampler), bookmark.arrays)
        if exact and bookmark.episodes_told:
            source.episodes.forget()
        return exact

    def step(self, source: Source) -> None:
        """One update, and whatever is due after it.

        Raises:
            TrainingHalted: A stop alert ended the run.
        """
        self.pace.begin()
        batch, index = self._draw(source.sampler)
        noise = torch.randn(batch.action.shape, generator=self._noise, device=self._device)
        if self.config.decay_from:
            self._state.scale_rates(self.config.rate_share(self.updates))
        self.watch.before(self._state)
        done = self._update(batch, noise)
        self.pace.done += 1
        self._journal.add(done)
        if index is not None:  # waits for the device
            td_error = done.critic.td_error().float().cpu().numpy()
            source.sampler.update_priorities(index, td_error)
        if self.updates % self.config.log_every == 0:
            self.log(source)
        self._guard(source, batch, done)
        if self.config.replay.held_out and self.updates % self.config.evaluate_every == 0:
            self.evaluate(source)
        if self.updates % self.config.publish_every == 0:
            self.publish()
        if self.config.saves_at(self.updates):
            self.save(source)

    def _updater(self) -> Callable[[Batch, Tensor], Update]:
        td3, graphs = self.config.td3, self.config.cuda_graphs
        return updater(self._state, td3, self._autocast, graphs=graphs)

    def log(self, source: Source) -> None:
        """Write a line of metrics."""
        scalars = self._state.rates() | source.episodes.scalars(self.policy_version)
        scalars |= self.pace.line() | {
            "critic/skipped": float(self.skipped),
            "run/replay_ratio": self.updates / max(source.steps_seen, 1),
            "run/steps": float(source.sampler.steps),
        }
        self._journal.line(self.updates, scalars)

    def _guard(self, source: Source, batch: Batch, done: Update) -> None:
        """Let the guards look at an update, and do what they ask for."""
        length = source.episodes.newest_length
        found = self.watch.after(self._state, done, batch, length)
        self._journal.write(self.updates, found.scalars)
        if found.stop is not None and self.config.guards.on_stop != "continue":
            self._stop(source, found.stop)

    def _stop(self, source: Source, finding: Finding) -> None:
        """Keep the state aside; then go back to the last good checkpoint, or end the run."""
        guards, good = self.config.guards, self.watch.last_good
        path = keep_aside(self._run, self._state, self._noise, self._bookmark(source))
        reason = f"{finding.name} at update {finding.update}: {finding.reason}; {finding.mend}; "
        reason += f"the state is kept in {path}"
        back = f"the last good checkpoint is of update {good}" if good is not None else ""
        if guards.on_stop == "rollback":
            back = f"it went back {self.watch.rollbacks} times already (guards.max_rollbacks)"
            if self.watch.rollbacks < guards.max_rollbacks:
                if good is not None and (bookmark := self._go_back(good)) is not None:
                    self._go_on_from(source, bookmark, reason)
                    return
                back = "there is no good checkpoint to go back to"
        raise TrainingHalted("; ".join(filter(None, (reason, back))))

    def _go_back(self, updates: int) -> CheckpointMetadata | None:
        bookmark = go_back(self._run, updates, self._state, self._noise)
        if bookmark is not None:
            self._keeper.restore(bookmark)
        return bookmark

    def _go_on_from(self, source: Source, bookmark: CheckpointMetadata, reason: str) -> None:
        self.watch.rolled_back(bookmark.guards, self._state)
        self._update = self._updater()
        text = f"went back to update {self.updates} after {reason}"
        number, most = float(self.watch.rollbacks), float(self.config.guards.max_rollbacks)
        self.watch.alerts.note("rollback", self.updates, text, value=number, limit=most)
        self._journal.go_back(self.updates + 1)
        self._saved_at = self._published_at = -1
        self.save(source)  # the next time it goes back to a checkpoint that knows of this one
        self.publish()  # collectors may drive with one of those that went wrong

    def evaluate(self, source: Source) -> None:
        """Look at held-out episodes, and write what they say into the log."""
        judge = HeldOutEvaluator(
            spec=self.spec,
            config=self.config.td3,
            gamma=self.config.replay.gamma,
            device=self._device,
            autocast=self._autocast,
        )
        episodes = source.sampler.held_out(self.config.evaluate_episodes)
        self._journal.write(self.updates, judge(self._state, episodes))

    def publish(self) -> None:
        """Publish the actor, unless it was just published."""
        if self._published_at != self.updates:
            self.policy_version = self._policies.publish(
                self._state.actor,
                self.spec,
                self.config.network,
                updates=self.updates,
                action_limit=self.watch.action_limit.share,
            )
            self._published_at = self.updates
            if self.config.keep_policies:
                self._policies.prune(self.config.keep_policies)

    def publish_first(self) -> None:
        """Publish the actor where collectors wait for one, or drive with one it went back from."""
        self.policy_version = self._policies.newest_version()
        if self.policy_version is None or self._is_rolled_back:
            self.publish()

    def save(self, source: Source) -> None:
        """Write a checkpoint, unless this very state was just written."""
        if self._saved_at == self.updates:
            return
        self.watch.mark(self.updates)
        self._journal.flush()  # a run that goes on from here has all lines before
        self._keeper.save(
            self._state,
            self._noise,
            self._bookmark(source),
            newest=self._journal.newest,
            good=self.watch.last_good,
        )
        self._saved_at = self.updates

    def _bookmark(self, source: Source) -> CheckpointMetadata:
        earlier_s = 0.0 if self.resumed_from is None else self.resumed_from.seconds
        return CheckpointMetadata(
            updates=self.updates,
            spec_digest=self.spec.digest,
            sampler=source.sampler.state(),
            arrays=source.sampler.arrays(),
            config=dataclasses.asdict(self.config),
            seconds=earlier_s + self.pace.seconds,
            guards=self.watch.state(),
            gathered=self._journal.gathered(),
            episodes_told=source.episodes.are_told,
        )

    def finish(self, source: Source, *, halted: bool) -> None:
        """Say what was only counted; save and publish, unless a guard ended the run."""
        self.watch.alerts.flush(self.updates)
        if not halted:
            self.save(source)
            self.publish()

    def close(self) -> None:
        """Close the event file."""
        self._journal.close()

    def _load(self, rollback: int | None) -> CheckpointMetadata | None:
        path = self._keeper.find(rollback)
        if path is None:
            return None
        bookmark = self._keeper.load(path, self._state, self._noise, self.spec)
        self.watch.resumed(bookmark.guards, self._state)
        if rollback is not None and (aside := self._keeper.set_aside(rollback)) is not None:
            text = f"went back to update {rollback} as asked; later checkpoints are in {aside}"
            self.watch.alerts.note("rollback", rollback, text, value=0.0, limit=0.0)
        self._saved_at = self.updates
        return bookmark


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
            `learn/checkpoints.py` says.
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
