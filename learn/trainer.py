"""`train`, and the `Trainer` behind it: the lifecycle of a training process.

A run directory contains::

    RUN/config.json      resolved settings of the newest process
    RUN/events/          TensorBoard event files
    RUN/run.html         page of the run; `avtd3 learn` and `RunPageCallback` write it
    RUN/alerts.jsonl     alerts of the guards; created at the first alert
    RUN/checkpoints/     checkpoints, see `avtd3.learn.checkpoints`
    RUN/emergency/       states at which a guard stopped the run
    RUN/rolled-back/     checkpoints after those to which the run was rolled back
    RUN/policies/        published policies, unless `policies` names another directory
    RUN/mirror/          copies of datasets that are URLs
    RUN/scratch/         the replay cache, if it cannot be beside RUN

A run can be killed at any moment, and continues from its newest checkpoint. Sampling takes 1 ms
against 400 ms of an update from images on a CPU, and overlaps with it on a GPU, so no thread
samples ahead, and each checkpoint has the exact state of the sampler.
"""

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from avtd3.learn.batch import Batch, BatchLoader, RandomShift, open_device_caches
from avtd3.learn.callbacks import CallbackList, ProgressCallback, TrainCallback
from avtd3.learn.checkpoints import (
    CHECKPOINTS,
    CheckpointManager,
    CheckpointMetadata,
    list_checkpoints,
    load_state,
    state_bytes,
)
from avtd3.learn.config import LearnConfig
from avtd3.learn.device import (
    autocast_type,
    gather,
    keep_freed_memory,
    make_updater,
    memory_errors,
    pick_device,
)
from avtd3.learn.evaluation import HeldOutEvaluator
from avtd3.learn.guards.alerts import Alert
from avtd3.learn.guards.monitor import GuardMonitor
from avtd3.learn.logging import MetricLogger, Throughput
from avtd3.learn.networks import ObservationBatch, actor_spec, feature_size
from avtd3.learn.policy import find_fault, sample_observations
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.ranks import ALONE, CHECK_EVERY, Order, Ranks, digest, hash_of, open_ranks
from avtd3.learn.replay_source import (
    ReplaySource,
    RunCopies,
    check_pace,
    open_datasets,
    scratch_directory,
)
from avtd3.learn.report import LearnProgress, LearnReport
from avtd3.learn.run_settings import (
    RANKS,
    RUN_ID,
    check_places,
    find_changes,
    read_settings,
    resolve_places,
    stored_config,
    write_settings,
)
from avtd3.learn.saliency import batch_pictures
from avtd3.learn.td3 import Update, create_state
from avtd3.learn.threads import AUTO, ThreadTuner
from avtd3.store import files
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, NoSegmentsError, RankLostError
from avtd3.store.files import show_path
from avtd3.store.locks import ExclusiveLock
from avtd3.store.spec import EpisodeSpec

_STATISTICS_BATCHES = 100
"""Batches from which the statistics of the vector are measured."""


