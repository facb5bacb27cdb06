"""`DrivingEnvironment`: the driving task on a simulator."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver, WanderingDriver
from avtd3.collect.driving.events import EventRecorder, Moment
from avtd3.collect.driving.expert import Expert, ExpertConfig
from avtd3.collect.driving.reward import StepFacts
from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.collect.driving.world import World, WorldFrame, WorldStart
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.events import Event
from avtd3.store.spec import ImageSpec
from avtd3.store.step import Observation, Step

if TYPE_CHECKING:
    from PIL import Image


class DriveMeter:
    """Measures how a car is driven in one episode, apart from the reward.

    Args:
        control_period_s: Simulated seconds per step.
    """

    def __init__(self, control_period_s: float) -> None:
        self._period_s = control_period_s
        self._steps = 0
        self._speed_sum = self._path_sum = self._lateral_sum = 0.0
        self._departures = self._invasions = self._wrong_way = 0
        self._is_outside = False

    def record(self, facts: StepFacts) -> None:
        """Record one step."""
        lateral = abs(facts.lateral_m)
        self._steps += 1
        self._speed_sum += facts.speed_mps
        self._path_sum += abs(facts.speed_mps)
        self._lateral_sum += lateral
        is_outside = lateral > 0.5 * facts.lane_width_m
        self._departures += is_outside and not self._is_outside
        self._is_outside = is_outside
        self._invasions += facts.lane_invasions
        self._wrong_way += facts.wrong_way

    def measures(self, completion: float) -> Mapping[str, float]:
        """Return the measurements so far.

        Args:
            completion: Fraction of the way to the goal that was driven, in [0, 1].

        Returns:
            route_completion: The same fraction.
            distance_m: Metres driven.
            lane_departures: Times that the car's centre left the lane that the route follows.
            lane_invasions: Lane markings crossed.
            wrong_way_steps: Steps in a lane of the opposite direction.
            lateral_deviation_m: Mean absolute distance from the lane's centre.
            speed_mps: Mean speed.
        """
        steps = max(self._steps, 1)
        return {
            "route_completion": completion,
            "distance_m": self._path_sum * self._period_s,
            "lane_departures": self._departures,
            "lane_invasions": self._invasions,
            "wrong_way_steps": self._wrong_way,
            "lateral_deviation_m": self._lateral_sum / steps,
            "speed_mps": self._speed_sum / steps,
        }


class DrivingEnvironment(Environment):
    """Follows the route of a scenario in a simulator.

    Args:
        world: The simulator; closed with the environment.
        config: Observation, reward and episode ends.
        scenarios: The settings that the episodes take in turn, at least one.
        expert: How the expert drives.
        simulator: Name and versions of the simulator, for the provenance; empty for the worlds that
            are part of avtd3.
    """

    def __init__(
        self,
        world: World,
        config: TaskConfig,
        scenarios: Sequence[Scenario],
        expert: ExpertConfig,
        simulator: str = "",
    ) -> None:
        channels, height, width = world.image_shape
        stack = config.observation.stack
        self.world = world
        self.task = DrivingTask(config, world.control_period_s)
        self.spec = self.task.spec(
            ImageSpec(channels=channels, height=height, width=width, stack=stack)
        )
        self.name = world.name
        self._simulator = simulator or world.name
        self._scenarios, self._scenario, self._expert = tuple(scenarios), scenarios[0], expert
        self._start: WorldStart | None = None
        self._recorder: EventRecorder | None = None
        self._meter = DriveMeter(world.control_period_s)
        self._steps = 0

    @property
    def setting(self) -> str:
        """The scenarios by number."""
        numbers = [scenario.number for scenario in self._scenarios]
        if len(numbers) == 1:
            return f"scenario {numbers[0]}"
        shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        return f"{len(numbers)} scenarios in turn ({shown})"

    @property
    def scenario_count(self) -> int:
        """Number of scenarios that the episodes take in turn."""
        return len(self._scenarios)

    @property
    def has_time_limit(self) -> bool:
        """Always: every scenario has one."""
        return True

    @property
    def simulator(self) -> str:
        """Name and versions of the software that simulates."""
        parts = [self._simulator, f"avtd3 {importlib.metadata.version('avtd3')}"]
        if self._simulator in ("road", "carla"):
            parts.append(f"carla {importlib.metadata.version('carla')}")
        return ", ".join(parts)

    @property
    def scenario(self) -> int:
        """Number of the current episode's scenario."""
        return self._scenario.number

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the current episode's scenario, roads and traffic."""
        return (*self._scenario.remarks, *self.world.notices)

    def driver(self, base: str) -> Driver:
        """Make the expert, or a random driver that wanders."""
        if base == "expert":
            return Expert(self._expert, self.task)
        return WanderingDriver(self.world.control_period_s)

    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode in the scenario whose turn it is."""
        self._scenario = self._scenarios[index % len(self._scenarios)]
        start = self.world.reset(self._scenario, seed)
        vector = self.task.reset(start, self._scenario)
        self._start, self._steps = start, 0
        self._meter = DriveMeter(self.world.control_period_s)
        self._recorder = EventRecorder(start.route.length_m, self.task.best_m, start.frame)
        return ResetResult(
            observation=_observation(start.frame, vector),
            attributes={"town": start.town, "weather": start.weather},
        )

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply float32 (2,) = (steering, throttle or brake)."""
        frame = self.world.step(action)
        result = self.task.advance(frame)
        self._meter.record(result.facts)
        moment = Moment(
            frame=frame,
            facts=result.facts,
            reason=result.reason,
            best_m=self.task.best_m,
            standing_s=self.task.standing_s,
        )
        assert self._recorder is not None, "reset() comes first"
        self._recorder.record(moment)
        self._steps += 1
        return Step(
            action=action,
            observation=_observation(frame, result.vector),
            reward_terms=result.reward_terms,
            terminated=result.terminated,
            truncated=result.truncated,
            end_reason=result.reason,
        )

    def measures(self) -> Mapping[str, float]:
        """Return how the current episode was driven so far, see `DriveMeter.measures`."""
        return self._meter.measures(self.task.completion)

    def events(self) -> tuple[Event, ...]:
        """Return what happened in the current episode so far."""
        return () if self._recorder is None else self._recorder.events()

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """Draw the camera's picture beside a map, above a caption."""
        from avtd3.collect.driving.scene import Scene, draw_scene

        assert self._start is not None, "reset() comes first"
        task, vehicle = self.task, self.task.frame.vehicle
        end = f"   {task.reason}" if task.reason else ""
        where = f"{self._start.town}, {self._start.weather}"
        seconds = (self._steps - 1) * self.world.control_period_s
        return draw_scene(
            Scene(
                frame=task.frame,
                route=task.route,
                action=action,
                surroundings=self.world.surroundings(),
                caption=(
                    f"{title} on {where}   {seconds:4.1f} s   {3.6 * vehicle.speed_mps:4.1f} km/h"
                    f"   {task.lateral_m:+.2f} m{end}"
                ),
            )
        )

    def close(self) -> None:
        """Release the simulator."""
        self.world.close()


def _observation(frame: WorldFrame, vector: NDArray[np.float32]) -> Observation:
    return Observation(
        image=frame.image, vector=vector, frame_id=frame.frame_id, sim_time_s=frame.sim_time_s
    )
