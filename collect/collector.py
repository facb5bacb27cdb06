"""`collect`: from a configuration and a plan to published segments, in one process or many.

Killed at any moment, a collection leaves a sound dataset: segments appear whole or not at all, and
what was not published is collected again by ``resume``.
"""

import dataclasses
import platform
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avtd3.collect.arena import Arena
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number
from avtd3.collect.drivers import Mixture
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.gym_world import GYM, GymConfig
from avtd3.collect.lead import LeadConfig
from avtd3.collect.loop import Collector, LoopSettings
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import GROUP, MAX_SEED, Amount, Share, digest, held_episodes
from avtd3.collect.pool import DriverPool
from avtd3.collect.progress import CollectProgress, CollectReport, Tally
from avtd3.collect.recovery import RecoveryConfig
from avtd3.collect.sim.world import RoadConfig
from avtd3.collect.worlds import WorldFactory, check_world, count_workers, open_arena, open_world
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.writer import WriterConfig

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
    lead: LeadConfig = dataclasses.field(default_factory=LeadConfig)
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
    arena = open_arena(config, job.open_world, job.share.worker)
    try:
        settings = LoopSettings(
            seed=config.seed,
            lead=config.lead,
            recovery=config.recovery,
            min_free_bytes=config.min_free_mb * 1_000_000,
            writer=config.writer,
            name=_segment_name(config.name, job.share),
            provenance=_provenance(config, arena),
        )
        pool = DriverPool(config.mixture, arena, job.policies)
        collector = Collector(
            dataset, arena, pool, settings, should_stop=should_stop, on_tally=on_tally
        )
        return collector.run(job.share)
    finally:
        arena.close()


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
    arena = open_arena(config, factory)
    try:
        DriverPool(config.mixture, arena, policies)  # says which drivers are not at home here
        return Dataset.create(path, arena.spec)
    finally:
        arena.close()


def _segment_name(name: str, share: Share) -> str:
    """A name that no other process of this collection has, fit for a directory's name."""
    own = _NAME_CHARACTERS.sub("-", name or platform.node()).strip("-")[:48] or "collector"
    return own if share.workers == 1 else f"{own}-{share.worker}"


def _provenance(config: CollectConfig, arena: Arena) -> dict[str, Any]:
    document = dataclasses.asdict(config)
    return {
        "config": document,
        "config_digest": digest(document),
        "plan_digest": digest(config.plan_document()),
        "simulator": arena.simulator,
    }
