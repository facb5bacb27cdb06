"""`collect`: drive episodes of a plan and write them into a dataset."""

import contextlib
import dataclasses
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.environment import FAULT_REASON, POLICY_REASON, Environment
from avtd3.collect.mixture import DriverPool, DriverSpec, Mixture
from avtd3.collect.plan import (
    GROUP,
    MAX_SEED,
    Amount,
    Share,
    StoredPlan,
    digest,
    episode_generator,
    held_episodes,
    lock_plan,
    lock_share,
    stored_plan,
    training_seed,
)
from avtd3.collect.recovery import Recovery
from avtd3.collect.reports import CollectProgress, CollectReport, Tally
from avtd3.collect.rollout import MAX_EPISODE_STEPS, Rollout
from avtd3.collect.scores import total_reward
from avtd3.collect.workers import run_jobs
from avtd3.collect.worlds import EnvironmentConfig, WorldFactory, open_environment, open_world
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    CheckpointError,
    ConfigError,
    RoadError,
    StorageError,
    WorldError,
    WorldLost,
    check_integers,
)
from avtd3.store.events import Event
from avtd3.store.files import remote_url, show_path
from avtd3.store.remote.background import (
    Background,
    PolicyPull,
    Spool,
    SpoolSize,
    spool_path,
)
from avtd3.store.remote.client import check_reachable, open_place
from avtd3.store.render.text import plural
from avtd3.store.status import LearnerWatch
from avtd3.store.step import STOP_REASON, Step
from avtd3.store.world_record import WorldRecord
from avtd3.store.writer import PublishedSegment, SegmentWriter, WriterConfig

