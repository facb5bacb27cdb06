"""`collect`: drive episodes of a plan and write them into a dataset."""

import contextlib
import dataclasses
import functools
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.cluster import open_cluster, warm_environment
from avtd3.collect.drivers import LabelledDriver
from avtd3.collect.environment import FAULT_REASON, POLICY_REASON, Environment
from avtd3.collect.mixture import DriverPool, DriverSpec, Mixture
from avtd3.collect.places import CollectPlaces
from avtd3.collect.plan import (
    GROUP,
    MAX_SEED,
    Amount,
    Share,
    StoredPlan,
    claim_segment,
    digest,
    episode_generator,
    lock_plan,
    lock_share,
    stop_key,
    stored_plan,
    stored_plans,
    training_seed,
    units_of,
)
from avtd3.collect.recovery import Recovery
from avtd3.collect.reports import CollectProgress, CollectReport, Tally
from avtd3.collect.rollout import MAX_EPISODE_STEPS, Rollout
from avtd3.collect.scores import total_reward
from avtd3.collect.workers import run_jobs
from avtd3.collect.worlds import EnvironmentConfig, WorldFactory, open_environment, open_world
from avtd3.store.cluster import Cluster, Stop, WorkerContext
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    CheckpointError,
    ConfigError,
    RoadError,
    StorageError,
    WorldError,
    WorldLost,
    abbreviate,
    check_integers,
)
from avtd3.store.events import Event
from avtd3.store.files import plain_name, remote_url
from avtd3.store.remote.background import SpoolSize
from avtd3.store.remote.client import Patience, open_place
from avtd3.store.remote.commit import Unit
from avtd3.store.settings import differences
from avtd3.store.status import LearnerWatch
from avtd3.store.step import STOP_REASON, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord
from avtd3.store.writer import PublishedSegment, SegmentWriter, WriterConfig

