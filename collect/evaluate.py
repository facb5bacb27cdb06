"""`Evaluator`: one world on which a policy or a driver drives held-out episodes."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number
from avtd3.collect.drivers import GRAMMAR, Mixture, PolicyDriver
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.environment import Environment
from avtd3.collect.gym_env import GymConfig
from avtd3.collect.leaderboard import CURRENT, penalty_table, score_route
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import MAX_SEED, episode_generator, evaluation_seed
from avtd3.collect.reports import Recovery, RecoveryConfig, Skipped, tell_skipped
from avtd3.collect.rollout import Rollout, Transition
from avtd3.collect.scores import EpisodeScore, Scorer, summarise
from avtd3.collect.sim.world import RoadConfig
from avtd3.collect.worlds import (
    WorldFactory,
    check_world,
    count_workers,
    open_environment,
    open_world,
)
from avtd3.store.errors import CheckpointError, ConfigError, RouteError, WorldLost
from avtd3.store.spec import EpisodeSpec

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Everything that an evaluation depends on, apart from who drives."""

    world: str = "road"
    """Simulator: ``road``, ``carla``, or ``gym:ID`` for a Gymnasium environment."""
    episodes: int = 20
    """Held-out episodes."""
    workers: int | None = None
    """Processes; the scores do not depend on it. None: one, or one for each port of CARLA, which
    are also the most."""
    seed: int = 0
    """Seed of the evaluation; the same seed meets the same roads."""
    penalties: str = CURRENT
    """Table of penalties of the driving score: leaderboard-1.0, leaderboard-2.0 or
    leaderboard-2.1 of CARLA, see `avtd3.collect.leaderboard`."""
    scenario: ScenarioConfig = dataclasses.field(default_factory=ScenarioConfig)
    """Roads, traffic, weather and route."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    """Observation, reward and ends; the observation must be the policy's."""
    expert: ExpertConfig = dataclasses.field(default_factory=ExpertConfig)
    """How the expert drives, where it is the one to be evaluated."""
    road: RoadConfig = dataclasses.field(default_factory=RoadConfig)
    """The embedded world."""
    gym: GymConfig = dataclasses.field(default_factory=GymConfig)
    """Gymnasium environments."""
    carla: CarlaConfig = dataclasses.field(default_factory=CarlaConfig)
    """CARLA servers."""
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)
    """What becomes of simulators that are lost."""

    def __post_init__(self) -> None:
        check_world(self)
        penalty_table(self.penalties)
        check_number("episodes", self.episodes, minimum=1, maximum=1_000_000)
        check_number("seed", self.seed, maximum=MAX_SEED)


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationEpisode:
    """One episode about to be driven."""

    rollout: Rollout
    """The episode."""
    transitions: Iterator[Transition]
    """Its steps, driven as they are asked for."""
    driver: str
    """Who drives."""


class Evaluator:
    """One environment in which a subject drives held-out episodes.

    Args:
        environment: Where the episodes happen.
        config: The evaluation's settings.
        subject: Who drives, see `evaluate`.
    """

    def __init__(self, environment: Environment, config: EvaluateConfig, subject: str) -> None:
        self._arena, self._config = environment, config
        self.policy, self.subject = _load_policy(subject, environment.spec)
        self._mixture = _mixture(subject) if self.policy is None else Mixture.parse("policy")
        driver = PolicyDriver(self.policy)
        self.steps = 0
        """Steps driven so far, those of lost episodes included."""
        self._drivers = [spec.build(environment, driver) for spec in self._mixture.drivers]

    def begin(self, index: int) -> EvaluationEpisode:
        """Begin an episode by its number in the evaluation."""
        seed = evaluation_seed(self._config.seed, index)
        rng = episode_generator(seed)
        place = self._mixture.draw(rng)
        name = self._mixture.drivers[place].name
        rollout = Rollout(self._arena, seed, index)
        return EvaluationEpisode(rollout, rollout.drive(self._drivers[place], name, rng), name)

    def score(self, index: int, should_stop: Callable[[], bool]) -> EpisodeScore | None:
        """Drive an episode to its end; None if it was stopped before.

        Raises:
            WorldError: The simulator or the driver failed.
        """
        episode, scorer = self.begin(index), Scorer()
        reason = ""
        for transition in episode.transitions:
            scorer.watch(transition)
            self.steps += 1
            reason = transition.step.reason
            if not reason and should_stop():
                return None
        start = episode.rollout.start
        return scorer.score(
            index=index,
            seed=episode.rollout.seed,
            scenario=self._arena.scenario,
            town=start.town,
            weather=start.weather,
            driver=episode.driver,
            end_reason=reason,
            drive=self._arena.measures(),
            route=score_route(self._arena.events(), penalty_table(self._config.penalties)),
        )


