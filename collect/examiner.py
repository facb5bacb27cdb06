"""`Examiner`: one world on which a policy or a driver drives held-out episodes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from avtd3.collect.arena import Arena
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number
from avtd3.collect.drivers import GRAMMAR, Mixture, PolicyDriver
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.gym_world import GymConfig
from avtd3.collect.leaderboard import CURRENT, penalty_table, score_route
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import MAX_SEED, episode_generator, evaluation_seed
from avtd3.collect.recovery import RecoveryConfig
from avtd3.collect.rollout import Rollout, Transition
from avtd3.collect.scores import EpisodeScore, Scorer
from avtd3.collect.sim.world import RoadConfig
from avtd3.collect.worlds import check_world
from avtd3.store.errors import CheckpointError, ConfigError
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
class Examination:
    """One episode about to be driven."""

    rollout: Rollout
    """The episode."""
    transitions: Iterator[Transition]
    """Its steps, driven as they are asked for."""
    driver: str
    """Who drives."""


class Examiner:
    """One arena in which a subject drives held-out episodes.

    Args:
        arena: Where the episodes happen.
        config: The evaluation's settings.
        subject: Who drives, see `evaluate`.
    """

    def __init__(self, arena: Arena, config: EvaluateConfig, subject: str) -> None:
        self._arena, self._config = arena, config
        self.policy, self.subject = _load_policy(subject, arena.spec)
        self._mixture = _mixture(subject) if self.policy is None else Mixture.parse("policy")
        driver = PolicyDriver(self.policy)
        self.steps = 0
        """Steps driven so far, those of lost episodes included."""
        self._drivers = [spec.build(arena, driver) for spec in self._mixture.drivers]

    def begin(self, index: int) -> Examination:
        """Begin an episode by its number in the evaluation."""
        seed = evaluation_seed(self._config.seed, index)
        rng = episode_generator(seed)
        place = self._mixture.draw(rng)
        name = self._mixture.drivers[place].name
        rollout = Rollout(self._arena, seed, index)
        return Examination(rollout, rollout.drive(self._drivers[place], name, rng), name)

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
    from avtd3.learn.policy import Policy, PolicyDirectory

    if path.is_file():
        return Policy.load(path, spec=spec), subject
    policy = PolicyDirectory(path).latest(spec)
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
