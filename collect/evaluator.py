"""`evaluate`: drive held-out episodes with a policy or a driver, and measure."""

import contextlib
import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtd3.collect.checks import check_number
from avtd3.collect.cluster import open_cluster, warm_environment
from avtd3.collect.drivers import PolicyDriver
from avtd3.collect.environment import SUCCESS_REASON, Environment
from avtd3.collect.leaderboard import CURRENT, penalty_table, score_route
from avtd3.collect.mixture import GRAMMAR, Mixture
from avtd3.collect.plan import MAX_SEED, UNIT, episode_generator, evaluation_seed
from avtd3.collect.recovery import Recovery, Skipped, describe_skipped
from avtd3.collect.rollout import Rollout
from avtd3.collect.scores import EpisodeScore, Scorer, summarise
from avtd3.collect.workers import run_jobs
from avtd3.collect.worlds import EnvironmentConfig, WorldFactory, open_environment, open_world
from avtd3.store.cluster import WorkerContext, check_shared
from avtd3.store.errors import CheckpointError, ConfigError, RoadError, WorldLost
from avtd3.store.files import exists, remote_url, show_path
from avtd3.store.remote.background import local_policy
from avtd3.store.render.text import join_lines, plural
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Step

if TYPE_CHECKING:
    from PIL import Image

    from avtd3.learn.policy import Policy

FILM_EVERY = 2  # steps per picture: 10 pictures per second at 20 Hz
FILM_PICTURES = 250  # 25 seconds of driving, then the last step
FILM_STILLS = 15  # how often the last picture is shown again
SHEET_PX = 337
"""Width of a picture on a contact sheet."""
SHEET_STEP = 60
"""Step whose picture represents an episode on a contact sheet, if the episode is long enough."""
PLACE = ("town", "weather")  # attributes that say where an episode was driven


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(EnvironmentConfig):
    """All settings of an evaluation, except who drives.

    Example:
        >>> EvaluateConfig(episodes=50, world="gym:Hopper-v5").episodes
        50
    """

    episodes: int = 20
    """Held-out episodes."""
    seed: int = 0
    """Seed of the evaluation; the same seed gives the same episodes."""
    penalties: str = CURRENT
    """Penalty table of the driving score: leaderboard-1.0, leaderboard-2.0 or leaderboard-2.1 of
    CARLA, see `avtd3.collect.leaderboard`."""

    def __post_init__(self) -> None:
        EnvironmentConfig.__post_init__(self)  # super() does not know a class with slots
        penalty_table(self.penalties)
        check_number("episodes", self.episodes, minimum=1, maximum=1_000_000)
        check_number("seed", self.seed, maximum=MAX_SEED)