def _load_policy(subject: str, spec: EpisodeSpec) -> "tuple[Policy | None, str]":
    """The policy that a subject names, with the path of its very file; None for a driver."""
    path = Path(subject)
    if not path.exists():
        return None, subject
    from avtd3.learn.policy import Policy
    from avtd3.learn.policy_store import PolicyStore

    if path.is_file():
        return Policy.load(path, spec=spec), subject
    policy = PolicyStore(path).latest(spec)
    if policy is None:
        raise CheckpointError(
            f"{path} holds no policy that can be read; give the directory that a learner publishes "
            "into (avtd3 learn --policies), or one of its files"
        )
    # The learner may publish the next one meanwhile: every worker must drive this one.
    return policy, str(path / f"policy-{policy.version:08d}.safetensors")


def _mixture(subject: str) -> Mixture:
    mixture = None
    with contextlib.suppress(ConfigError):
        mixture = Mixture.parse(subject)
    if mixture is None or mixture.needs_policy:
        raise ConfigError(
            f"{subject!r} is neither a policy's file, nor a directory of policies, nor a driver "
            f"({GRAMMAR}); policies are named by their path"
        )
    return mixture


@contextlib.contextmanager
def one_thread(policy: "Policy | None") -> Iterator[None]:
    """Keep torch to one thread while a policy drives.

    Sums in another order would let the scores depend on the number of cores and of workers.
    """
    if policy is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateProgress:
    """Where an evaluation stands."""

    done: int
    """Episodes driven."""
    episodes: int
    """Episodes to drive."""
    return_mean: float
    """Mean return of those."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, in [0, 1]."""
        return self.done / self.episodes

    def line(self) -> str:
        """Where it stands, in one line."""
        return f"{self.done} of {self.episodes} episodes, mean return {self.return_mean:.1f}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """What an evaluation has found."""

    driver: str
    """Who drove, as asked for."""
    policy_version: int | None
    """Version of the policy, if one drove."""
    policy_digest: str
    """SHA-256 of its file."""
    world: str
    """Where, by name."""
    setting: str
    """What a person calls it."""
    scenario: int
    """Number of the scenario, of a file's first route; 0 where there are none."""
    scenario_file: str | None
    """The file whose routes were driven by turns; None where roads were drawn."""
    action_names: tuple[str, ...]
    """Name of each action."""
    seed: int
    """Seed of the evaluation."""
    scores: tuple[EpisodeScore, ...]
    """One row per episode, in order."""
    seconds: float
    """Wall clock it took."""
    interrupted: bool
    """Whether it was stopped before its last episode."""
    skipped: tuple[Skipped, ...] = ()
    """Episodes that could not be driven, however often it was tried."""
    lost_workers: tuple[str, ...] = ()
    """Workers that gave up because their simulator is gone for good, and why."""

    @property
    def failure(self) -> str:
        """Why simulators kept episodes from being driven, or an empty string."""
        causes = list(self.lost_workers)
        if self.skipped:
            causes.append(f"{len(self.skipped)} of the episodes skipped")
        return "; ".join(causes)

    def document(self) -> dict[str, Any]:
        """The report as JSON values; the metrics are those of `avtd3.collect.scores.summarise`."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        rows = [score.row() for score in known.pop("scores")]
        names = known.pop("action_names")
        known["skipped"] = [episode.document() for episode in self.skipped]
        known["lost_workers"] = list(self.lost_workers)
        return {**summarise(self.scores, names), **known, "rows": rows}

    def summary(self) -> str:
        """The report for a person."""
        found = summarise(self.scores, self.action_names)
        # Roads that a file fixes are the same for every seed.
        kind = f"episodes of {self.scenario_file}" if self.scenario_file else "held-out episodes"
        ends = ", ".join(f"{count} {reason}" for reason, count in found["end_reasons"].items())
        version = "" if self.policy_version is None else f" (version {self.policy_version})"
        lines = [
            f"{self.driver}{version}, {self.setting}, {found['episodes']} {kind}",
            *(_driving_lines(found) if "success_rate" in found else ()),
            f"return          {found['return_mean']:.1f} (95 %: "
            f"{found['return_interval'][0]:.1f} to {found['return_interval'][1]:.1f})",
            f"length          {found['episode_length']:.1f} steps (95 %: "
            f"{found['length_interval'][0]:.1f} to {found['length_interval'][1]:.1f})",
            f"ends            {ends}",
            *tell_skipped(self.skipped),
        ]
        return "\n".join(lines)


def _driving_lines(found: Mapping[str, Any]) -> Iterator[str]:
    low, high = found["success_interval"]
    yield f"success         {found['success_rate']:.0%} (95 %: {low:.0%} to {high:.0%})"
    yield f"route completed {found['route_completion']:.0%}, {found['distance_km']:.2f} km in all"
    if "scores" in found:
        score, version = found["scores"]["driving_score"], found["scores"]["penalties"]
        yield f"driving score   {score:.1f} of 100 (CARLA {version})"
    yield f"collisions      {found['collisions_per_km']:.2f} per km"
    yield f"lane departures {found['lane_departures_per_km']:.2f} per km"
    yield f"off the centre  {found['lateral_deviation_m']:.2f} m"
    yield f"speed           {3.6 * found['speed_mps']:.1f} km/h"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process is to drive."""

    worker: int
    """Number of the process, from 0."""
    config: EvaluateConfig
    """The evaluation's settings."""
    subject: str
    """Who drives: a path or a driver, see `evaluate`."""
    indices: tuple[int, ...]
    """Which episodes."""
    open_world: WorldFactory
    """Makes the simulator."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process has driven so far."""

    scores: tuple[EpisodeScore, ...] = ()
    """One row per episode."""
    skipped: tuple[Skipped, ...] = ()
    """Episodes that could not be driven."""
    lost: str = ""
    """Why the process gave up, or an empty string."""