_Record: TypeAlias = tuple[tuple[Event, ...], WorldRecord | None, StepLabels | None]
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
    other pictures later; only the built-in simulator and CARLA have one. It adds 2 to 3 % of
    bytes."""
    record_expert: bool = True
    """Whether to store in every step what the expert would have done, and who drove; only in worlds
    with an expert. See docs/teacher.md."""
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


def choose_plan(
    path: Path, configure: Callable[[Mapping[str, Any] | None], CollectConfig]
) -> tuple[CollectConfig, StoredPlan | None]:
    """Return the settings of a resumed collection, and the plan that it continues.

    That is the plan of the seed that the user named, or the dataset's only plan; None for a seed
    that no plan has. `configure` applies what the user named to stored settings, or to the defaults
    for None. Raise `ConfigError` if that makes another plan, or if several plans fit.
    """
    tried: list[tuple[CollectConfig, StoredPlan]] = []
    problem: ConfigError | None = None
    for plan in stored_plans(path):
        try:
            tried.append((configure(plan.config), plan))
        except ConfigError as error:  # of what the user named, or of another version
            problem = error
    own = [(settings, plan) for settings, plan in tried if settings.seed == plan.seed]
    fitting = [(s, plan) for s, plan in own if digest(s.plan_document()) == plan.digest]
    if len(fitting) == 1:
        return fitting[0]
    if not own:
        settings = configure(None)
        if problem is not None and not tried:
            raise problem
        return settings, None
    if len(own) > 1:
        seeds = ", ".join(sorted({abbreviate(plan.seed) for _, plan in own}))
        raise ConfigError(
            f"{path} has {len(own)} plans that this could resume, of seed {seeds}; name one with "
            "--seed and the settings that it was started with"
        )
    settings, plan = own[0]
    changes = differences(plan.config, dataclasses.asdict(settings), "collect.")
    named = "; ".join(map(str, changes)) or "another version of avtd3 made it"
    raise ConfigError(
        f"{path} has a plan of seed {settings.seed} that cannot be resumed like this ({named}): a "
        "plan keeps the settings that its data depend on; leave them as they are, or start another "
        "plan with another --seed and without --resume"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class CollectJob:
    """The work of one process."""

    dataset: Path
    config: CollectConfig
    share: Share
    policies: Path | None
    open_world: WorldFactory
    plan_digest: str
    """That of the whole collection: a scenario file may change meanwhile."""
    unit: int | None = None
    """Number of the unit of work on a Dask cluster, which is published only once."""
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
        config, name = job.config, _segment_name(job.config.name, job.share)
        self._job, self._config, self._share = job, config, job.share
        self._environment = environment
        self._pool = DriverPool(config.mixture, environment, job.policies, config.hold_actions)
        self._teacher = environment.teacher() if config.record_expert else None
        self._labelled: LabelledDriver | None = None
        self._writer = SegmentWriter(
            Dataset.open(job.dataset),
            collector=name,
            provenance=_provenance(job, environment),
            config=config.writer,
            claim=_claim_of(job),
        )
        self._learner = None
        self._spool_size = SpoolSize(job.dataset)
        if config.lead.max_unseen is not None:
            texts = (job.dataset_text or job.dataset, job.policies_text)
            hasty = Patience(seconds=0.0)
            places = [open_place(text, hasty) for text in texts if text is not None]
            self._learner = LearnerWatch(places, name)
        self._should_stop, self._on_tally = should_stop, on_tally
        self._recovery = Recovery(config.recovery)
        self._tally, self._steps, self._next_report_s = Tally(), 0, 0.0
        self._published_steps, self._is_policy = 0, False

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
                if self._wait(self._lack_of_room) and self._try_episode(index):
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
            if not self._is_policy:  # it is about a policy that a user's world has loaded
                raise
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

    def _wait(self, reason: Callable[[], str]) -> bool:
        """Wait as long as there is a reason to; return False if stopped while waiting."""
        while waiting := reason():
            self._note(waiting=waiting)
            self._report_if_due()
            if self._should_stop():
                return False
            time.sleep(POLICY_PERIOD_S)
        self._note(waiting="")
        return True

    def _lack_of_room(self) -> str:
        """Return why the spool has no room for an episode, or ""; raise if the disk has none."""
        path = self._job.dataset
        free, least = shutil.disk_usage(path).free, self._config.min_free_mb * 1_000_000
        if free < least:
            raise StorageError(
                f"{path} has {free / 1e6:.0f} MB free, less than {least / 1e6:.0f} MB "
                "(collect.min_free_mb); free some space, then continue with --resume"
            )
        most = self._job.spool_bytes
        if most is None or (size := self._spool_size.measure()) < most:
            return ""
        self._count_segment(self._writer.flush())
        return f"waiting for uploads: {size} bytes are in {path} (collect.spool_bytes)"

    def _collect_episode(self, index: int) -> None:
        share, lead = self._share, self._config.lead
        if not self._wait(self._unseen_steps):
            return  # stopped while waiting
        seed = training_seed(self._config.seed, index)
        rng = episode_generator(seed)
        steps = share.held_steps + share.workers * self._steps
        driver, spec = self._pool.choose(rng, use_random=steps < lead.random_steps)
        self._is_policy = spec.is_policy
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
        if self._teacher is not None:
            driver = self._labelled = LabelledDriver(driver, self._teacher)
        self._drive(rollout.drive(driver, spec.name, rng, most))

    def _unseen_steps(self) -> str:
        """Return why to wait for a running learner, or nothing."""
        most = self._config.lead.max_unseen
        if self._learner is None or most is None:
            return ""
        if (unseen := self._learner.unseen(self._published_steps)) <= most:
            return ""
        unseen_steps = f"it has not seen {unseen} published steps (max_unseen {most})"
        return f"waiting for the learner: {unseen_steps}"

    def _load_policy(self, steps: int) -> bool:
        """Wait for a policy that is new enough; return False if stopped while waiting."""

        def reason() -> str:
            policy = self._pool.poll()
            if policy is None:
                waiting = f"waiting for the first policy in {self._job.policies_text}"
            elif behind := self._config.lead.waits_for(steps, policy.updates):
                waiting = f"waiting for the learner of {self._job.policies_text}: {behind}"
            else:
                return ""
            if self._job.unit is None:
                # The learner may wait for this data: publish it before waiting.
                self._count_segment(self._writer.flush())
            return waiting

        if not self._wait(reason):
            return False
        policy = self._pool.policy
        assert policy is not None, "otherwise there is a reason to wait"
        known = {"policy_version": policy.version, "action_limit": policy.action_limit}
        self._note(warning=self._pool.warning or self._tally.warning, **known)
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
            record: _Record = ((), None, None)
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
        """Return what happened in the running episode, and what else is stored of it."""
        environment = self._environment
        world = environment.world_record() if self._config.record_world else None
        labels = environment.labels()
        if self._labelled is not None:
            known = self._labelled.labels(environment.spec)
            labels = dataclasses.replace(
                labels or StepLabels(),
                expert_action=known.expert_action,
                expert_drove=known.expert_drove,
            )
        return environment.events(), world, labels

    def _end_episode(self, reason: str, total: float, *record: Any) -> None:  # noqa: ANN401
        """End the running episode, given what `_record` returned."""
        published = self._writer.truncate(reason, *record)
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
    scheduler: str | None = None,
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
        scheduler: Address of a Dask scheduler whose workers collect, see `avtd3.store.cluster`;
            None to collect in this process and ``config.workers`` of its own.

    Raises:
        ConfigError: If the dataset already has this plan, or a setting is invalid.
        MissingPackageError: If `scheduler` is given, but Dask's package is not installed.
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
    places = CollectPlaces(
        dataset,
        policies,
        spool=config.spool,
        spool_bytes=config.spool_bytes,
        should_stop=should_stop,
    )
    with places:
        places.check(is_cluster=scheduler is not None)
        _check_options(config, places.policies, scheduler)
        work = _Collection(config, amount, places, open_world, should_stop, on_progress)
        report = work.run(resume=resume, scheduler=scheduler)
        unsent = places.finish(work.show_waiting)
    return dataclasses.replace(report, seconds=time.monotonic() - started_s, unsent=unsent)


class _Collection:
    """One call of `collect`, after its places were opened."""

    def __init__(
        self,
        config: CollectConfig,
        amount: Amount,
        places: CollectPlaces,
        open_world: WorldFactory,
        should_stop: Callable[[], bool],
        on_progress: Callable[[CollectProgress], None],
    ) -> None:
        self._config, self._amount, self._places = config, amount, places
        self._open_world, self._should_stop = open_world, should_stop
        self._on_progress, self._started_s = on_progress, time.monotonic()
        self._digest = digest(config.plan_document())
        self._held: dict[int, int] = {}
        self._tally = Tally()

    def run(self, *, resume: bool, scheduler: str | None) -> CollectReport:
        """Collect what the dataset lacks of the plan."""
        places = self._places
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(open_cluster(scheduler)) if scheduler else None
            job = self._job(is_cluster=cluster is not None)
            opened = self._open_dataset(job, cluster)
            places.start(pulls=cluster is None)
            stack.enter_context(lock_plan(opened, self._digest))
            claimed, held = places.held(self._digest)
            self._held = held
            held_steps = sum(held.values())
            if held and not resume:
                raise ConfigError(
                    f"dataset {places.text} already has {len(held)} episodes of this plan (seed "
                    f"{self._config.seed}); use --resume to continue it, or another --seed for new "
                    "episodes"
                )
            changes = self._record_plan(opened.path, held_steps, resume=resume)
            opened.clean_staging()
            share = dataclasses.replace(job.share, held=frozenset(held), held_steps=held_steps)
            job = dataclasses.replace(job, share=share)
            if cluster is None:
                tallies, lost = self._collect_here(job)
            else:
                tallies, lost = self._collect_units(cluster, job, claimed)
            tally = Tally.total(tallies)
            # Count what is there: a worker that died has not reported its last steps.
            if lost or cluster is not None:
                _, now = places.held(self._digest)
                steps, episodes = sum(now.values()) - held_steps, len(now) - len(held)
                reasons = (*tally.lost, *lost)
                tally = dataclasses.replace(tally, lost=reasons, steps=steps, episodes=episodes)
        self._tally = tally
        return CollectReport(
            dataset=places.text,
            tally=tally,
            seconds=time.monotonic() - self._started_s,
            workers=share.workers if cluster is None else cluster.workers,
            held_steps=held_steps,
            interrupted=self._should_stop(),
            plan_digest=self._digest,
            changes=tuple(changes),
            missing=self._amount.missing(held, tally.steps, tally.episodes),
        )

    def _job(self, *, is_cluster: bool) -> CollectJob:
        config, places = self._config, self._places
        text, policies = places.text, places.policies_text
        if is_cluster:  # its workers have other working directories
            text, policies = _absolute(text), policies and _absolute(policies)
        workers = 1 if is_cluster else config.worker_count
        return CollectJob(
            places.dataset,
            config,
            Share(amount=self._amount, held=frozenset(), held_steps=0, workers=workers),
            places.policies,
            self._open_world,
            self._digest,
            spool_bytes=None if is_cluster else places.spool_bytes,
            policies_text=policies,
            dataset_text=text,
        )

    def _open_dataset(self, job: CollectJob, cluster: Cluster | None) -> Dataset:
        """Create the dataset unless it exists, with a world, which knows the spec."""
        places = self._places
        if cluster is None:
            with open_environment(job.config, job.open_world) as environment:
                return _create(places, job.config, environment)
        created, lost = cluster.run(
            _create_dataset,
            [(f"avtd3-create-{secrets.token_hex(8)}", job)],
            should_stop=self._is_over,
            on_results=lambda _, state: self._show([Tally(waiting=state)]),
        )
        if not created:
            stopped = f"stopped before a worker could open {places.text}"
            raise WorldError("; ".join(lost) or stopped)
        return places.open_created()

    def _collect_here(self, job: CollectJob) -> tuple[list[Tally | None], list[str]]:
        """Collect the plan in this process, or in some that it starts."""
        shares = (dataclasses.replace(job.share, worker=n) for n in range(job.share.workers))
        jobs = [dataclasses.replace(job, share=share) for share in shares]
        return run_jobs(run_job, jobs, should_stop=self._is_over, on_reports=self._show)

    def _collect_units(
        self, cluster: Cluster, job: CollectJob, claimed: Collection[int]
    ) -> tuple[list[Tally | None], list[str]]:
        """Collect the plan on a Dask cluster; units are taken until the amount is reached."""
        share, wanted, steps = job.share, self._amount.steps, 0
        stop = Stop(job.dataset_text, stop_key(self._digest))
        stop.clear()

        def units() -> Iterator[tuple[str, CollectJob]]:
            for number, indices in units_of(self._amount, share.held, claimed):
                if wanted is not None and share.held_steps + steps >= wanted:
                    return
                own = dataclasses.replace(share, unit=indices, held_steps=share.held_steps + steps)
                key = f"avtd3-{self._digest[:16]}-{number}"
                yield key, dataclasses.replace(job, share=own, unit=number)

        def on_results(tallies: list[Any], state: str) -> None:
            nonlocal steps
            total = Tally.total(tallies)
            steps = total.steps
            waiting = "; ".join(filter(None, (state, total.waiting)))
            self._show([dataclasses.replace(total, waiting=waiting)])

        try:
            return cluster.run(
                _run_unit, units(), stop=stop, should_stop=self._is_over, on_results=on_results
            )
        finally:
            stop.clear()

    def _record_plan(self, path: Path, held_steps: int, *, resume: bool) -> list[str]:
        """Write the plan to its file; return what a resume changed, as text."""
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

    def _show(self, tallies: list[Tally | None]) -> None:
        total, path = Tally.total(tallies), self._places.dataset
        elapsed_s = time.monotonic() - self._started_s
        fraction = self._amount.fraction(self._held, total.steps, total.episodes, elapsed_s)
        self._on_progress(
            CollectProgress(
                tally=total,
                seconds=elapsed_s,
                fraction=fraction,
                disk_free_bytes=shutil.disk_usage(path if path.exists() else Path.cwd()).free,
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
            stack.enter_context(lock_share(job.dataset, job.plan_digest, worker))
        environment = stack.enter_context(open_environment(config, job.open_world, worker))
        return Collector(job, environment, should_stop=should_stop, on_tally=on_tally).run()


def _claim_of(job: CollectJob) -> Callable[[bytes], bool] | None:
    """Return how the writer claims a unit; None if there is none."""
    if job.unit is None:
        return None
    if remote_url(job.dataset_text) is not None:
        return lambda manifest: True  # the upload claims it
    return functools.partial(claim_segment, job.dataset, job.plan_digest, job.unit)


@contextlib.contextmanager
def _unit_places(job: CollectJob, should_stop: Callable[[], bool]) -> Iterator[CollectPlaces]:
    """Yield the places of a unit of work, or of the dataset; URLs get directories for the time."""
    unit = None if job.unit is None else Unit(plan=job.plan_digest, number=job.unit)
    with (
        tempfile.TemporaryDirectory(prefix="avtd3-unit-") as folder,
        CollectPlaces(
            job.dataset_text, job.policies_text, spool=folder, unit=unit, should_stop=should_stop
        ) as places,
    ):
        yield places


def _run_unit(job: CollectJob, context: WorkerContext) -> Tally:
    """Collect a unit in a worker of a Dask cluster."""
    with (
        _unit_places(job, context.should_stop) as places,
        warm_environment(job.config, job.open_world) as environment,
    ):

        def should_stop() -> bool:
            return places.has_failed or context.should_stop()

        if places.is_remote:
            Dataset.create(places.dataset, environment.spec)
        places.start_unit()
        job = dataclasses.replace(job, dataset=places.dataset, policies=places.policies)
        collector = Collector(job, environment, should_stop=should_stop, on_tally=lambda _: None)
        tally = collector.run()
        # After a stop, what cannot be uploaded is collected again by a resume.
        places.finish(context.note)
        if tally.lost:
            raise WorldLost("; ".join(tally.lost))  # the next unit gets a new world
    return tally


def _create_dataset(job: CollectJob, context: WorkerContext) -> None:
    """Create the dataset in a worker of a Dask cluster, whose world knows the spec."""
    with (
        _unit_places(job, context.should_stop) as places,
        warm_environment(job.config, job.open_world) as environment,
    ):
        _create(places, job.config, environment)


def _check_options(config: CollectConfig, policies: Path | None, scheduler: str | None) -> None:
    if config.mixture.needs_policy and policies is None:
        raise ConfigError(
            f"driver {config.driver!r} needs the directory that a learner publishes into; give "
            "--policies DIR"
        )
    for name in ("max_lead", "max_unseen") if scheduler else ():
        if (most := getattr(config.lead, name)) is not None:
            raise ConfigError(
                f"collect.lead.{name} is {most}, expected none with --scheduler: units of work do "
                "not wait for a learner; remove it, or collect without --scheduler"
            )


def _absolute(path: str) -> str:
    return path if remote_url(path) else str(Path(path).absolute())


def _create(places: CollectPlaces, config: CollectConfig, environment: Environment) -> Dataset:
    # This raises if a driver does not exist here.
    DriverPool(config.mixture, environment, places.policies, config.hold_actions)
    return places.create(environment.spec)


def _segment_name(name: str, share: Share) -> str:
    """Return a name for directories that no other process of this collection has."""
    own = plain_name(name or platform.node()) or "collector"
    return own if share.workers == 1 else f"{own}-{share.worker}"


def _provenance(job: CollectJob, environment: Environment) -> dict[str, Any]:
    config, scenario, found = job.config, job.config.scenario, dict[str, Any]()
    if config.world in ("road", "carla") and scenario.file is None:
        found["scenario"] = {"number": scenario.number, "npcs": scenario.resolve()[0].npcs}
    document = dataclasses.asdict(config)
    return {
        **found,
        "config": document,
        "config_digest": digest(document),
        "plan_digest": job.plan_digest,
        "simulator": environment.simulator,
    }
