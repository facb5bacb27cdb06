"""`DrivingEnvironment`: the driving task on a simulator, with measurements, events and pictures."""

import collections
import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver, WanderingDriver
from avtd3.collect.driving.expert import Expert, ExpertConfig, TakeoverConfig, TakeoverDriver
from avtd3.collect.driving.reward import StepFacts
from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.collect.driving.world import (
    RecordingWorld,
    StreamWorld,
    Surroundings,
    VehicleState,
    World,
    WorldFrame,
    WorldStart,
)
from avtd3.collect.environment import SUCCESS_REASON, Environment, ResetResult
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.events import MAX_TEXT, Event
from avtd3.store.spec import ImageSpec
from avtd3.store.step import Observation, Step
from avtd3.store.world_record import WorldRecord

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PANEL_PX = 336
"""Side of the camera panel and of the map panel: four times the default camera."""
CAPTION_PX = 30
MAP_SPAN_M = 90.0  # metres of road across the map

_Colour = tuple[int, int, int]
LANE = (74, 82, 92)
ROUTE = (64, 156, 255)
OTHERS = (255, 184, 77)
CAR = (96, 220, 140)
LEGEND = (
    (CAR, "this car, throttle"),
    (ROUTE, "route, steering"),
    (OTHERS, "others, brake"),
    (LANE, "lanes"),
)
"""Colours of the map and of the two bars in the camera's picture."""

_END_KINDS = {
    "off_route": "route_deviation",
    "stuck": "blocked",
    "time_limit": "timeout",
    SUCCESS_REASON: "goal",
}
_LATEST_STEPS = 100  # a collision that is reported later than this counts as this late


class EventRecorder:
    """Records what happens in an episode, for the scores that are computed from it later.

    ==================== ============================================ ============================
    kind                 value                                        subject
    ==================== ============================================ ============================
    ``route``            length of the route in metres; step 0
    ``collision``        speed at the contact, in m/s                 what was hit
    ``off_road``         metres of the route driven meanwhile
    ``wrong_way``        metres of the route driven meanwhile
    ``lane_invasion``    markings crossed
    ``red_light``        speed at a red light that was passed, in m/s
    ``other_control``    steps driven with another action than stored
    ``route_deviation``  distance from the route, in metres
    ``blocked``          seconds for which the car stood
    ``timeout``          simulated seconds that the episode took
    ``goal``             0
    ``completion``       metres of the route completed; last step
    ==================== ============================================ ============================

    Every recorded episode has a ``route`` and a ``completion``. A stretch off the road or in the
    wrong lane is one event, at the step where it starts; if it is both, it is off the road. A
    collision that the simulator reported late is an event of the step at which it happened.
    """

    def __init__(self, length_m: float, best_m: float, frame: WorldFrame) -> None:
        self._start_s = frame.sim_time_s
        self._past = collections.deque(((frame.frame_id, frame.vehicle),), _LATEST_STEPS)
        self._best_m = best_m
        self._steps = 0
        self._stretch: Event | None = None
        self._other_control: Event | None = None
        self._events = [_event(0, "route", frame.vehicle, length_m)]

    def record(
        self, frame: WorldFrame, facts: StepFacts, reason: str, best_m: float, standing_s: float
    ) -> None:
        """Record a step; the last three are `TaskStep.reason` and those of `DrivingTask`."""
        step, car = self._steps, frame.vehicle
        if frame.off_road or frame.wrong_way or self._stretch is not None:
            self._record_stretch(frame, facts, best_m - self._best_m)
        if frame.collision:
            self._events.append(self._collision(step, frame))
        if frame.ran_red_light:
            self._events.append(_event(step, "red_light", car, abs(car.speed_mps)))
        if frame.other_control:
            known = self._other_control or _event(step, "other_control", car, 0.0)
            self._other_control = dataclasses.replace(known, value=known.value + 1.0)
        if frame.lane_invasions:
            self._events.append(_event(step, "lane_invasion", car, frame.lane_invasions))
        if kind := _END_KINDS.get(reason):
            values = {
                "route_deviation": abs(facts.lateral_m),
                "blocked": standing_s,
                "timeout": frame.sim_time_s - self._start_s,
            }
            self._events.append(_event(step, kind, car, values.get(kind, 0.0)))
        self._past.append((frame.frame_id, car))
        self._best_m = best_m
        self._steps += 1

    def _collision(self, step: int, frame: WorldFrame) -> Event:
        """Return the event of a collision, at the frame in which it happened."""
        happened = frame.frame_id if frame.collision_frame_id is None else frame.collision_frame_id
        late = min(sum(number >= happened for number, _ in self._past), step)
        vehicles = [*(vehicle for _, vehicle in self._past), frame.vehicle]
        before, vehicle = vehicles[-2 - late], vehicles[-1 - late]
        # After the impact the car may stand: what counts is whether it moved before.
        speed = max(abs(before.speed_mps), abs(vehicle.speed_mps))
        return _event(step - late, "collision", vehicle, speed, frame.collision[:MAX_TEXT])

    def _record_stretch(self, frame: WorldFrame, facts: StepFacts, gained_m: float) -> None:
        """Start, extend or end a stretch off the road or in the wrong lane."""
        is_wrong = frame.wrong_way and not _follows(facts)
        kind = "off_road" if frame.off_road else "wrong_way" if is_wrong else ""
        running = self._stretch
        if running is not None and running.kind == kind:
            self._stretch = dataclasses.replace(running, value=running.value + gained_m)
            return
        if running is not None:
            self._events.append(running)
        self._stretch = _event(self._steps, kind, frame.vehicle, gained_m) if kind else None

    def events(self) -> tuple[Event, ...]:
        """Return the events so far, ordered by step; empty before the first step."""
        if not self._steps:
            return ()
        running = [event for event in (self._stretch, self._other_control) if event is not None]
        found = sorted((*self._events, *running), key=lambda event: event.step)
        _, vehicle = self._past[-1]
        last = _event(self._steps - 1, "completion", vehicle, self._best_m)
        return (*found, last)