def train(
    config: LearnConfig | None = None,
    *,
    datasets: Path | str | Sequence[Path | str],
    run: Path | str,
    policies: Path | str | None = None,
    follow: bool | None = None,
    resume: bool = False,
    rollback: int | None = None,
    callbacks: Sequence[TrainCallback] = (),
) -> LearnReport:
    """Train TD3 from datasets and publish policies.

    If collectors run on the same machine, set the environment variable ``GOMP_SPINCOUNT=5000``
    before importing torch, as ``avtd3 learn`` does; see `avtd3.learn.threads`.

    Under ``torchrun``, call this function with the same arguments in all processes: they train one
    run together, see `avtd3.learn.ranks`. Only rank 0 calls the callbacks, but for `should_stop`.

    Args:
        config: Settings; None for the defaults, or for those of the run that is resumed.
        datasets: One or more datasets, all of one spec: directories, or URLs of object stores. The
            newest segments of a URL are copied to ``RUN/mirror`` (`LearnConfig.mirror_bytes`).
        run: The run's own directory; created if it does not exist.
        policies: Directory for the published policies, or a URL, to which the policies of
            ``RUN/policies`` are copied; None for ``RUN/policies``, or for that of the run that is
            resumed.
        follow: Learn while other processes append to the datasets: wait for data, and look for new
            segments. None for no, or for what the run that is resumed did.
        resume: Continue from the run's newest checkpoint. Settings that differ from those of the
            run are listed in the report and in ``RUN/config.json``.
        rollback: Roll back to the checkpoint of this number of updates and continue from it.
        callbacks: Objects that follow the run, and may stop it.

    Returns:
        The result. `LearnReport.halted` is not None if a guard ended the run.

    Example:
        >>> import numpy as np
        >>> from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> with SegmentWriter(Dataset.create("data", spec)) as writer:
        ...     writer.begin(Observation(vector=np.zeros(1, np.float32)))
        ...     for t in range(1, 9):
        ...         after = Observation(vector=np.full(1, 0.1 * t, np.float32))
        ...         action = np.zeros(1, np.float32)
        ...         _ = writer.step(action, 1.0, after, terminated=t == 8)
        >>> report = train(LearnConfig(updates=4), datasets="data", run="run")
        >>> report.updates, report.policy_version
        (4, 1)

    Raises:
        ConfigError: If the run exists and neither `resume` nor `rollback` is set, if there is no
            run to resume or its networks would change, if no dataset is given, or if a setting is
            not possible on this machine.
        InUseError: If another process trains this run, or publishes into the same directory.
        DatasetError: If a path is not a dataset, or is missing and `follow` is False.
        NoSegmentsError: If the datasets are empty and `follow` is False.
        UnreadableError: If nothing can be read now: neither the datasets nor the checkpoint.
        CheckpointError: If the checkpoint cannot be used.
        RankLostError: If another rank is gone; rank 0 has saved a checkpoint.
        SpecError: If the datasets, or the checkpoint, have different specs.
        StorageError: If the disk is full or a directory cannot be written.
        MemoryError: If the networks or a batch do not fit into the memory.
    """
    paths = [Path(path) for path in ([datasets] if isinstance(datasets, str | Path) else datasets)]
    run, resumes = Path(run), resume or rollback is not None
    with open_ranks() as ranks:
        before = read_settings(run) if resumes else {}
        if config is None:
            config = stored_config(run) if resumes else LearnConfig()
        changes = find_changes(run, before, config, rollback, ranks.size) if resumes else []
        policies, follow = resolve_places(run, before, policies, follow)
        if follow:
            check_pace(config)
        if not paths:
            raise ConfigError("train needs at least one dataset, found none")
        document = {
            "learn": dataclasses.asdict(config),
            "datasets": [show_path(path) for path in paths],
            "policies": show_path(policies),
            "follow": follow,
        }
        run_id = str(before.get(RUN_ID) or ranks.share(secrets.token_hex(8)))
        document[RUN_ID] = run_id
        copies = RunCopies(run, paths, policies, config, run_id)
        paths, directory = copies.datasets, copies.policies
        check_places(run, directory, paths)
        if recorded := [*before.get("changes", []), *map(dataclasses.asdict, changes)]:
            document["changes"] = recorded
        if ranks.size > 1:
            document[RANKS] = ranks.size
            check_ranks(config, document, ranks)
        keep_freed_memory()
        notify = CallbackList(
            callbacks if ranks.is_first else [_only_stops(callbacks)], target=config.updates
        )
        for change in changes:
            notify.report(str(change), now=True)
        started_s = time.monotonic()
        with (
            open_run(run, directory, document, resume=resumes, ranks=ranks),
            cpu_threads(config.threads, ranks),
            memory_errors(
                f"networks of {config.network} and batches of {config.replay.batch_size}; lower "
                "learn.network.hidden, learn.network.features or learn.replay.batch_size"
            ),
            copies.kept(
                ranks, follow=follow, should_stop=notify.should_stop, on_wait=notify.report
            ) as are_ready,
        ):
            report = LearnReport(run=str(run), policies=str(directory), stopped=True)
            opened = are_ready and open_datasets(
                ranks, paths, follow=follow, should_stop=notify.should_stop, on_wait=notify.report
            )
            if opened:
                spec = config.replay.view(opened[0].spec)
                with Trainer(spec, config, run, directory, notify, ranks, run_id) as trainer:
                    trainer.restore(resume=resume, rollback=rollback)
                    trainer.open_source(opened, follow=follow, copies=copies)
                    trainer.loop()
                    trainer.finish()
                    report = trainer.report()
        report = dataclasses.replace(
            report,
            policies=show_path(policies),
            seconds=time.monotonic() - started_s,
            changes=tuple(map(str, changes)),
            unsent=copies.unsent,
        )
        notify.call(lambda callback: callback.on_end(report))
        return report


