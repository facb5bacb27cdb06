"""`EventRecorder`: what happens in an episode, for the scores that are computed from it later.

==================== ============================================ ============================
kind                 value                                        subject
==================== ============================================ ============================
``route``            length of the route in metres; step 0
``collision``        speed at the contact, in m/s                 what was hit
``off_road``         metres of the route driven meanwhile
``wrong_way``        metres of the route driven meanwhile
``lane_invasion``    markings crossed
``route_deviation``  distance from the route, in metres
``blocked``          seconds for which the car stood
``timeout``          simulated seconds that the episode took
``goal``             0
``completion``       metres of the route completed; last step
==================== ============================================ ============================

Every recorded episode has a ``route`` and a ``completion``: an episode without events was not
recorded, which differs from an episode in which nothing happened. A stretch off the road or in the
wrong lane is one event, at the step where it starts; a stretch that is both counts as off the road.
"""

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
        self._vehicle = frame.vehicle
        self._best_m = best_m
        self._steps = 0
        self._stretch: Event | None = None
        self._events = [_event(0, "route", frame.vehicle, length_m)]

    def record(self, moment: Moment) -> None:
        """Record one step."""
        step, frame = self._steps, moment.frame
        self._record_stretch(step, moment)
        if frame.collision:
            # After the impact the car may stand: what counts is whether it moved before.
            speed = max(abs(self._vehicle.speed_mps), abs(frame.vehicle.speed_mps))
            subject = frame.collision[:MAX_TEXT]
            self._events.append(_event(step, "collision", frame.vehicle, speed, subject))
        if frame.lane_invasions:
            self._events.append(
                _event(step, "lane_invasion", frame.vehicle, float(frame.lane_invasions))
            )
        if kind := _END_KINDS.get(moment.reason):
            self._events.append(_event(step, kind, frame.vehicle, self._end_value(kind, moment)))
        self._vehicle, self._best_m = frame.vehicle, moment.best_m
        self._steps += 1

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
        running = [] if self._stretch is None else [self._stretch]
        found = sorted((*self._events, *running), key=lambda event: event.step)
        last = _event(self._steps - 1, "completion", self._vehicle, self._best_m)
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
