"""`EventRecorder`: what happens in an episode, for the scores that are computed from it later.

==================== ============================================ ============================
kind                 value                                        subject
==================== ============================================ ============================
``route``            length of the route in metres; step 0
``collision``        speed at the contact, in m/s                 what was hit
``off_road``         metres of the route driven meanwhile
``wrong_way``        metres of the route driven meanwhile
``lane_invasion``    markings crossed
``red_light``        speed at a red traffic light that was passed, in m/s
``other_control``    steps that the simulator drove with another action than the stored one
``route_deviation``  distance from the route, in metres
``blocked``          seconds for which the car stood
``timeout``          simulated seconds that the episode took
``goal``             0
``completion``       metres of the route completed; last step
==================== ============================================ ============================

Every recorded episode has a ``route`` and a ``completion``: an episode without events was not
recorded, which differs from an episode in which nothing happened. A stretch off the road or in the
wrong lane is one event, at the step where it starts; a stretch that is both counts as off the road.
A collision that the simulator reported late is an event of the step at which it happened.
"""

import collections
import dataclasses
import math

from avtd3.collect.driving.reward import StepFacts
from avtd3.collect.driving.world import VehicleState, WorldFrame
from avtd3.collect.environment import SUCCESS_REASON
from avtd3.store.events import MAX_TEXT, Event

_END_KINDS = {
    "off_route": "route_deviation",
    "stuck": "blocked",
    "time_limit": "timeout",
    SUCCESS_REASON: "goal",
}
_STRETCHES = ("off_road", "wrong_way")
_LATEST_STEPS = 100  # a collision that is reported later than this counts as this late


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the recorder needs to know about a step."""

    frame: WorldFrame
    """The world's frame after the step."""
    facts: StepFacts
    """What the task computed from it."""
    reason: str
    """Why the episode ended, or an empty string."""
    best_m: float
    """Metres of the route completed so far."""
    standing_s: float
    """Seconds for which the car has been standing with no vehicle close ahead."""


class EventRecorder:
    """Records the events of one episode.

    Args:
        length_m: Length of its route.
        best_m: Metres of the route that lie behind the car at its start.
        frame: The episode's first frame.
    """

    def __init__(self, length_m: float, best_m: float, frame: WorldFrame) -> None:
        self._start_s = frame.sim_time_s
        self._past = collections.deque(((frame.frame_id, frame.vehicle),), _LATEST_STEPS)
        self._best_m = best_m
        self._steps = 0
        self._stretch: Event | None = None
        self._events = [_event(0, "route", frame.vehicle, length_m)]
        self._other_control: Event | None = None

    def record(self, moment: Moment) -> None:
        """Record one step."""
        step, frame = self._steps, moment.frame
        self._record_stretch(step, moment)
        if frame.collision:
            self._events.append(self._collision(step, frame))
        if frame.ran_red_light:
            speed = abs(frame.vehicle.speed_mps)
            self._events.append(_event(step, "red_light", frame.vehicle, speed))
        if frame.other_control:
            known = self._other_control or _event(step, "other_control", frame.vehicle, 0.0)
            self._other_control = dataclasses.replace(known, value=known.value + 1.0)
        if frame.lane_invasions:
            self._events.append(
                _event(step, "lane_invasion", frame.vehicle, float(frame.lane_invasions))
            )
        if kind := _END_KINDS.get(moment.reason):
            self._events.append(_event(step, kind, frame.vehicle, self._end_value(kind, moment)))
        self._best_m = moment.best_m
        self._past.append((frame.frame_id, frame.vehicle))
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

    def _end_value(self, kind: str, moment: Moment) -> float:
        return {
            "route_deviation": abs(moment.facts.lateral_m),
            "blocked": moment.standing_s,
            "timeout": moment.frame.sim_time_s - self._start_s,
        }.get(kind, 0.0)

    def _record_stretch(self, step: int, moment: Moment) -> None:
        """Start, extend or end a stretch off the road or in the wrong lane."""
        outside = (moment.frame.off_road, moment.frame.wrong_way and not _follows(moment.facts))
        kind = next((name for name, is_so in zip(_STRETCHES, outside, strict=True) if is_so), "")
        gained_m = moment.best_m - self._best_m
        if self._stretch is not None and self._stretch.kind == kind:
            self._stretch = dataclasses.replace(self._stretch, value=self._stretch.value + gained_m)
            return
        self._end_stretch()
        if kind:
            self._stretch = _event(step, kind, moment.frame.vehicle, gained_m)

    def _end_stretch(self) -> None:
        if self._stretch is not None:
            self._events.append(self._stretch)
            self._stretch = None

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
    """Return whether the car drives in the lane that the route follows, so not in a wrong one.

    In junctions, lanes of many directions overlap; a world may report any of them.
    """
    is_in_lane = abs(facts.lateral_m) <= 0.5 * facts.lane_width_m
    return is_in_lane and abs(facts.heading_rad) < 0.5 * math.pi


def _event(step: int, kind: str, vehicle: VehicleState, value: float, subject: str = "") -> Event:
    return Event(
        step=step,
        kind=kind,
        subject=subject,
        value=float(value),
        x_m=float(vehicle.x_m),
        y_m=float(vehicle.y_m),
    )