class Evaluator:
    """Drives held-out episodes with one subject in one environment.

    `steps` counts all steps driven so far, those of lost episodes included.
    """

    def __init__(self, environment: Environment, config: EvaluateConfig, subject: str) -> None:
        self.environment, self._config, self.steps = environment, config, 0
        self.policy, self.subject = _load_policy(subject, environment.spec)
        self._mixture = _parse_subject(subject) if self.policy is None else Mixture.parse("policy")
        driver, hold = PolicyDriver(self.policy, environment.spec), config.hold_actions
        self._drivers = [spec.build(environment, driver, hold) for spec in self._mixture.drivers]

    def start(self, index: int) -> tuple[Rollout, Iterator[Step], str]:
        """Start an episode by its number; return it, its steps, and the driver's name."""
        seed = evaluation_seed(self._config.seed, index)
        rng = episode_generator(seed)
        place = self._mixture.sample(rng)
        name = self._mixture.drivers[place].name
        rollout = Rollout(self.environment, seed, index)
        return rollout, rollout.drive(self._drivers[place], name, rng), name

    def score(self, index: int, should_stop: Callable[[], bool]) -> EpisodeScore | None:
        """Drive an episode to its end and score it; return None if it was stopped before."""
        rollout, steps, driver = self.start(index)
        scorer, environment, reason = Scorer(), self.environment, ""
        for step in steps:
            scorer.record(step)
            self.steps += 1
            reason = step.end_reason
            if not step.is_last and should_stop():
                return None
        attributes = rollout.start.attributes
        return scorer.score(
            index=index,
            seed=rollout.seed,
            scenario=environment.scenario,
            **{name: str(attributes.get(name, "")) for name in PLACE},
            driver=driver,
            end_reason=reason,
            measures=environment.measures(),
            route=score_route(environment.events(), penalty_table(self._config.penalties)),
        )

    def film(self, index: int, path: Path, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Drive an episode and write it as a GIF, which ends with a still of its outcome."""
        from avtd3.store.render.media import BAD, GOOD, with_legend, write_gif

        (_, steps, driver), environment = self.start(index), self.environment

        def pictures() -> "Iterator[Image.Image]":
            for number, step in enumerate(steps):
                is_filmed = number % FILM_EVERY == 0 and number < FILM_EVERY * FILM_PICTURES
                is_over = step.is_last or should_stop()
                if is_filmed or is_over:
                    picture = environment.picture(step.action, driver)
                    yield with_legend(picture, environment.legend)
                if is_over:
                    break
            yield from itertools.repeat(with_legend(picture, environment.legend), FILM_STILLS)

        with use_one_thread(self.policy):
            period_s = FILM_EVERY * environment.spec.control_period_s
            colours = [GOOD, BAD, *(colour for colour, _ in environment.legend)]
            write_gif(pictures(), path, period_s=period_s, colours=colours)

    def film_first(self, path: Path, should_stop: Callable[[], bool]) -> None:
        """Film the first episode whose map and route can be used."""
        last = self._config.episodes - 1
        for index in range(last):
            with contextlib.suppress(RoadError):
                self.film(index, path, should_stop)
                return
        self.film(last, path, should_stop)

    def photograph(self, index: int, step_index: int) -> "tuple[Image.Image, str]":
        """Drive an episode up to a step, or to its end; return a picture and the place's name."""
        rollout, steps, _ = self.start(index)
        with use_one_thread(self.policy):
            *_, step = itertools.islice(steps, step_index + 1)
        attributes = rollout.start.attributes
        place = ", ".join(str(attributes[name]) for name in PLACE if name in attributes)
        return self.environment.picture(step.action, ""), place


def _load_policy(subject: str, spec: EpisodeSpec) -> "tuple[Policy | None, str]":
    """Load the policy that a subject names, with the path of its file; None for a driver."""
    path = Path(subject)
    if not exists(path):
        return None, subject
    from avtd3.learn.policy import Policy
    from avtd3.learn.policy_store import PolicyStore

    if path.is_file():
        return Policy.load(path, spec=spec), subject
    policy = PolicyStore(path).latest(spec)
    if policy is None:
        raise CheckpointError(
            f"{path} holds no readable policy; give the directory that a learner publishes "
            "into (avtd3 learn --policies), or one of its files"
        )
    # The learner may publish another one meanwhile: every worker must use this one.
    return policy, str(path / f"policy-{policy.version:08d}.safetensors")


def _parse_subject(subject: str) -> Mixture:
    with contextlib.suppress(ConfigError):
        mixture = Mixture.parse(subject)
        if not mixture.needs_policy:
            return mixture
    raise ConfigError(
        f"{subject!r} is neither a policy's file, nor a directory of policies, nor a driver "
        f"({GRAMMAR}); name a policy by its path"
    )


@contextlib.contextmanager
def use_one_thread(policy: "Policy | None") -> Iterator[None]:
    """Use one thread of torch: scores must not depend on the number of cores."""
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
    """The state of a running evaluation."""

    done: int
    episodes: int
    return_mean: float

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done, in [0, 1]."""
        return self.done / self.episodes

    def line(self) -> str:
        """Return the state as one line of text."""
        return (
            f"{self.done} of {plural(self.episodes, 'episode')}, mean return {self.return_mean:.1f}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """The result of `evaluate`.

    Example:
        >>> report = EvaluateReport(
        ...     driver="random", policy_version=None, policy_digest="", world="road",
        ...     setting="scenario 0", scenario=0, scenario_file=None, action_names=(), seed=0,
        ...     scores=(), seconds=1.0, interrupted=True,
        ... )
        >>> report.document()["episodes"]
        0
    """

    driver: str
    """Who drove, as given by the user."""
    policy_version: int | None
    """Version of the policy, if one drove."""
    policy_digest: str
    """SHA-256 of the policy's file; empty without a policy."""
    world: str
    """Name of the world."""
    setting: str
    """Name of the setting, for people."""
    scenario: int
    """Number of the scenario, or of a file's first route; 0 without scenarios."""
    scenario_file: str | None
    """The file whose routes were driven in turn; None for generated roads."""
    action_names: tuple[str, ...]
    """Name of each action."""
    seed: int
    """Seed of the evaluation."""
    scores: tuple[EpisodeScore, ...]
    """One score per episode, in order."""
    seconds: float
    """Seconds that it took."""
    interrupted: bool
    """Whether it was stopped before its last episode."""
    skipped: tuple[Skipped, ...] = ()
    """Episodes that could not be driven after several attempts."""
    lost_workers: tuple[str, ...] = ()
    """Workers that stopped because their simulator did not come back, and why."""
    target_speed_mps: float | None = None
    """Speed that the driving task rewards most (30 km/h); None for other tasks."""

    @property
    def failure(self) -> str:
        """Why episodes are missing because of simulators; empty if none are."""
        skipped = [f"{len(self.skipped)} of the episodes skipped"] if self.skipped else []
        return "; ".join([*self.lost_workers, *skipped])

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values: `summarise` of the scores, and a row for each."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        rows = [score.row() for score in known.pop("scores")]
        names = known.pop("action_names")
        known["skipped"] = [dataclasses.asdict(episode) for episode in self.skipped]
        known["lost_workers"] = list(self.lost_workers)
        return {**self._summarise(names), **known, "rows": rows}

    def _summarise(self, action_names: tuple[str, ...]) -> dict[str, Any]:
        """Return `summarise` of the scores, with the mean speed as a share of the target."""
        found = summarise(self.scores, action_names)
        if self.target_speed_mps and "speed_mps" in found:
            share = found["speed_mps"] / self.target_speed_mps
            found |= {"target_speed_mps": self.target_speed_mps, "speed_of_target": share}
        return found

    def summary(self) -> str:
        """Return the report as text."""
        found = self._summarise(self.action_names)
        # The roads of a scenario file are the same for every seed.
        kind = f"episodes of {self.scenario_file}" if self.scenario_file else "held-out episodes"
        ends = ", ".join(f"{count} {reason}" for reason, count in found["end_reasons"].items())
        version = "" if self.policy_version is None else f" (version {self.policy_version})"
        lines = [
            f"{self.driver}{version}, {self.setting}, {found['episodes']} {kind}",
            *(_driving_lines(found) if "success_rate" in found else _measure_lines(found)),
            f"return          {found['return_mean']:.1f} (95 %: "
            f"{found['return_interval'][0]:.1f} to {found['return_interval'][1]:.1f})",
            f"length          {found['episode_length']:.1f} steps (95 %: "
            f"{found['length_interval'][0]:.1f} to {found['length_interval'][1]:.1f})",
            f"ends            {ends}",
            *describe_skipped(self.skipped),
        ]
        return join_lines(lines)


def _measure_lines(found: Mapping[str, Any]) -> Iterator[str]:
    for name, mean in found.get("measures", {}).items():
        yield f"{name:15} {mean:.3g}"


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
    speed = f"{3.6 * found['speed_mps']:.1f} km/h"
    if "speed_of_target" in found:
        target = f"{3.6 * found['target_speed_mps']:.0f} km/h"
        speed += f", {found['speed_of_target']:.0%} of the target of {target}"
    yield f"speed           {speed}"


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateJob:
    """The work of one process."""

    worker: int
    config: EvaluateConfig
    subject: str
    indices: tuple[int, ...]
    open_world: WorldFactory


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePart:
    """What one process has driven so far."""

    scores: tuple[EpisodeScore, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    lost: str = ""


def evaluate(
    subject: str | Path,
    config: EvaluateConfig | None = None,
    *,
    gif: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[EvaluateProgress], None] = lambda _: None,
    open_world: WorldFactory = open_world,
    scheduler: str | None = None,
) -> EvaluateReport:
    """Drive held-out episodes and measure how well.

    Args:
        subject: Who drives: a policy's file, a directory of policies (the newest one drives), the
            URL of either, or a driver as for collecting.
        config: The settings; None for the defaults.
        gif: Path of an animation of the first episode, which is driven once more for it.
        should_stop: Called at every step; true ends the evaluation.
        on_progress: Called after every episode.
        open_world: Makes the world, in the process that uses it; the default makes the one that the
            settings name.
        scheduler: Address of a Dask scheduler whose workers drive, see `avtd3.store.cluster`;
            None for this process and ``config.workers`` of its own.

    Raises:
        ConfigError: If the subject is neither a path nor a driver.
        CheckpointError: If the policy is truncated, or the directory has none.
        UnreachableError: If its URL cannot be reached.
        SpecError: If the policy was trained with another observation.
        WorldError: If the simulator, the driver or a worker process failed. A simulator that does
            not come back is an error only if no episode was driven, see `EvaluateReport.failure`.

    Example:
        >>> from avtd3.collect import EvaluateConfig, ScenarioConfig, evaluate
        >>> scenario = ScenarioConfig(number=1, route_length_m=30.0)  # empty country roads
        >>> report = evaluate("expert", EvaluateConfig(scenario=scenario, episodes=1))
        >>> report.document()["success_rate"]
        1.0
        >>> policies = "/path/to/policies"  # evaluate(policies) evaluates the newest policy there
    """
    started_s, config = time.monotonic(), config or EvaluateConfig()
    if scheduler is not None and (url := remote_url(subject)) is not None:
        check_shared(url)

    def show(parts: list[EvaluatePart | None]) -> None:
        scores = [score for part in parts if part for score in part.scores]
        mean = sum(score.episode_return for score in scores) / max(len(scores), 1)
        on_progress(EvaluateProgress(done=len(scores), episodes=config.episodes, return_mean=mean))

    with local_policy(subject) as local:
        with open_environment(config, open_world, render=gif is not None) as environment:
            evaluator = Evaluator(environment, config, str(local))
            if gif is not None:
                evaluator.film_first(gif, should_stop)
        job = EvaluateJob(0, config, evaluator.subject, tuple(range(config.episodes)), open_world)
        if scheduler is None:
            parts, failed = run_jobs(run_job, _split(job), should_stop=should_stop, on_reports=show)
        else:
            job = dataclasses.replace(job, subject=_shared_subject(subject, evaluator.subject))
            parts, failed = _drive_units(scheduler, job, should_stop, show)
    report = _report(evaluator, config, [part or EvaluatePart() for part in parts], failed)
    return dataclasses.replace(
        report,
        driver=show_path(subject),
        seconds=time.monotonic() - started_s,
        interrupted=should_stop() and len(report.scores) < config.episodes,
    )


def _report(
    evaluator: Evaluator, config: EvaluateConfig, parts: list[EvaluatePart], failed: list[str]
) -> EvaluateReport:
    environment, policy = evaluator.environment, evaluator.policy
    scores = sorted((s for part in parts for s in part.scores), key=lambda score: score.index)
    lost = (*(part.lost for part in parts if part.lost), *failed)
    if lost and not scores:
        raise WorldLost("; ".join(lost))
    skipped = sorted((e for part in parts for e in part.skipped), key=lambda e: e.index)
    is_driving = bool(scores) and "speed_mps" in scores[0].measures
    return EvaluateReport(
        driver=evaluator.subject,
        policy_version=policy.version if policy else None,
        policy_digest=policy.digest if policy else "",
        world=environment.name,
        setting=environment.setting,
        scenario=environment.scenario,
        scenario_file=config.scenario.file,
        action_names=environment.spec.action_names,
        seed=config.seed,
        scores=tuple(scores),
        seconds=0.0,
        interrupted=False,
        skipped=tuple(skipped),
        lost_workers=lost,
        target_speed_mps=config.task.reward.target_speed_mps if is_driving else None,
    )


def _split(job: EvaluateJob) -> list[EvaluateJob]:
    """Divide a job among the worker processes."""
    workers = min(job.config.worker_count, len(job.indices))
    return [
        dataclasses.replace(job, worker=worker, indices=job.indices[worker::workers])
        for worker in range(workers)
    ]


def _drive_units(
    scheduler: str,
    job: EvaluateJob,
    should_stop: Callable[[], bool],
    show: Callable[[list[EvaluatePart | None]], None],
) -> tuple[list[EvaluatePart | None], list[str]]:
    """Drive a job on a Dask cluster, some episodes at a time."""
    name = f"avtd3-evaluate-{secrets.token_hex(8)}"
    units = [
        (f"{name}-{first}", dataclasses.replace(job, indices=job.indices[first : first + UNIT]))
        for first in range(0, len(job.indices), UNIT)
    ]
    with open_cluster(scheduler) as cluster:
        return cluster.run(
            _run_unit, units, should_stop=should_stop, on_results=lambda parts, _: show(parts)
        )


def _shared_subject(named: str | Path, found: str) -> str:
    """Return a named subject, found as a driver or a file here, as workers of a cluster find it."""
    if (url := remote_url(named)) is not None:
        return url if url.endswith(".safetensors") else f"{url}/{Path(found).name}"
    return str(Path(found).absolute()) if exists(found) else found


def _run_unit(job: EvaluateJob, context: WorkerContext) -> EvaluatePart:
    """Drive a unit in a worker of a Dask cluster."""
    with (
        local_policy(job.subject) as subject,
        warm_environment(job.config, job.open_world) as environment,
    ):
        job = dataclasses.replace(job, subject=str(subject))
        part = _drive_job(job, environment, context.should_stop, lambda _: None)
        if part.lost:
            raise WorldLost(part.lost)  # the next unit gets a new world
    return part


def run_job(
    job: EvaluateJob, should_stop: Callable[[], bool], report: Callable[[EvaluatePart], None]
) -> EvaluatePart:
    """Drive one process's episodes; an interrupted episode is not scored."""
    with open_environment(job.config, job.open_world, job.worker) as environment:
        return _drive_job(job, environment, should_stop, report)


def _drive_job(
    job: EvaluateJob,
    environment: Environment,
    should_stop: Callable[[], bool],
    report: Callable[[EvaluatePart], None],
) -> EvaluatePart:
    part, recovery = EvaluatePart(), Recovery(job.config.recovery)
    evaluator = Evaluator(environment, job.config, job.subject)
    try:
        with use_one_thread(evaluator.policy):
            for index in job.indices:
                driven = _drive(evaluator, index, recovery, should_stop)
                if driven is None:
                    break
                if isinstance(driven, Skipped):
                    part = dataclasses.replace(part, skipped=(*part.skipped, driven))
                else:
                    part = dataclasses.replace(part, scores=(*part.scores, driven))
                report(part)
    except WorldLost as error:
        part = dataclasses.replace(part, lost=f"worker {job.worker} stopped: {error}")
    return part


def _drive(
    evaluator: Evaluator, index: int, recovery: Recovery, should_stop: Callable[[], bool]
) -> EpisodeScore | Skipped | None:
    """Score an episode, with as many attempts as it needs; return None if it was stopped."""
    scenarios = evaluator.environment.scenario_count
    while not should_stop():
        try:
            return evaluator.score(index, should_stop)
        except WorldLost as error:
            if skipped := recovery.record_loss(index, error, evaluator.steps):
                return skipped
        except RoadError as error:
            return recovery.record_refusal(index, error, evaluator.steps, scenarios)
    return None


def film_held_out(subject: str, config: EvaluateConfig, index: int, path: Path) -> None:
    """Write one episode of an evaluation as a GIF."""
    with open_environment(config, open_world, render=True) as environment:
        Evaluator(environment, config, subject).film(index, path)


def sheet_held_out(
    subject: str,
    config: EvaluateConfig,
    path: Path,
    *,
    scores: Sequence[EpisodeScore],
    should_stop: Callable[[], bool],
) -> None:
    """Write a contact sheet with one picture of each episode of an evaluation, and its outcome."""
    from PIL import Image

    from avtd3.store.render.media import BAD, GOOD, INK, write_contact_sheet

    pictures: list[Image.Image] = []
    captions, inks = [], []
    known = {score.index: score for score in scores}
    with open_environment(config, open_world, render=True) as environment:
        evaluator = Evaluator(environment, config, subject)
        for index in range(config.episodes):
            if should_stop() and pictures:
                break
            try:
                picture, place = evaluator.photograph(index, SHEET_STEP)
            except RoadError:  # the evaluation has skipped it
                continue
            size = (SHEET_PX, round(SHEET_PX * picture.height / picture.width))
            pictures.append(picture.resize(size, Image.Resampling.LANCZOS))
            score = known.get(index)
            captions.append(f"{index}: {place}\n{_outcome(score, environment.spec)}")
            is_success = score is not None and score.end_reason == SUCCESS_REASON
            inks.append(INK if score is None else GOOD if is_success else BAD)
        legend, count = environment.legend, sum(ink == GOOD for ink in inks)
    title = f"{subject}: {count} of {plural(len(pictures), 'road')} driven to the goal"
    title += f"; each picture is at step {SHEET_STEP} or the last one"
    write_contact_sheet(pictures, captions, path, columns=4, title=title, inks=inks, legend=legend)


def _outcome(score: EpisodeScore | None, spec: EpisodeSpec) -> str:
    """Describe in a few words how an episode ended."""
    if score is None:
        return "not scored"
    text = f"{score.end_reason.replace('_', ' ')} after {score.steps * spec.control_period_s:.1f} s"
    completion = score.measures.get("route_completion")
    shown = "" if completion is None else f", {completion:.0%} of the route"
    return f"{text}{shown}, return {score.episode_return:.0f}"
