"""`CollectAheadConfig`: how far a collection may run ahead of the learner that it collects for.

Published results come from one process that does one update per step. Here the collector and the
learner are two, and either may be the faster one. The learner keeps its side with
``learn.updates_per_step``: no more updates than that for each step. The collector keeps its side
with `max_lead`: no episode is begun while the newest policy is further behind than that.
"""

import dataclasses
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.drivers import Choice, DriverPool, Mixture
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.observation import check_frame
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.environment import FAULT_REASON, STOP_REASON, Environment, Opening, Step
from avtd3.collect.gym_env import GYM, GymConfig
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import (
    GROUP,
    MAX_SEED,
    Amount,
    Share,
    digest,
    episode_generator,
    held_episodes,
    training_seed,
)
from avtd3.collect.reports import CollectProgress, CollectReport, Recovery, RecoveryConfig, Tally
from avtd3.collect.rollout import Rollout, Transition
from avtd3.collect.sim.world import RoadConfig
from avtd3.collect.worlds import (
    WorldFactory,
    check_world,
    count_workers,
    open_environment,
    open_world,
)
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, RouteError, StorageError, WorldError, WorldLost
from avtd3.store.step import Observation
from avtd3.store.writer import PublishedSegment, SegmentWriter, WriterConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectAheadConfig:
    """What holds the collector back."""

    random_steps: int = 0
    """Steps of the plan that the random driver takes first, whatever the mixture says; whole
    episodes, so a few more (Fujimoto et al. 2018 take 1 000 or 10 000, the authors' code 25 000).
    With several workers, which episodes these are depends on their number."""
    max_lead: int | None = None
    """Steps, besides the random ones, by which the data may be ahead of the newest policy's
    updates when a policy begins an episode; None never waits. At least ``learn.publish_every`` /
    ``learn.updates_per_step``, or collector and learner wait for one another."""
    updates_per_step: float = 1.0
    """Updates that the learner does per step (``learn.updates_per_step``), to judge the lead by."""
    updates_before: int = 0
    """Updates that the learner had done before the plan's first step, from older data."""

    def __post_init__(self) -> None:
        check_number("random_steps", self.random_steps)
        check_number("max_lead", self.max_lead or 0)
        check_positive("updates_per_step", self.updates_per_step)
        check_number("updates_before", self.updates_before)

    def is_random(self, steps: int) -> bool:
        """Whether an episode that begins after so many steps of the plan is a random one."""
        return steps < self.random_steps

    def waits_for(self, steps: int, updates: int) -> str:
        """Why a policy may not begin an episode yet, or an empty string.

        Args:
            steps: Steps of the plan so far.
            updates: Updates that the newest policy was trained for.
        """
        if self.max_lead is None:
            return ""
        ahead = steps - self.random_steps - self.max_lead
        wanted = self.updates_before + ahead * self.updates_per_step
        if ahead <= 0 or updates >= wanted:
            return ""
        return (
            f"its newest policy has {updates} updates, {steps} steps need {wanted:.0f} "
            f"(max_lead {self.max_lead}); is it running, and does it publish often enough "
            "(learn.publish_every)?"
        )


REPORT_PERIOD_S = 0.2
"""Wall clock between two reports."""
POLICY_PERIOD_S = 0.05
"""Wall clock between two looks for a policy that is waited for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What the loop needs to know beside its collaborators."""

    seed: int
    """Seed of the plan."""
    lead: CollectAheadConfig
    """How far the collection may run ahead of the learner."""
    recovery: RecoveryConfig
    """What becomes of lost worlds."""
    min_free_bytes: int
    """Free bytes on the disk below which no episode is begun."""
    writer: WriterConfig
    """Codec and size of the segments."""
    name: str
    """Name of the collector, in the names of its segments."""
    provenance: Mapping[str, Any]
    """What every segment says about its origin."""