_Record: TypeAlias = tuple[tuple[Event, ...], WorldRecord | None]
_REPORT_PERIOD_S = 0.2
POLICY_PERIOD_S = 0.05  # seconds between two polls for a new policy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectAheadConfig:
    """How far a collection may run ahead of the learner that it collects for.

    Either process may be the faster one. The learner limits itself by ``learn.updates_per_step``,
    the collector by `max_lead`: it starts no episode while the newest policy is further behind.
    """

    random_steps: int = 0
    """Steps of the plan that are driven at random first, whatever the mixture says; whole
    episodes, so a few more (Fujimoto et al. 2018 use 1 000 or 10 000, the authors' code 25 000).
    With several workers, which episodes these are depends on their number."""
    max_lead: int | None = None
    """Steps, apart from the random ones, by which the data may be ahead of the newest policy's
    updates when a policy starts an episode; None never waits. Together with `random_steps`, at
    least ``learn.learning_starts``, otherwise collector and learner wait for each other; and at
    least ``learn.publish_every`` / ``learn.updates_per_step``, otherwise they often pause. Both
    count collected steps, whether or not the learner samples them."""
    max_unseen: int | None = None
    """Published steps of each worker that a running learner may not have seen yet when an episode
    starts, for example because its link is slow; None never waits. Without a learner whose
    heartbeat is fresh (see `avtd3.store.status`), the collection continues."""
    updates_per_step: float = 1.0
    """Updates that the learner does per step (``learn.updates_per_step``)."""
    updates_before: int = 0
    """Updates that the learner had done, from older data, before the plan's first step."""

    def __post_init__(self) -> None:
        check_integers(self)
        check_number("random_steps", self.random_steps)
        check_number("max_lead", self.max_lead or 0)
        check_number("max_unseen", self.max_unseen or 0)
        check_positive("updates_per_step", self.updates_per_step)
        check_number("updates_before", self.updates_before)

    def waits_for(self, steps: int, updates: int) -> str:
        """Return why a policy may not start an episode yet, or an empty string."""
        if self.max_lead is None:
            return ""
        ahead = steps - self.random_steps - self.max_lead
        needed = self.updates_before + ahead * self.updates_per_step
        if ahead <= 0 or updates >= needed:
            return ""
        return (
            f"its newest policy has {updates} updates, {steps} steps need {needed:.0f} "
            f"(max_lead {self.max_lead}); is it running, with more updates to do? If it waits for "
            f"steps, too, raise max_lead, or lower its learn.learning_starts to "
            f"{self.random_steps + self.max_lead} or less"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig(EnvironmentConfig):
    """All settings of a collection.

    Example:
        >>> CollectConfig(driver="3:expert+noise,1:random").mixture.text
        '0.75:expert+noise=0.2,0.25:random'
    """

    driver: str = "expert"
    """Who drives: a driver or a mixture, see `avtd3.collect.mixture`."""
    steps: int = 10_000
    """Steps to collect if neither steps, episodes nor seconds are given."""
    seed: int = 0
    """Seed of the plan; two machines that collect into one dataset need different seeds."""
    exploration_noise: float = 0.1
    """Standard deviation of Gaussian noise on policies without noise of their own, in half ranges
    of each action (0.1 in Fujimoto et al. 2018)."""
    lead: CollectAheadConfig = dataclasses.field(default_factory=CollectAheadConfig)
    """Random steps at the start, and how far to run ahead of the learner."""
    min_free_mb: int = 500
    """Free megabytes on the disk below which the collection ends with an error."""
    name: str = ""
    """Name of the collector, part of the segments' names; empty for the machine's name."""
    spool: str = ""
    """Of a dataset that is a URL: directory for segments until they are uploaded; empty for
    ``~/.local/state/avtd3/spool/NAME``. Collectors of this machine for the same URL share it."""
    spool_bytes: int = 10_000_000_000
    """Of a dataset that is a URL: size of the segments that wait for their upload, in bytes, at
    which the collection waits."""
    record_world: bool = True
    """Whether to store the state of the world in every step, from which `avtd3 store render` draws
    other pictures later; only the built-in simulator has one. It adds 2 to 3 % of bytes."""
    writer: WriterConfig = dataclasses.field(default_factory=WriterConfig)
    """Codec and size of the segments."""

    def __post_init__(self) -> None:
        EnvironmentConfig.__post_init__(self)  # super() does not know a class with slots
        Mixture.parse(self.driver)
        check_number("steps", self.steps, minimum=1)
        check_number("seed", self.seed, maximum=MAX_SEED)
        check_number("exploration_noise", self.exploration_noise, maximum=2.0)
        check_number("min_free_mb", self.min_free_mb)
        check_number("spool_bytes", self.spool_bytes, minimum=1)

    @property
    def mixture(self) -> Mixture:
        """The drivers, with exploration noise on the policies."""
        return Mixture.parse(self.driver).exploring(self.exploration_noise)

    def plan_document(self) -> dict[str, Any]:
        """Return the settings that affect the data, as JSON values; their digest names the plan."""
        # Seeds depend on the size of a group: another size is another plan.
        plan: dict[str, Any] = {"driver": self.mixture.text, "group": GROUP, "seed": self.seed}
        if self.lead.random_steps:
            plan["random_steps"] = self.lead.random_steps
        return {**plan, **self.world_document()}


@dataclasses.dataclass(frozen=True, slots=True)
class CollectJob:
    """The work of one process."""

    dataset: Path
    config: CollectConfig
    share: Share
    policies: Path | None
    open_world: WorldFactory
    spool_bytes: int | None = None
    """Largest size of the segments that wait for their upload, if the dataset is a spool."""
    policies_text: str | None = None
    """Where the policies come from: a path or URL."""
    dataset_text: str = ""
    """Where the data go to: a path or URL; empty for `dataset`."""


class Collector:
    """Collects one share of a plan with one environment and one writer."""

    def __init__(
        self,
        job: CollectJob,
        environment: Environment,
        *,
        should_stop: Callable[[], bool],
        on_tally: Callable[[Tally], None],
    ) -> None:
        self._config, self._share, self._environment = job.config, job.share, environment
        self._pool = DriverPool(job.config.mixture, environment, job.policies)
        self._writer = SegmentWriter(
            Dataset.open(job.dataset),
            collector=_segment_name(job.config.name, job.share),
            provenance=_provenance(job.config, environment),
            config=job.config.writer,
        )
        self._path, self._learner = job.dataset, None
        self._policies_text, self._spool_bytes = job.policies_text, job.spool_bytes
        self._spool_size = SpoolSize(job.dataset)
        if job.config.lead.max_unseen is not None:
            texts = (job.dataset_text or job.dataset, job.policies_text)
            places = [open_place(text) for text in texts if text is not None]
            self._learner = LearnerWatch(places, _segment_name(job.config.name, job.share))
        self._should_stop, self._on_tally = should_stop, on_tally
        self._recovery = Recovery(job.config.recovery)
        self._tally, self._steps, self._next_report_s = Tally(), 0, 0.0
        self._published_steps = 0

    def run(self) -> Tally:
        """Collect the share; complete steps are published whatever ends it."""
        try:
            with self._writer:
                try:
                    self._collect()
                except WorldLost as error:  # a simulator that does not come back
                    lost = f"worker {self._share.worker} stopped: {error}"
                    self._note(lost=(lost,), warning="")
                finally:
                    self._count_segment(self._writer.close())
        finally:
            self._report()
        return self._tally

    def _collect(self) -> None:
        for index in self._share.indices():
            # Try again until it is driven or skipped: a lost world may be back.
            while not self._is_over():
                self._check_disk()
                if self._has_room() and self._try_episode(index):
                    break
            else:
                return

    def _is_over(self) -> bool:
        done = self._share.steps is not None and self._steps >= self._share.steps
        return done or self._should_stop()

    def _try_episode(self, index: int) -> bool:
        """Try an episode; return False if it should be tried again."""
        ended, skipped = self._tally.episodes, None
        try:
            self._collect_episode(index)
        except CheckpointError as error:
            self._pool.reject(str(error))
            self._note(warning=str(error))
            return self._tally.episodes > ended
        except WorldLost as error:
            lost = f"episode {index} lost its world ({error.reason}): {error}"
            self._note(losses=self._tally.losses + 1, warning=lost)
            skipped = self._recovery.record_loss(index, error, self._steps)
            if skipped is None and self._tally.episodes == ended:
                return False
        except RoadError as error:
            scenarios = self._environment.scenario_count
            skipped = self._recovery.record_refusal(index, error, self._steps, scenarios)
        # An episode that was truncated is kept up to the step before, and not skipped.
        if skipped is not None and self._tally.episodes == ended:
            self._note(skipped=(*self._tally.skipped, skipped))
        return True

    def _check_disk(self) -> None:
        free, least = shutil.disk_usage(self._path).free, self._config.min_free_mb * 1_000_000
        if free < least:
            raise StorageError(
                f"{self._path} has {free / 1e6:.0f} MB free, less than {least / 1e6:.0f} MB "
                "(collect.min_free_mb); free some space, then continue with --resume"
            )

    def _has_room(self) -> bool:
        """Return whether the spool has room; if not, wait for a moment."""
        if self._spool_bytes is None:
            return True
        if (size := self._spool_size.measure()) < self._spool_bytes:
            self._note(waiting="")
            return True
        self._count_segment(self._writer.flush())
        self._note(
            waiting=f"waiting for uploads: {size} bytes are in {self._path} (collect.spool_bytes)"
        )
        self._report_if_due()
        time.sleep(POLICY_PERIOD_S)
        return False

    def _collect_episode(self, index: int) -> None:
        share, lead = self._share, self._config.lead
        if not self._wait_until_seen():
            return  # stopped while waiting
        seed = training_seed(self._config.seed, index)
        rng = episode_generator(seed)
        steps = share.held_steps + share.workers * self._steps
        driver, spec = self._pool.choose(rng, use_random=steps < lead.random_steps)
        if spec.is_policy and not self._load_policy(steps):
            return  # stopped while waiting
        rollout = Rollout(self._environment, seed, index)
        if self._should_stop():
            return  # the reset may have taken long, and nothing was driven yet
        if self._environment.notices:
            self._note(warning="; ".join(self._environment.notices))
        self._begin_episode(rollout, spec, index)
        most = MAX_EPISODE_STEPS
        if share.steps is not None and not self._environment.has_time_limit:
            most = min(most, share.steps - self._steps)
        self._drive(rollout.drive(driver, spec.name, rng, most))

    def _wait_until_seen(self) -> bool:
        """Wait while a running learner is behind; return False if stopped while waiting."""
        most = self._config.lead.max_unseen
        if self._learner is None or most is None:
            return True
        while (unseen := self._learner.unseen(self._published_steps)) > most:
            self._note(
                waiting=f"waiting for the learner: it has not seen {unseen} published steps "
                f"(max_unseen {most})"
            )
            self._report_if_due()
            if self._should_stop():
                return False
            time.sleep(POLICY_PERIOD_S)
        self._note(waiting="")
        return True

    def _load_policy(self, steps: int) -> bool:
        """Wait for a policy that is new enough; return False if stopped while waiting."""
        while True:
            policy = self._pool.poll()
            if policy is None:
                waiting = f"waiting for the first policy in {self._policies_text}"
            elif behind := self._config.lead.waits_for(steps, policy.updates):
                waiting = f"waiting for the learner of {self._policies_text}: {behind}"
            else:
                break
            # The learner may wait for this data: publish it before waiting.
            self._count_segment(self._writer.flush())
            self._note(waiting=waiting)
            self._report_if_due()
            if self._should_stop():
                return False
            time.sleep(POLICY_PERIOD_S)
        known = {"policy_version": policy.version, "action_limit": policy.action_limit}
        self._note(waiting="", warning=self._pool.warning or self._tally.warning, **known)
        return True

    def _begin_episode(self, rollout: Rollout, spec: DriverSpec, index: int) -> None:
        policy = self._pool.policy if spec.is_policy else None
        if policy is not None and policy.action_limit < 1.0:
            self._note(limited_episodes=self._tally.limited_episodes + 1)
        self._writer.begin(
            rollout.start.observation,
            index=index,
            seed=rollout.seed,
            scenario=self._environment.scenario,
            world=self._environment.name,
            driver=spec.name,
            policy_version=policy.version if policy else -1,
            policy_digest=policy.digest if policy else "",
            exploration_noise=spec.sigma,
            **rollout.start.attributes,
        )

    def _drive(self, steps: Iterator[Step]) -> None:
        """Write the steps of an episode; whatever fails, those before it are kept."""
        writer, should_stop, total, before = self._writer, self._should_stop, 0.0, self._steps
        try:
            for step in steps:
                writer.add(step)
                total += total_reward(step)
                self._steps += 1
                if step.is_last:
                    self._end_episode(step.end_reason, total, *self._record())
                elif should_stop():
                    self._end_episode(STOP_REASON, total, *self._record())
                    return
                self._report_if_due()
        except (CheckpointError, RoadError, WorldError) as error:
            record: _Record = ((), None)
            with contextlib.suppress(WorldError):  # the environment may have failed in this
                record = self._record()
            reason = error.reason if isinstance(error, WorldLost) else FAULT_REASON
            reason = POLICY_REASON if isinstance(error, CheckpointError) else reason
            if self._steps > before:
                self._end_episode(reason, total, *record)
            else:  # an episode without a step is dropped
                writer.truncate(reason, *record)
            raise

    def _record(self) -> _Record:
        """Return what happened in the running episode, and its states if they are stored."""
        environment = self._environment
        world = environment.world_record() if self._config.record_world else None
        return environment.events(), world

    def _end_episode(
        self, reason: str, total: float, events: tuple[Event, ...], world: WorldRecord | None
    ) -> None:
        published = self._writer.truncate(reason, events, world)
        self._tally = self._tally.with_end(reason, total)
        self._count_segment(published)

    def _count_segment(self, segment: PublishedSegment | None) -> None:
        if segment is not None:
            self._published_steps += segment.steps
            size_bytes = self._tally.size_bytes + segment.size_bytes
            self._note(segments=self._tally.segments + 1, size_bytes=size_bytes)

    def _note(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Tally
        changed = dataclasses.replace(self._tally, **changes)
        if changed != self._tally:
            self._tally = changed
            self._report()

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._next_report_s:
            self._report()

    def _report(self) -> None:
        self._next_report_s = time.monotonic() + _REPORT_PERIOD_S
        self._tally = dataclasses.replace(self._tally, steps=self._steps)
        self._on_tally(self._tally)


def collect(
    dataset: Path | str,
    config: CollectConfig | None = None,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seconds: float | None = None,
    policies: Path | str | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[CollectProgress], None] = lambda _: None,
    open_world: WorldFactory = open_world,
) -> CollectReport:
    """Drive episodes and write them into a dataset; see `avtd3.collect.plan` for the guarantees.

    Args:
        dataset: Path or URL of the dataset; created if it does not exist. The segments for a URL
            are written to a spool first (`CollectConfig.spool`), and wait there while the URL
            cannot be reached.
        config: The settings; None for the defaults.
        steps: Steps to collect; give one of `steps`, `episodes` and `seconds`, or none for
            ``config.steps``.
        episodes: Episodes to collect.
        seconds: Seconds to collect for.
        policies: Directory or URL of published policies, for drivers that are policies.
        resume: Add what the dataset lacks of this plan, instead of refusing to repeat it.
        should_stop: Called at every step; true ends the collection in good order.
        on_progress: Called a few times a second.
        open_world: Makes the world, in the process that uses it; the default makes the one that the
            settings name.

    Raises:
        ConfigError: If the dataset already has this plan, or a setting is invalid.
        SpecError: If the dataset or the newest policy has another spec.
        DatasetError: If the path is not a dataset.
        RoadError: If the road network cannot be used.
        WorldError: If a simulator, a driver or a worker process failed; complete steps are
            published.
        StorageError: If the disk is full or not writable.
        UnreachableError: If a URL cannot be reached at the start.

    Example:
        >>> import tempfile
        >>> from avtd3.collect import CollectConfig, ScenarioConfig, collect
        >>> from avtd3.store.dataset import Dataset
        >>> scenario = ScenarioConfig(number=1, route_length_m=30.0)  # empty country roads
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = collect(f"{folder}/data", CollectConfig(scenario=scenario), episodes=2)
        ...     episodes = Dataset.open(f"{folder}/data").snapshot().segments[0].episodes
        >>> report.tally.end_reasons, episodes
        ({'goal': 2}, 2)
    """
    config = config or CollectConfig()
    started_s = time.monotonic()
    if steps is None and episodes is None and seconds is None:
        steps = config.steps
    amount = Amount(steps=steps, episodes=episodes, seconds=seconds)
    with CollectPlaces(dataset, policies, config) as places:
        opened = _open_dataset(places.dataset, config, places.policies, open_world)
        places.start()
        work = _Collection(config, amount, places, opened, open_world, should_stop, on_progress)
        report = work.run(resume=resume)
        unsent = places.finish(should_stop, work.show_waiting)
    return dataclasses.replace(report, seconds=time.monotonic() - started_s, unsent=unsent)


class CollectPlaces:
    """The directories of this machine that stand for the URLs of a collection.

    Use it as a context manager. Segments for a URL are written to a spool and uploaded by a thread;
    another thread copies new policies from theirs.
    """

    def __init__(
        self, dataset: Path | str, policies: Path | str | None, config: CollectConfig
    ) -> None:
        self.text = show_path(dataset)
        """The dataset, for messages."""
        self.policies_text = None if policies is None else show_path(policies)
        """The policies, for messages and for a resume."""
        self.dataset = collection_path(dataset, config.spool)
        """Directory that segments are written to."""
        self.policies = None if policies is None else Path(policies)
        """Directory that policies are read from."""
        url, policies_url = remote_url(dataset), remote_url(policies)
        self._stack = contextlib.ExitStack()
        self._spool = None if url is None else Spool(url, self.dataset)
        self.spool_bytes = None if url is None else config.spool_bytes
        """Largest size of the spool; None for a dataset on this machine."""
        self._size: SpoolSize | None = None
        self._pull: PolicyPull | None = None
        if policies_url is not None:
            temporary = tempfile.TemporaryDirectory(prefix="avtd3-policies-")
            self.policies = Path(self._stack.enter_context(temporary))
            self._pull = PolicyPull(policies_url, self.policies)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start the threads; raise if a URL cannot be used."""
        if self._spool is not None:
            check_reachable(self._spool.place)
            self._spool.check_spec()
            self._stack.enter_context(self._spool)
        if self._pull is not None:
            self._stack.enter_context(self._pull)

    def held(self, plan_digest: str) -> dict[int, int]:
        """Return the steps of the episodes of a plan that the dataset holds, by index."""
        here = held_episodes(Dataset.open(self.dataset), plan_digest)
        return here if self._spool is None else self._spool.held(plan_digest) | here

    @property
    def spool_used(self) -> int | None:
        """Bytes that wait to be uploaded; None for a dataset on this machine."""
        if self._spool is None:
            return None
        self._size = self._size or SpoolSize(self.dataset)
        return self._size.measure()

    @property
    def has_failed(self) -> bool:
        """Whether a thread has ended with an error, which `finish` raises."""
        return any(thread.has_failed for thread in self._threads)

    @property
    def waiting(self) -> str:
        """What the threads wait for, if anything."""
        return "; ".join(thread.waiting for thread in self._threads if thread.waiting)

    @property
    def _threads(self) -> list[Background]:
        return [thread for thread in (self._spool, self._pull) if thread is not None]

    def finish(self, should_stop: Callable[[], bool], on_wait: Callable[[str], None]) -> str:
        """Wait until all segments are uploaded; return which are not, if stopped before."""
        for thread in self._threads:
            thread.check()
        spool = self._spool
        if spool is None:
            return ""

        def show(reason: str) -> None:
            left = plural(spool.left, "segment")
            on_wait("; ".join(filter(None, (f"uploading {left} to {spool.url}", reason))))

        if spool.finish(should_stop, show):
            return ""
        return (
            f"{plural(spool.left, 'segment')} not uploaded to {spool.url}: {spool.waiting}; they "
            f"wait in {spool.path}: run the same command with --resume, or avtd3 push {spool.path} "
            f"{spool.url}"
        )


def collection_path(dataset: Path | str, spool: str) -> Path:
    """Return the directory that a collection writes to: the dataset's, or the spool of its URL."""
    url = remote_url(dataset)
    return Path(dataset) if url is None else spool_path(url, spool)


class _Collection:
    """One call of `collect`, after its places were opened."""

    def __init__(
        self,
        config: CollectConfig,
        amount: Amount,
        places: CollectPlaces,
        opened: Dataset,
        open_world: WorldFactory,
        should_stop: Callable[[], bool],
        on_progress: Callable[[CollectProgress], None],
    ) -> None:
        self._config, self._amount, self._places, self._opened = config, amount, places, opened
        self._open_world, self._should_stop = open_world, should_stop
        self._on_progress, self._started_s = on_progress, time.monotonic()
        self._digest = digest(config.plan_document())
        self._held: dict[int, int] = {}
        self._tally = Tally()

    def run(self, *, resume: bool) -> CollectReport:
        """Collect what the dataset lacks of the plan."""
        config, amount, places, opened = self._config, self._amount, self._places, self._opened
        workers = config.worker_count
        with lock_plan(opened, self._digest):
            self._held = held = places.held(self._digest)
            held_steps = sum(held.values())
            if held and not resume:
                raise ConfigError(
                    f"dataset {places.text} already has {len(held)} episodes of this plan (seed "
                    f"{config.seed}); use --resume to continue it, or another --seed for new "
                    "episodes"
                )
            changes = self._record_plan(held_steps, resume=resume)
            opened.clean_staging()
            whole = Share(
                amount=amount, held=frozenset(held), held_steps=held_steps, workers=workers
            )
            shares = [dataclasses.replace(whole, worker=worker) for worker in range(workers)]
            jobs = [
                CollectJob(
                    opened.path,
                    config,
                    share,
                    places.policies,
                    self._open_world,
                    places.spool_bytes,
                    places.policies_text,
                    places.text,
                )
                for share in shares
            ]
            tallies, lost = run_jobs(
                run_job, jobs, should_stop=self._is_over, on_reports=self._show
            )
            tally = Tally.total(tallies)
            if lost:  # count what is there: a worker that died has not reported its last steps
                now = places.held(self._digest)
                steps, episodes = sum(now.values()) - held_steps, len(now) - len(held)
                reasons = (*tally.lost, *lost)
                tally = dataclasses.replace(tally, lost=reasons, steps=steps, episodes=episodes)
        self._tally = tally
        return CollectReport(
            dataset=places.text,
            tally=tally,
            seconds=time.monotonic() - self._started_s,
            workers=workers,
            held_steps=held_steps,
            interrupted=self._should_stop(),
            plan_digest=self._digest,
            changes=tuple(changes),
            missing=amount.missing(held, tally.steps, tally.episodes),
        )

    def _record_plan(self, held_steps: int, *, resume: bool) -> list[str]:
        """Write the plan to its file; return what a resume changed, as text."""
        path = self._opened.path
        options = {**dataclasses.asdict(self._amount), "policies": self._places.policies_text}
        config = dataclasses.asdict(self._config)
        plan = StoredPlan(digest=self._digest, config=config, options=options)
        before = stored_plan(path, self._digest) if resume else None
        changes = plan.record(path, before=before, from_step=held_steps)
        if changes:
            self._show([Tally(warning=f"changed {'; '.join(changes)}")])
        return changes

    def _is_over(self) -> bool:
        seconds = self._amount.seconds
        is_late = seconds is not None and time.monotonic() - self._started_s >= seconds
        return is_late or self._places.has_failed or self._should_stop()

    def _show(self, tallies: Sequence[Tally | None]) -> None:
        total = Tally.total(tallies)
        elapsed_s = time.monotonic() - self._started_s
        fraction = self._amount.fraction(self._held, total.steps, total.episodes, elapsed_s)
        self._on_progress(
            CollectProgress(
                tally=total,
                seconds=elapsed_s,
                fraction=fraction,
                disk_free_bytes=shutil.disk_usage(self._opened.path).free,
                remote=self._places.waiting,
                spool_bytes=self._places.spool_used,
            )
        )

    def show_waiting(self, reason: str) -> None:
        """Report what is waited for after the last episode."""
        self._show([dataclasses.replace(self._tally, waiting=reason)])


def run_job(
    job: CollectJob, should_stop: Callable[[], bool], on_tally: Callable[[Tally], None]
) -> Tally:
    """Collect one process's share; raise as `collect`."""
    config, worker = job.config, job.share.worker
    with contextlib.ExitStack() as stack:
        if job.share.workers > 1:
            lock = lock_share(job.dataset, digest(config.plan_document()), worker)
            stack.enter_context(lock)
        environment = stack.enter_context(open_environment(config, job.open_world, worker))
        return Collector(job, environment, should_stop=should_stop, on_tally=on_tally).run()


def _open_dataset(
    path: Path, config: CollectConfig, policies: Path | None, factory: WorldFactory
) -> Dataset:
    if config.mixture.needs_policy and policies is None:
        raise ConfigError(
            f"driver {config.driver!r} needs the learner's directory; give --policies"
        )
    with open_environment(config, factory) as environment:
        DriverPool(config.mixture, environment, policies)  # raises if a driver does not exist here
        return Dataset.create(path, environment.spec)


def _segment_name(name: str, share: Share) -> str:
    """Return a name for directories that no other process of this collection has."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name or platform.node())
    own = plain.strip("-")[:48] or "collector"
    return own if share.workers == 1 else f"{own}-{share.worker}"


def _provenance(config: CollectConfig, environment: Environment) -> dict[str, Any]:
    document, scenario = dataclasses.asdict(config), config.scenario
    is_numbered = config.world in ("road", "carla") and scenario.file is None
    numbers = {"number": scenario.number, "npcs": scenario.resolve()[0].npcs}
    return {
        **({"scenario": numbers} if is_numbered else {}),
        "config": document,
        "config_digest": digest(document),
        "plan_digest": digest(config.plan_document()),
        "simulator": environment.simulator,
    }