def check_ranks(config: LearnConfig, document: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise `ConfigError` if several ranks cannot train as configured, or have other settings."""
    expected = {
        "network.conv_norm": (config.network.conv_norm != "batch", "none or layer"),
        "replay.fill": (config.replay.fill == "whole", "whole"),
    }
    for name, (is_possible, possible) in expected.items():
        if not is_possible:
            raise ConfigError(
                f"learn.{name} needs all samples in one process, expected {possible} with "
                f"{ranks.size} ranks; change it, or train without torchrun"
            )
    found = ranks.gather(hash_of(document))
    if found != found[:1] * ranks.size:
        raise ConfigError(
            f"rank {ranks.rank}: the ranks have different settings, expected the same; give all of "
            "them the same command and files"
        )


def _only_stops(callbacks: Sequence[TrainCallback]) -> TrainCallback:
    """Return a callback that passes on only the wish to stop; rank 0 reports everything else."""
    return ProgressCallback(should_stop=lambda: any(each.should_stop() for each in callbacks))


@contextlib.contextmanager
def open_run(
    run: Path,
    policies: Path,
    document: Mapping[str, Any],
    *,
    resume: bool,
    ranks: Ranks = ALONE,
) -> Iterator[None]:
    """Create and lock a run's directory and its policies', and write the settings of the run.

    Only rank 0 does; the others wait for it.
    """
    if not ranks.is_first:
        ranks.meet()
        yield
        return
    if run.exists() and not run.is_dir():
        raise ConfigError(f"run {run} is a file, expected a directory; choose another path")
    purpose = f"avtd3 learn --run {run}"
    with contextlib.ExitStack() as locks:
        _lock(run, purpose, locks)
        if not resume and list_checkpoints(run / CHECKPOINTS):
            raise ConfigError(
                f"run {run} exists already; resume it (--resume), or choose another directory"
            )
        if policies.resolve() != run.resolve():
            _lock(policies, purpose, locks)
        write_settings(run, document)
        ranks.meet()
        yield


def _lock(directory: Path, purpose: str, locks: contextlib.ExitStack) -> None:
    with files.storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    locks.enter_context(ExclusiveLock(directory, purpose=purpose))


@contextlib.contextmanager
def cpu_threads(count: int | str, ranks: Ranks = ALONE) -> Iterator[None]:
    """Set the number of torch's CPU threads within a ``with`` block; 0 and ``auto`` keep it.

    All ranks use that of rank 0: other numbers of threads round sums differently.
    """
    before = torch.get_num_threads()
    if ranks.size > 1:
        count = ranks.share(before if count in (0, AUTO) else count)
    if count and count != AUTO:
        torch.set_num_threads(int(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainer:
    """One process lifetime of a training run. `train` calls its methods in order."""

    def __init__(
        self,
        spec: EpisodeSpec,
        config: LearnConfig,
        run: Path,
        policies: Path,
        notify: CallbackList,
        ranks: Ranks = ALONE,
        run_id: str = "",
    ) -> None:
        self._spec, self._config, self._run, self._notify = spec, config, run, notify
        self._ranks = ranks
        self._must_share = False
        self._device = pick_device(config.device)
        self._autocast = autocast_type(config.precision, self._device)
        self._state = create_state(spec, config.network, config.td3, self._device, config.seed)
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        self._update = self._make_update()
        self._loader = self._make_loader()
        self._checkpoints = CheckpointManager(run, config, spec)
        self._policies = PolicyStore(policies, run=run_id)
        features = feature_size(spec, config.network)
        self._guards = GuardMonitor(
            run,
            config.guards,
            features=features,
            policy_delay=config.td3.policy_delay,
            on_alert=self._on_alert,
        )
        self._logger = MetricLogger(
            run / "events",
            features=features,
            settings=dataclasses.asdict(config),
            on_write=self._on_metrics,
        )
        gamma, stride = config.replay.gamma, config.replay.stack_stride
        evaluator = HeldOutEvaluator(spec, config.td3, gamma, self._device, self._autocast, stride)
        self._evaluator = evaluator
        self._throughput = Throughput()
        self._tuner = self._make_tuner()
        self._source: ReplaySource | None = None
        self._restored: CheckpointMetadata | None = None
        self._is_exact: bool | None = None
        self._observed: ObservationBatch | None = None
        self._policy_version: int | None = None
        self._saved_at = self._published_at = -1
        self._waited_s = 0.0
        self._halted: str | None = None
        notify.add_source(self._describe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def updates(self) -> int:
        """Updates so far, including those before a resume."""
        return self._state.updates

    @property
    def source(self) -> ReplaySource:
        """The data; `open_source` sets it."""
        assert self._source is not None, "call open_source first"
        return self._source

    def restore(self, *, resume: bool = False, rollback: int | None = None) -> None:
        """Continue from a checkpoint, open the event file, and publish the first policy."""
        if self._ranks.is_first:
            self._restore(resume=resume, rollback=rollback)
        self._share_state()

    def _restore(self, *, resume: bool, rollback: int | None) -> None:
        aside = None
        if rollback is not None:
            self._restored, aside = self._checkpoints.roll_back(rollback, self._state, self._noise)
        elif resume:
            self._restored = self._checkpoints.restore_newest(self._state, self._noise)
        restored = self._restored
        # Without a checkpoint, too: an earlier process may have been killed before its first one.
        self._guards.resume({} if restored is None else restored.guards, self._state)
        if restored is not None:
            self._update = self._make_update()
            self._saved_at = self.updates
        if aside is not None:
            text = f"rolled back to update {rollback} as requested; later checkpoints are in "
            self._guards.alerts.note("rollback", self.updates, f"{text}{aside}", value=0.0, limit=0)
        self._logger.start(self.updates + 1, {} if restored is None else restored.metrics)
        self._policy_version = self._policies.repair(actor_spec(self._spec, self._config.network))
        if self._policy_version is None or rollback is not None:
            self._publish()  # collectors wait for a policy, or use one that was rolled back

    def open_source(
        self,
        datasets: Sequence[Dataset],
        *,
        follow: bool = False,
        copies: RunCopies | None = None,
    ) -> None:
        """Open the datasets for sampling, and continue where the checkpoint was saved."""
        self._source = ReplaySource(
            datasets,
            self._config,
            scratch=scratch_directory(self._run),
            follow=follow,
            gathers=self._loader.gathers_on_host,
            on_wait=self._notify.report,
            copies=copies,
            ranks=self._ranks,
        )
        self._notify.report(str(self._source.sampler.mode), now=True)
        self._notify.add_source(self._source.describe)
        if (restored := self._restored) is not None:
            self._is_exact = self._source.restore(
                restored.sampler, restored.arrays, episodes_logged=restored.episodes_logged
            )
        if self._ranks.size > 1:
            self._ranks.meet()
            self._source.align()

    def loop(self) -> None:
        """Update until the run is complete, a callback stops it or a guard halts it.

        Raises:
            RankLostError: If another rank is gone; rank 0 has then saved a checkpoint.
        """
        progress = self._notify.progress()
        self._notify.call(lambda callback: callback.on_start(progress))
        others = {
            Order.WAIT: self._wait,
            Order.REFRESH: self._refresh,
            Order.LOAD: self._share_state,
        }
        try:
            while (order := self._agree()) is not Order.END:
                others.get(order, self._update_once)()
        except RankLostError as error:
            if not self._ranks.is_first:
                raise
            raise self._saved_after(error) from error

    def _agree(self) -> Order:
        """Return what all ranks do next."""
        order = self._next_order()
        if self._ranks.size == 1:
            return order
        is_check = self.updates % CHECK_EVERY == 0
        networks = (
            p for network, _ in self._state.networks().values() for p in network.parameters()
        )
        weights = digest(networks) if is_check else 0
        segments = hash_of(self.source.sampler.digest)
        order, (are_equal, is_aligned) = self._ranks.agree(order, weights, segments)
        if not are_equal:
            raise RankLostError(
                f"rank {self._ranks.rank}: the weights of the ranks differ at update "
                f"{self.updates}, expected the same; use machines of one kind, and continue with "
                f"--rollback from a checkpoint of update {self.updates - CHECK_EVERY} or before"
            )
        return order if is_aligned else max(order, Order.REFRESH)

    def _next_order(self) -> Order:
        """Return what this rank wants to do next; ranks other than the first only end or update."""
        is_over = self._halted is not None or self.updates >= self._config.updates
        if is_over or self._notify.should_stop():
            return Order.END
        if not self._ranks.is_first:
            return Order.UPDATE
        if self._must_share:
            return Order.LOAD
        if self._ranks.size > 1 and self.source.is_due:
            return Order.REFRESH
        return Order.UPDATE if self.source.ready(self.updates) else Order.WAIT

    def _refresh(self) -> None:
        self.source.refresh()
        self.source.align()

    def _share_state(self) -> None:
        """Let all ranks have the networks of rank 0."""
        self._must_share = False
        if self._ranks.size == 1:
            return
        guards, updates = self._ranks.share([self._guards.state(), self.updates])
        data = state_bytes(self._state, self._noise, {}) if self._ranks.is_first else b""
        data = self._ranks.share_bytes(data)
        if not self._ranks.is_first:
            load_state(data, self._state, self._noise, self._run)
            self._state.updates = updates
            self._guards.restore(guards, self._state)
            self._update = self._make_update()

    def _saved_after(self, error: RankLostError) -> RankLostError:
        """Save a checkpoint after a rank was lost, and return the error that says so.

        If that was during an update, the update counts, but may not have changed the networks.
        """
        self._save()
        return RankLostError(
            f"{error}; the run is saved at update {self.updates}: continue with --resume, with any "
            "number of ranks"
        )

    def _update_once(self) -> None:
        try:
            self.step()
        except NoSegmentsError as error:
            self.source.lost_all(error)
            return
        self._notify.call(lambda callback: callback.on_update(self.updates))
        self._notify.report(now=self._halted is not None)

    def step(self) -> None:
        """Do one update, and everything that is due after it on rank 0."""
        before_s = time.perf_counter()
        batch, update = self._learn()
        if self._tuner is not None:
            self._tuner.add(time.perf_counter() - before_s)
        if self._ranks.is_first:
            self._follow_up(batch, update)

    def _follow_up(self, batch: Batch, update: Update) -> None:
        if self.updates % self._config.log_every == 0:
            self._log()
        self._check_guards(batch, update)
        if self._halted is not None:
            return
        if self._config.replay.held_out and self.updates % self._config.evaluate_every == 0:
            episodes = self.source.sampler.held_out(self._config.evaluate_episodes)
            self._logger.write(self.updates, self._evaluator(self._state, episodes))
        if self.updates % self._config.publish_every == 0:
            self._publish()
        if self._config.saves_at(self.updates):
            self._save()

    def finish(self) -> None:
        """Write the remaining alerts; save and publish, unless a guard ended the run; report."""
        if not self._ranks.is_first:
            return
        self._guards.alerts.flush(self.updates)
        if self._halted is None:
            self._save()
            self._publish()
        self._notify.report(now=True)

    def close(self) -> None:
        """Close the event file and the sampler; safe to call twice."""
        self._logger.close()
        if self._source is not None:
            self._source.close()

    def report(self) -> LearnReport:
        """Return the result so far."""
        sampler = self.source.sampler
        return LearnReport(
            run=str(self._run),
            policies=str(self._policies.path),
            updates=self.updates,
            session_updates=self._throughput.updates,
            updates_per_second=self._throughput.updates_per_second or 0.0,
            policy_version=self._policy_version,
            halted=self._halted,
            stopped=self._halted is None and self.updates < self._config.updates,
            seconds=self._throughput.seconds,
            waited_s=self._waited_s,
            replay=str(sampler.mode),
            steps=sampler.steps,
            skipped=int(self._state.skipped.item()),
            alerts=dict(self._guards.alerts.levels),
            rollbacks=self._guards.rollbacks,
            resumed_exactly=self._is_exact,
            refused=sampler.refused,
            absent=self.source.absent,
        )

    def _make_update(self) -> Callable[[Batch, Tensor], Update]:
        """Return the update function, for the state as it is after loading a checkpoint."""
        config = self._config
        return make_updater(
            self._state,
            config.td3,
            self._autocast,
            algorithm=config.algorithm,
            graphs=config.cuda_graphs,
            ranks=self._ranks,
        )

    def _make_tuner(self) -> ThreadTuner | None:
        """Return what chooses the number of CPU threads, if anything does."""
        is_free = self._config.threads == AUTO and self._device.type == "cpu"
        is_free &= self._ranks.size == 1  # all ranks must round in the same way
        if not is_free or torch.get_num_threads() == 1:
            return None
        return ThreadTuner(group=self._config.td3.policy_delay)

    def _make_loader(self) -> BatchLoader:
        config, pad = self._config, self._config.image_shift
        images, is_on = self._spec.images, config.device_frames
        return BatchLoader(
            config.replay,
            self._device,
            self._autocast or torch.float32,
            shift=RandomShift(pad=pad, generator=self._noise, ranks=self._ranks) if pad else None,
            device_caches=open_device_caches(images, self._device, enabled=is_on),
        )

    def _wait(self) -> None:
        if not self._ranks.is_first:
            return  # wait for the next order
        before_s = time.monotonic()
        if self.source.is_stalled:
            self._publish()  # a collector may wait for these updates before it collects more
        self.source.wait(self.updates, self._notify.report)
        waited_s = time.monotonic() - before_s
        self._waited_s += waited_s
        self._throughput.exclude(waited_s)

    def _learn(self) -> tuple[Batch, Update]:
        """Sample a batch and do one update."""
        self._throughput.begin_update()
        self._observed = None  # frees its memory for the next batch
        if self.updates == 0 and self._state.actor.vector_mean is not None:
            self._state.set_vector_statistics(self._sample_vectors())
        batch, index = self._loader.load(self.source.sampler)
        self._observed = batch.observation
        size, count = batch.action.shape
        whole = (self._ranks.size * size, count)
        noise = self._ranks.own(torch.randn(whole, generator=self._noise, device=self._device))
        if self._config.decay_from:
            self._state.scale_rates(self._config.rate_share(self.updates))
        if self._ranks.is_first:
            self._guards.before(self._state)
        batch, update = gather(self._ranks, batch, self._update(batch, noise))
        self._throughput.updates += 1
        if self._ranks.is_first:
            self._logger.add(update)
        if index is not None:  # waits for the device
            td_error = update.critic.td_error().float().cpu().numpy()
            self.source.sampler.update_priorities(index, td_error)
        return batch, update

    def _sample_vectors(self) -> Tensor:
        """Return the vectors (N, V) of `_STATISTICS_BATCHES` batches."""
        found = []
        for _ in range(_STATISTICS_BATCHES):
            vector = self._loader.load(self.source.sampler)[0].observation.vector
            assert vector is not None
            found.append(vector)
        return self._ranks.whole([torch.cat(found)])[0]

    def _log(self) -> None:
        source = self.source
        scalars = self._state.rates() | source.episodes.read(self._policy_version)
        scalars |= self._throughput.scalars(self._loader.sampling_s) | {
            "critic/skipped": float(self._state.skipped.item()),
            "run/replay_ratio": self.updates / max(source.steps_seen, 1),
            "run/steps": float(source.sampler.steps),
            "run/threads": float(torch.get_num_threads()),
        }
        self._logger.write(self.updates, self._logger.read_updates() | scalars)

    def _check_guards(self, batch: Batch, update: Update) -> None:
        length = self.source.episodes.newest_length
        before = [rate.share for rate in self._guards.rates.values()]
        scalars, stop = self._guards.after(self._state, update, batch, length)
        after = [rate.share for rate in self._guards.rates.values()]
        self._must_share |= before != after
        self._logger.write(self.updates, scalars)
        if stop is not None and self._config.guards.on_stop != "continue":
            self._stop(stop)

    def _stop(self, alert: Alert) -> None:
        """Save the state in ``RUN/emergency``; then roll back, or halt the run."""
        guards, good = self._config.guards, self._guards.last_good
        path = self._checkpoints.save_emergency(self._state, self._noise, self._metadata())
        reason = f"{alert.name} at update {alert.update}: {alert.reason}; {alert.fix}; "
        reason += f"the state is saved in {path}"
        if guards.on_stop == "rollback":
            if self._guards.rollbacks >= guards.max_rollbacks:
                count = self._guards.rollbacks
                why = f"the run was rolled back {count} times already (guards.max_rollbacks)"
            elif good is None or good not in self._checkpoints:
                why = "there is no good checkpoint to roll back to"
            else:
                self._roll_back(good, reason)
                return
        else:
            why = "" if good is None else f"the last good checkpoint is of update {good}"
        self._halted = "; ".join(filter(None, (reason, why)))

    def _roll_back(self, good: int, reason: str) -> None:
        """Continue from the last good checkpoint, with other samples and noise.

        With the same ones, the run would fail in the same way.
        """
        metadata, aside = self._checkpoints.roll_back(good, self._state, None)
        self._guards.roll_back(metadata.guards, self._state)
        self._must_share = True
        self._update = self._make_update()
        text = f"rolled back to update {good} after {reason}"
        text += "" if aside is None else f"; later checkpoints are in {aside}"
        count, most = float(self._guards.rollbacks), float(self._config.guards.max_rollbacks)
        self._guards.alerts.note("rollback", good, text, value=count, limit=most)
        self._logger.start(self.updates + 1, {})
        self._saved_at = self._published_at = -1
        self._save()  # the next rollback to this checkpoint takes this one into account
        self._publish()  # collectors may use a policy that was rolled back

    def _publish(self) -> None:
        """Publish the actor, unless it is published already, or would not drive."""
        if self._published_at == self.updates:
            return
        self._published_at = self.updates
        observed = self._observed or sample_observations(self._spec, self._device)
        if fault := find_fault(self._state.actor, observed):
            self._guards.alerts.note(
                "not_published",
                self.updates,
                f"the actor was not published: {fault}; collectors keep the previous policy",
                fix="see the other alerts, and lower the actor's learning rates",
            )
            return
        version = self._policies.publish(
            self._state.actor,
            self._spec,
            self._config.network,
            updates=self.updates,
            action_limit=self._guards.action_limit,
            stack_stride=self._config.replay.stack_stride,
        )
        self._policy_version = version
        if self._config.keep_policies:
            self._policies.prune(self._config.keep_policies)
        path = self._policies.path_of(version)
        self._notify.call(lambda callback: callback.on_publish(path))

    def _save(self) -> None:
        """Save a checkpoint, unless this state is saved already."""
        if self._saved_at == self.updates:
            return
        self._guards.mark_checkpoint(self.updates)
        if self._spec.images and self._observed is not None:
            pictures = batch_pictures(self._state.actor, self._observed, self._spec.images)
            self._logger.write_pictures(self.updates, pictures)
        self._logger.flush()  # a run that resumes from here must have all earlier lines
        path = self._checkpoints.save(
            self._state,
            self._noise,
            self._metadata(),
            newest=self._logger.newest,
            good=self._guards.last_good,
        )
        self._saved_at = self.updates
        self._notify.call(lambda callback: callback.on_checkpoint(path))

    def _metadata(self) -> CheckpointMetadata:
        earlier_s = 0.0 if self._restored is None else self._restored.seconds
        sampler = self.source.sampler
        return CheckpointMetadata(
            updates=self.updates,
            spec_digest=self._spec.digest,
            sampler=sampler.state(),
            arrays=sampler.arrays(),
            config=dataclasses.asdict(self._config),
            seconds=earlier_s + self._throughput.seconds,
            guards=self._guards.state(),
            metrics=self._logger.state(),
            episodes_logged=self.source.episodes.are_logged,
        )

    def _describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in the fields of a progress report that depend on the updates."""
        newest, speed = self._logger.newest, self._throughput.updates_per_second
        return dataclasses.replace(
            progress,
            updates=self.updates,
            updates_per_second=newest.get("run/updates_per_second", speed),
            critic_loss=newest.get("critic/loss"),
            actor_loss=newest.get("actor/loss"),
            q=newest.get("critic/q1_mean"),
            policy_version=self._policy_version,
            alerts=self._guards.alerts.newest,
        )

    def _on_alert(self, alert: Alert) -> None:
        self._notify.report_soon()
        self._notify.call(lambda callback: callback.on_alert(alert))

    def _on_metrics(self, step: int, scalars: Mapping[str, float]) -> None:
        self._notify.call(lambda callback: callback.on_metrics(step, scalars))