def evaluate(
    subject: str | Path,
    config: EvaluateConfig,
    *,
    gif: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[EvaluateProgress], None] = lambda _: None,
    open_world: WorldFactory = open_world,
) -> EvaluateReport:
    """Drive held-out episodes and measure.

    Args:
        subject: Who drives: a policy's file, a directory of policies (the newest is taken), or a
            driver as for collecting.
        config: The settings.
        gif: Where to animate the first episode, which is driven once more for this.
        should_stop: Asked at every step; true ends the evaluation after what was driven.
        on_progress: Called after every episode.
        open_world: Makes the simulator, in the process that uses it.

    Raises:
        ConfigError: The subject is neither a path nor a driver.
        CheckpointError: The policy is torn, or the directory holds none.
        SpecError: The policy observes something else than the task's vector and camera.
        WorldError: The simulator, the driver or a worker process failed; a simulator that is lost
            for good is an error only if no episode at all was driven, see `EvaluateReport.failure`.
    """
    started_s = time.monotonic()
    environment = open_environment(config, open_world, render=gif is not None)
    try:
        evaluator = Evaluator(environment, config, str(subject))
        if gif is not None:
            from avtd3.collect.film import film

            with one_thread(evaluator.policy):
                film(environment, evaluator.begin(0), gif)
    finally:
        environment.close()
    every, workers = range(config.episodes), min(count_workers(config), config.episodes)
    jobs = [
        Job(
            worker=worker,
            config=config,
            subject=evaluator.subject,
            indices=tuple(every[worker::workers]),
            open_world=open_world,
        )
        for worker in range(workers)
    ]

    def show(parts: list[Part | None]) -> None:
        scores = [score for part in parts if part for score in part.scores]
        mean = sum(score.episode_return for score in scores) / max(len(scores), 1)
        on_progress(EvaluateProgress(done=len(scores), episodes=config.episodes, return_mean=mean))

    parts = _run(jobs, should_stop, show)
    scores = sorted((s for part in parts for s in part.scores), key=lambda score: score.index)
    lost = tuple(part.lost for part in parts if part.lost)
    if lost and not scores:
        raise WorldLost("; ".join(lost))
    skipped = sorted((e for part in parts for e in part.skipped), key=lambda e: e.index)
    return EvaluateReport(
        driver=str(subject),
        policy_version=evaluator.policy.version if evaluator.policy else None,
        policy_digest=evaluator.policy.digest if evaluator.policy else "",
        world=environment.name,
        setting=environment.setting,
        scenario=environment.scenario,
        scenario_file=config.scenario.file,
        action_names=environment.spec.action_names,
        seed=config.seed,
        scores=tuple(scores),
        seconds=time.monotonic() - started_s,
        interrupted=should_stop() and len(scores) < config.episodes,
        skipped=tuple(skipped),
        lost_workers=lost,
    )