class Collector:
    """Collects one share of a plan with one environment and one writer.

    Args:
        dataset: Where the segments go.
        environment: Where the episodes happen.
        pool: The drivers.
        settings: Everything else.
        should_stop: Asked before every step; true ends the collection in good order.
        on_tally: Called now and then with what has been collected.
    """

    def __init__(
        self,
        dataset: Dataset,
        environment: Environment,
        pool: DriverPool,
        settings: LoopSettings,
        *,
        should_stop: Callable[[], bool],
        on_tally: Callable[[Tally], None],
    ) -> None:
        self._dataset, self._arena, self._pool = dataset, environment, pool
        self._settings = settings
        self._should_stop, self._on_tally = should_stop, on_tally
        self._tally = Tally()
        self._steps = 0
        self._recovery = Recovery(settings.recovery)
        self._reported_s = -1.0

    def run(self, share: Share) -> Tally:
        """Collect a share of the plan; whatever ends it, what is whole is published.

        A simulator that is lost for good ends the share with `Tally.lost`, not with an error.

        Raises:
            WorldError: The simulator failed, or a driver's action cannot be applied; the
                running episode is kept up to the step before, as truncated.
            StorageError: The disk is full or nearly so.
        """
        settings = self._settings
        writer = SegmentWriter(
            self._dataset,
            collector=settings.name,
            provenance=settings.provenance,
            config=settings.writer,
        )
        with writer:
            try:
                self._collect(writer, share)
            except WorldLost as error:
                self._note(lost=(f"worker {share.worker} gave up: {error}",), warning="")
            self._published(writer.close())
        self._report(force=True)
        return self._tally

    def _collect(self, writer: SegmentWriter, share: Share) -> None:
        for index in share.indices():
            # Begun again until it is driven or skipped: a lost world may be back.
            while not self._is_over(share):
                self._check_disk()
                if self._is_settled(writer, share, index):
                    break
            else:
                return

    def _is_over(self, share: Share) -> bool:
        done = share.steps is not None and self._steps >= share.steps
        return done or self._should_stop()

    def _is_settled(self, writer: SegmentWriter, share: Share, index: int) -> bool:
        """Try an episode; whether there is nothing more to try about it."""
        ended = self._tally.episodes
        try:
            self._collect_episode(writer, share, index)
        except WorldLost as error:
            lost = f"episode {index} lost its world ({error.reason}): {error}"
            self._note(losses=self._tally.losses + 1, warning=lost)
            skipped = self._recovery.lost(index, error, self._steps)
            if self._tally.episodes > ended:
                return True  # cut, and kept up to the step before
            if skipped is None:
                return False
        except RouteError as error:
            skipped = self._recovery.unplanned(index, error, self._steps)
        else:
            return True
        self._note(skipped=(*self._tally.skipped, skipped))
        return True

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._dataset.path).free
        if free < self._settings.min_free_bytes:
            raise StorageError(
                f"{self._dataset.path} has {free / 1e6:.0f} MB free, less than "
                f"{self._settings.min_free_bytes / 1e6:.0f} MB (collect.min_free_mb); free some "
                "space, then go on with --resume"
            )

    def _collect_episode(self, writer: SegmentWriter, share: Share, index: int) -> None:
        seed = training_seed(self._settings.seed, index)
        rng = episode_generator(seed)
        steps = share.held_steps + share.workers * self._steps
        choice = self._pool.draw(rng, at_random=self._settings.lead.is_random(steps))
        if choice.is_policy and not self._take_policy(writer, steps):
            return  # stopped while waiting
        image = self._dataset.spec.image
        rollout = Rollout(self._arena, seed, index)
        if image is not None:
            check_frame(rollout.start.image, image, self._arena.name)
        if self._should_stop():
            return  # a reset may build a road network; nothing was driven yet
        if self._arena.notices:
            self._note(warning="; ".join(self._arena.notices))
        self._begin(writer, rollout, choice, index)
        self._drive(writer, rollout.drive(choice.driver, choice.spec.name, rng))

    def _take_policy(self, writer: SegmentWriter, steps: int) -> bool:
        """Have a policy that is as new as must be; false if stopped before there was one."""
        while waiting := self._waits_for(steps):
            # A learner may wait for this very data: hold nothing back while waiting for it.
            self._published(writer.flush())
            self._note(waiting=waiting)
            self._report()
            if self._should_stop():
                return False
            time.sleep(POLICY_PERIOD_S)
        warning = self._pool.warning or self._tally.warning
        policy = self._pool.policy
        assert policy is not None, "nothing is waited for any more"
        self._note(
            waiting="",
            warning=warning,
            policy_version=policy.version,
            action_limit=policy.action_limit,
        )
        return True

    def _waits_for(self, steps: int) -> str:
        """What must happen before a policy may drive, or an empty string."""
        policy = self._pool.poll()
        if policy is None:
            return f"waiting for the first policy in {self._pool.path}"
        late = self._settings.lead.waits_for(steps, policy.updates)
        return late and f"waiting for the learner of {self._pool.path}: {late}"

    def _begin(self, writer: SegmentWriter, rollout: Rollout, choice: Choice, index: int) -> None:
        start = rollout.start
        policy = self._pool.policy if choice.is_policy else None
        if policy is not None and policy.action_limit < 1.0:
            self._note(limited_episodes=self._tally.limited_episodes + 1)
        writer.begin(
            _observation(start),
            index=index,
            seed=rollout.seed,
            scenario=self._arena.scenario,
            world=self._arena.name,
            town=start.town,
            weather=start.weather,
            driver=choice.spec.name,
            policy_version=policy.version if policy else -1,
            policy_digest=policy.digest if policy else "",
            exploration_noise=choice.spec.sigma,
        )

    def _drive(self, writer: SegmentWriter, transitions: Iterator[Transition]) -> None:
        episode_return, before = 0.0, self._steps
        try:
            for transition in transitions:
                _write(writer, transition)
                step = transition.step
                episode_return += sum(step.reward_terms.tolist())
                self._steps += 1
                self._report()
                if step.terminated or step.truncated:
                    published = writer.end(step.reason, self._arena.events())
                    self._end(published, step.reason, episode_return)
                elif self._should_stop():
                    published = writer.truncate(STOP_REASON, self._arena.events())
                    self._end(published, STOP_REASON, episode_return)
                    return
        except WorldError as error:
            reason = error.reason if isinstance(error, WorldLost) else FAULT_REASON
            published = writer.truncate(reason, self._arena.events())
            if self._steps > before:  # an episode without a step is dropped
                self._end(published, reason, episode_return)
            raise

    def _end(self, segment: PublishedSegment | None, reason: str, episode_return: float) -> None:
        self._tally = self._tally.with_end(reason, episode_return)
        self._published(segment)

    def _published(self, segment: PublishedSegment | None) -> None:
        if segment is not None:
            self._note(
                segments=self._tally.segments + 1,
                size_bytes=self._tally.size_bytes + segment.size_bytes,
            )

    def _note(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Tally
        changed = dataclasses.replace(self._tally, **changes)
        if changed != self._tally:
            self._tally = changed
            self._report(force=True)

    def _report(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if force or now_s - self._reported_s >= REPORT_PERIOD_S:
            self._reported_s = now_s
            self._tally = dataclasses.replace(self._tally, steps=self._steps)
            self._on_tally(self._tally)


def _write(writer: SegmentWriter, transition: Transition) -> None:
    step = transition.step
    writer.step(
        transition.action,
        None,
        _observation(step),
        terminated=step.terminated,
        truncated=step.truncated,
        reward_terms=step.reward_terms,
    )


def _observation(seen: Opening | Step) -> Observation:
    return Observation(
        image=seen.image,
        vector=seen.vector,
        frame_id=seen.frame_id,
        sim_time_s=seen.sim_time_s,
    )


_DRIVING_KEYS = ("world", "task", "expert", "seed")
_GYM_KEYS = ("world", "gym", "seed")
"""Settings that shape the data beside the scenario and the mixture, which are resolved first."""
_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """Everything that a collection depends on."""

    world: str = "road"
    """Simulator: ``road``, ``carla``, or ``gym:ID`` for a Gymnasium environment."""
    driver: str = "expert"
    """Who drives: a driver or a mixture, see `avtd3.collect.drivers`."""
    steps: int = 10_000
    """Steps to collect when neither steps, episodes nor seconds are asked for."""
    workers: int | None = None
    """Processes; each drives a world of its own. None: one, or one for each port of CARLA, which
    are also the most."""
    seed: int = 0
    """Seed of the plan; two machines that collect into one dataset need two seeds."""
    exploration_noise: float = 0.1
    """Standard deviation of Gaussian noise on policies that are given no other noise, in half
    ranges of each action (0.1 in Fujimoto et al. 2018)."""
    lead: CollectAheadConfig = dataclasses.field(default_factory=CollectAheadConfig)
    """Random steps at the beginning, and how far to run ahead of the learner."""
    min_free_mb: int = 500
    """Free megabytes on the disk below which the collection ends with an error."""
    name: str = ""
    """Name in the names of the segments; empty takes the machine's."""
    scenario: ScenarioConfig = dataclasses.field(default_factory=ScenarioConfig)
    """Roads, traffic, weather and route."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    """Observation, reward and ends."""
    expert: ExpertConfig = dataclasses.field(default_factory=ExpertConfig)
    """How the expert drives."""
    road: RoadConfig = dataclasses.field(default_factory=RoadConfig)
    """The embedded world."""
    gym: GymConfig = dataclasses.field(default_factory=GymConfig)
    """Gymnasium environments."""
    carla: CarlaConfig = dataclasses.field(default_factory=CarlaConfig)
    """CARLA servers."""
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)
    """What becomes of simulators that are lost."""
    writer: WriterConfig = dataclasses.field(default_factory=WriterConfig)
    """Codec and size of the segments."""

    def __post_init__(self) -> None:
        check_world(self)
        Mixture.parse(self.driver)
        check_number("steps", self.steps, minimum=1)
        check_number("seed", self.seed, maximum=MAX_SEED)
        check_number("exploration_noise", self.exploration_noise, maximum=2.0)
        check_number("min_free_mb", self.min_free_mb)

    @property
    def mixture(self) -> Mixture:
        """The drivers, with exploration noise on the policies."""
        return Mixture.parse(self.driver).exploring(self.exploration_noise)

    def plan_document(self) -> dict[str, Any]:
        """The settings that shape the data, as JSON values; their digest names the plan."""
        document = dataclasses.asdict(self)
        # Seeds follow from the size of a group too: another size is another plan.
        plan: dict[str, Any] = {"driver": self.mixture.text, "group": GROUP}
        if self.lead.random_steps:
            plan["random_steps"] = self.lead.random_steps
        if self.world.startswith(GYM):
            return {**plan, **{key: document[key] for key in _GYM_KEYS}}
        plan["scenario"] = self.scenario.plan_document()
        if self.world == "carla":
            plan["carla"] = self.carla.plan_document()
        else:
            plan["road"] = document["road"]
        return {**plan, **{key: document[key] for key in _DRIVING_KEYS}}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process is to do."""

    dataset: Path
    """The dataset; it exists."""
    config: CollectConfig
    """The collection's settings."""
    share: Share
    """The process's part of the plan."""
    policies: Path | None
    """Where policies are published."""
    open_world: WorldFactory
    """Makes the simulator."""


def collect(
    dataset: Path | str,
    config: CollectConfig,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seconds: float | None = None,
    policies: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[CollectProgress], None] = lambda _: None,
    open_world: WorldFactory = open_world,
) -> CollectReport:
    """Drive and write episodes; see `avtd3.collect.plan` for what is promised.

    Args:
        dataset: The dataset; made if it does not exist.
        config: The settings.
        steps: Steps to collect; None for one of the next two, or for ``config.steps``.
        episodes: Episodes to collect.
        seconds: Seconds of wall clock to collect for.
        policies: Directory of published policies, for drivers that are one.
        resume: Add what the dataset lacks of this plan, instead of refusing to repeat it.
        should_stop: Asked at every step; true ends the collection in good order.
        on_progress: Called a few times a second.
        open_world: Makes the simulator, in the process that uses it.

    Raises:
        ConfigError: The plan is in the dataset already, or a setting is impossible.
        SpecError: The dataset, or the newest policy, has another spec.
        DatasetError: The path is something else than a dataset.
        RoadError: The road network cannot be used.
        WorldError: A simulator, a driver or a worker process failed; what was whole is published.
        StorageError: The disk is full or not writable.
    """
    started_s = time.monotonic()
    if steps is None and episodes is None and seconds is None:
        steps = config.steps
    amount = Amount(steps=steps, episodes=episodes, seconds=seconds)
    opened = _open_dataset(Path(dataset), config, policies, open_world)
    plan_digest = digest(config.plan_document())
    held = held_episodes(opened, plan_digest)
    if held and not resume:
        raise ConfigError(
            f"dataset {dataset} already holds {len(held)} episodes of this very plan (seed "
            f"{config.seed}); use --resume to go on with it, or another --seed for new episodes"
        )
    opened.clean_staging()
    workers = count_workers(config)

    def is_over() -> bool:
        late = seconds is not None and time.monotonic() - started_s >= seconds
        return late or should_stop()

    def show(tallies: list[Tally]) -> None:
        total = Tally.total(tallies)
        elapsed_s = time.monotonic() - started_s
        on_progress(
            CollectProgress(
                tally=total,
                seconds=elapsed_s,
                fraction=amount.fraction(held, total.steps, total.episodes, elapsed_s),
                disk_free_bytes=shutil.disk_usage(opened.path).free,
            )
        )

    jobs = [
        Job(
            dataset=opened.path,
            config=config,
            share=Share(
                amount=amount,
                held=frozenset(held),
                held_steps=sum(held.values()),
                worker=worker,
                workers=workers,
            ),
            policies=policies,
            open_world=open_world,
        )
        for worker in range(workers)
    ]
    tally = Tally.total(_run(jobs, is_over, show))
    return CollectReport(
        dataset=str(dataset),
        tally=tally,
        seconds=time.monotonic() - started_s,
        workers=workers,
        held_steps=sum(held.values()),
        interrupted=should_stop(),
        plan_digest=plan_digest,
        missing=amount.missing(held, tally.steps, tally.episodes),
    )


def run_job(job: Job, should_stop: Callable[[], bool], on_tally: Callable[[Tally], None]) -> Tally:
    """Collect one process's share.

    Raises:
        Avtd3Error: As `collect`.
    """
    config, dataset = job.config, Dataset.open(job.dataset)
    environment = open_environment(config, job.open_world, job.share.worker)
    try:
        settings = LoopSettings(
            seed=config.seed,
            lead=config.lead,
            recovery=config.recovery,
            min_free_bytes=config.min_free_mb * 1_000_000,
            writer=config.writer,
            name=_segment_name(config.name, job.share),
            provenance=_provenance(config, environment),
        )
        pool = DriverPool(config.mixture, environment, job.policies)
        collector = Collector(
            dataset, environment, pool, settings, should_stop=should_stop, on_tally=on_tally
        )
        return collector.run(job.share)
    finally:
        environment.close()


def _run(
    jobs: list[Job], should_stop: Callable[[], bool], show: Callable[[list[Tally]], None]
) -> list[Tally]:
    if len(jobs) == 1:
        return [run_job(jobs[0], should_stop, lambda tally: show([tally]))]
    from avtd3.collect.workers import run_workers

    def show_known(tallies: list[Tally | None]) -> None:
        show([tally or Tally() for tally in tallies])

    return run_workers(run_job, jobs, should_stop=should_stop, on_reports=show_known)


def _open_dataset(
    path: Path, config: CollectConfig, policies: Path | None, factory: WorldFactory
) -> Dataset:
    if config.mixture.needs_policy and policies is None:
        raise ConfigError(
            f"driver {config.driver!r} needs the learner's directory; give --policies"
        )
    environment = open_environment(config, factory)
    try:
        DriverPool(config.mixture, environment, policies)  # says which drivers are not at home here
        return Dataset.create(path, environment.spec)
    finally:
        environment.close()


def _segment_name(name: str, share: Share) -> str:
    """A name that no other process of this collection has, fit for a directory's name."""
    own = _NAME_CHARACTERS.sub("-", name or platform.node()).strip("-")[:48] or "collector"
    return own if share.workers == 1 else f"{own}-{share.worker}"


def _provenance(config: CollectConfig, environment: Environment) -> dict[str, Any]:
    document = dataclasses.asdict(config)
    return {
        "config": document,
        "config_digest": digest(document),
        "plan_digest": digest(config.plan_document()),
        "simulator": environment.simulator,
    }