def _follows(facts: StepFacts) -> bool:
    """Return whether the car is in the route's lane; in junctions, worlds may report any lane."""
    is_in_lane = abs(facts.lateral_m) <= 0.5 * facts.lane_width_m
    return is_in_lane and abs(facts.heading_rad) < 0.5 * math.pi


def _event(step: int, kind: str, vehicle: VehicleState, value: float, subject: str = "") -> Event:
    x_m, y_m = float(vehicle.x_m), float(vehicle.y_m)
    return Event(step=step, kind=kind, subject=subject, value=float(value), x_m=x_m, y_m=y_m)


class DriveMeter:
    """Measures how a car is driven in one episode, apart from the reward."""

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
        """Return the measurements so far, with the fraction of the way driven, in [0, 1].

        A lane departure is the car's centre leaving the lane that the route follows, an invasion a
        lane marking crossed.
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
    """Follows the route of a scenario in a simulator."""

    has_time_limit = True
    legend = LEGEND

    def __init__(
        self,
        world: World,
        config: TaskConfig,
        scenarios: Sequence[Scenario],
        expert: ExpertConfig,
        simulator: str = "",
        takeover: TakeoverConfig | None = None,
    ) -> None:
        self._takeover = takeover or TakeoverConfig()
        channels, height, width = world.image_shape
        stack = config.observation.stack
        image = ImageSpec(channels=channels, height=height, width=width, stack=stack)
        self.world, self.name = world, world.name
        self.task = DrivingTask(config, world.control_period_s)
        streams = world.streams if isinstance(world, StreamWorld) else {}
        self.spec = self.task.spec(None if streams else image, streams)
        self._simulator = simulator or world.name
        self._scenarios, self._scenario, self._expert = tuple(scenarios), scenarios[0], expert
        self._start: WorldStart | None = None
        self._recorder: EventRecorder | None = None
        self._meter = DriveMeter(world.control_period_s)

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

    def teacher(self) -> Driver | None:
        """Make the expert."""
        return self.driver("expert")

    def takeover(self, policy: Driver) -> Driver:
        """Make a driver that replaces a policy by the expert where it leaves its bounds."""
        return TakeoverDriver(policy, self.driver("expert"), self.task, self._takeover)

    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode in the scenario whose turn it is."""
        self._scenario = self._scenarios[index % len(self._scenarios)]
        start = self.world.reset(self._scenario, seed)
        vector = self.task.reset(start, self._scenario)
        self._start = start
        self._meter = DriveMeter(self.world.control_period_s)
        self._recorder = EventRecorder(start.route.length_m, self.task.best_m, start.frame)
        return ResetResult(
            observation=_observation(start.frame, vector),
            attributes={"town": start.town, "weather": start.weather},
        )

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply float32 (2,) = (steering, throttle or brake)."""
        frame = self.world.step(action)
        task, result = self.task, self.task.advance(frame)
        self._meter.record(result.facts)
        assert self._recorder is not None, "reset() comes first"
        self._recorder.record(frame, result.facts, result.reason, task.best_m, task.standing_s)
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

    def world_record(self) -> WorldRecord | None:
        """Return the state of the world in each observation so far, if the simulator records it."""
        return self.world.world_record() if isinstance(self.world, RecordingWorld) else None

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """Draw the camera's picture and a map beside it, above a caption if there is a title."""
        from PIL import Image, ImageDraw

        from avtd3.store.render.media import BAD, GOOD, INK, PAPER, font, scaled_image

        assert self._start is not None, "reset() comes first"
        task, frame = self.task, self.task.frame
        height = PANEL_PX + (CAPTION_PX if title else 0)
        picture = Image.new("RGB", (2 * PANEL_PX, height), PAPER)
        camera = scaled_image(frame.image, PANEL_PX)
        picture.paste(camera, (0, (PANEL_PX - camera.height) // 2))
        panel = Image.new("RGB", (PANEL_PX, PANEL_PX), PAPER)
        _draw_map(ImageDraw.Draw(panel), frame.vehicle, task.route, self.world.surroundings())
        picture.paste(panel, (PANEL_PX, 0))
        draw = ImageDraw.Draw(picture)
        _draw_bars(draw, action, PAPER)
        if title:
            seconds = (task.steps - 1) * self.world.control_period_s
            caption = (
                f"{title} on {self._start.town}, {self._start.weather}   {seconds:4.1f} s"
                f"   {3.6 * frame.vehicle.speed_mps:4.1f} km/h   {task.lateral_m:+.2f} m"
            )
            draw.text((8, PANEL_PX + 7), caption, fill=INK, font=font(14))
        if task.reason:
            text = task.reason.replace("_", " ")
            draw.rectangle([0, 0, 20 + draw.textlength(text, font=font(22)), 38], fill=PAPER)
            ink = GOOD if task.reason == SUCCESS_REASON else BAD
            draw.text((10, 6), text, fill=ink, font=font(22))
        return picture

    def close(self) -> None:
        """Release the simulator."""
        self.world.close()


def _observation(frame: WorldFrame, vector: NDArray[np.float32]) -> Observation:
    return Observation(
        image=frame.image if frame.streams is None else None,
        streams=frame.streams,
        vector=vector,
        frame_id=frame.frame_id,
        sim_time_s=frame.sim_time_s,
    )


def _draw_map(
    draw: "ImageDraw.ImageDraw", car: VehicleState, route: Route, surroundings: Surroundings
) -> None:
    for lane in surroundings.lanes:
        _draw_line(draw, _to_map(car, lane), LANE, 8)
    _draw_line(draw, _to_map(car, route.points), ROUTE, 3)
    goal = _to_map(car, route.points[-1:])[0]
    draw.ellipse([*(goal - 6), *(goal + 6)], outline=ROUTE, width=3)
    poses = [(*pose, OTHERS) for pose in surroundings.others.tolist()]
    corners = np.array([[2.3, 0.92], [2.3, -0.92], [-2.3, -0.92], [-2.3, 0.92]])
    for x_m, y_m, yaw_rad, colour in (*poses, (car.x_m, car.y_m, car.yaw_rad, CAR)):
        cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
        world = corners @ np.array([[cos, sin], [-sin, cos]]) + (x_m, y_m)
        draw.polygon([tuple(p) for p in _to_map(car, world)], fill=colour)


def _to_map(car: VehicleState, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map world metres (N, 2) to panel pixels: the car below the middle, its heading up."""
    delta = points - (car.x_m, car.y_m)
    cos, sin = np.cos(car.yaw_rad), np.sin(car.yaw_rad)
    ahead = delta @ (cos, sin)
    right = delta @ (-sin, cos)
    scale = PANEL_PX / MAP_SPAN_M
    return np.stack((PANEL_PX / 2 + right * scale, PANEL_PX * 0.7 - ahead * scale), axis=1)


def _draw_line(
    draw: "ImageDraw.ImageDraw", pixels: NDArray[np.float64], colour: _Colour, width: int
) -> None:
    near: NDArray[np.bool_] = np.max(np.abs(pixels - PANEL_PX / 2), axis=1) < PANEL_PX
    # Points outside are dropped in runs, so that a line never jumps across the panel.
    edges = np.flatnonzero(np.diff(near.astype(np.int8)))
    for run in np.split(np.arange(len(pixels)), edges + 1):
        if len(run) > 1 and near[run[0]]:
            draw.line([tuple(p) for p in pixels[run]], fill=colour, width=width, joint="curve")


def _draw_bars(draw: "ImageDraw.ImageDraw", action: NDArray[np.float32], paper: _Colour) -> None:
    """Show steering and throttle or brake as two bars in the camera panel's corner."""
    centre, reach = PANEL_PX - 60, 48
    colours = (ROUTE, CAR if action[1] >= 0 else OTHERS)
    for y, value, colour in zip((PANEL_PX - 26, PANEL_PX - 15), action, colours, strict=True):
        draw.rectangle([centre - reach, y, centre + reach, y + 7], fill=paper)
        ends = sorted((centre, centre + float(value) * reach))
        draw.rectangle([ends[0], y + 1, ends[1], y + 6], fill=colour)