def _run(
    jobs: list[Job], should_stop: Callable[[], bool], show: Callable[[list[Part | None]], None]
) -> list[Part]:
    if len(jobs) == 1:
        return [run_job(jobs[0], should_stop, lambda part: show([part]))]
    from avtd3.collect.workers import run_workers

    return run_workers(run_job, jobs, should_stop=should_stop, on_reports=show)


def run_job(job: Job, should_stop: Callable[[], bool], report: Callable[[Part], None]) -> Part:
    """Drive one process's episodes; an episode that is stopped is not scored.

    An episode in which the simulator is lost is driven again from its beginning.

    Raises:
        Avtd3Error: As `evaluate`.
    """
    environment = open_environment(job.config, job.open_world, job.worker)
    part, recovery = Part(), Recovery(job.config.recovery)
    try:
        evaluator = Evaluator(environment, job.config, job.subject)
        with one_thread(evaluator.policy):
            for index in job.indices:
                driven = _drive(evaluator, index, recovery, should_stop)
                if driven is None:
                    break
                part = _with(part, driven)
                report(part)
    except WorldLost as error:
        part = dataclasses.replace(part, lost=f"worker {job.worker} gave up: {error}")
    finally:
        environment.close()
    return part


def _drive(
    evaluator: Evaluator, index: int, recovery: Recovery, should_stop: Callable[[], bool]
) -> EpisodeScore | Skipped | None:
    """Score an episode, however often it must be begun; None if it was stopped."""
    while not should_stop():
        try:
            return evaluator.score(index, should_stop)
        except WorldLost as error:
            skipped = recovery.lost(index, error, evaluator.steps)
            if skipped is not None:
                return skipped
        except RouteError as error:
            return recovery.unplanned(index, error, evaluator.steps)
    return None


def _with(part: Part, driven: EpisodeScore | Skipped) -> Part:
    if isinstance(driven, Skipped):
        return dataclasses.replace(part, skipped=(*part.skipped, driven))
    return dataclasses.replace(part, scores=(*part.scores, driven))
