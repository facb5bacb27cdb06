"""`evaluate`: deterministic episodes on held-out roads, from which success is judged.

Episode i of an evaluation follows from the evaluation's seed and i alone, and its seed is odd: no
dataset holds its road. Policies drive without noise. So two policies evaluated with one seed meet
the same roads, traffic and weather, and the same policy scores the same twice.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from avtd3.collect.examiner import EvaluateConfig, Examiner, one_thread
from avtd3.collect.recovery import Recovery, Skipped, tell_skipped
from avtd3.collect.scores import EpisodeScore, summarise
from avtd3.collect.worlds import WorldFactory, count_workers, open_arena, open_world
from avtd3.store.errors import RouteError, WorldLost

__all__ = [
    "EvaluateConfig",
    "EvaluateProgress",
    "EvaluateReport",
    "Job",
    "Part",
    "evaluate",
    "run_job",
]


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
    arena = open_arena(config, open_world, render=gif is not None)
    try:
        examiner = Examiner(arena, config, str(subject))
        if gif is not None:
            from avtd3.collect.film import film

            with one_thread(examiner.policy):
                film(arena, examiner.begin(0), gif)
    finally:
        arena.close()
    every, workers = range(config.episodes), min(count_workers(config), config.episodes)
    jobs = [
        Job(
            worker=worker,
            config=config,
            subject=examiner.subject,
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
        policy_version=examiner.policy.version if examiner.policy else None,
        policy_digest=examiner.policy.digest if examiner.policy else "",
        world=arena.name,
        setting=arena.setting,
        scenario=arena.scenario,
        scenario_file=config.scenario.file,
        action_names=arena.spec.action_names,
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
    arena = open_arena(job.config, job.open_world, job.worker)
    part, recovery = Part(), Recovery(job.config.recovery)
    try:
        examiner = Examiner(arena, job.config, job.subject)
        with one_thread(examiner.policy):
            for index in job.indices:
                driven = _drive(examiner, index, recovery, should_stop)
                if driven is None:
                    break
                part = _with(part, driven)
                report(part)
    except WorldLost as error:
        part = dataclasses.replace(part, lost=f"worker {job.worker} gave up: {error}")
    finally:
        arena.close()
    return part


def _drive(
    examiner: Examiner, index: int, recovery: Recovery, should_stop: Callable[[], bool]
) -> EpisodeScore | Skipped | None:
    """Score an episode, however often it must be begun; None if it was stopped."""
    while not should_stop():
        try:
            return examiner.score(index, should_stop)
        except WorldLost as error:
            skipped = recovery.lost(index, error, examiner.steps)
            if skipped is not None:
                return skipped
        except RouteError as error:
            return recovery.unplanned(index, error, examiner.steps)
    return None


def _with(part: Part, driven: EpisodeScore | Skipped) -> Part:
    if isinstance(driven, Skipped):
        return dataclasses.replace(part, skipped=(*part.skipped, driven))
    return dataclasses.replace(part, scores=(*part.scores, driven))
