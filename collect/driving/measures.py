"""`DriveMeter`: how a car was driven, beside the reward."""

import dataclasses

from avtd3.collect.driving.reward import StepFacts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriveMeasures:
    """How one episode was driven."""

    route_completion: float
    """Share of the way to the goal that was driven, in [0, 1]."""
    distance_m: float
    """Metres driven."""
    lane_departures: int
    """How often the car's centre left the lane that the route follows."""
    lane_invasions: int
    """Lane markings crossed."""
    wrong_way_steps: int
    """Steps in a lane of the opposite direction."""
    lateral_deviation_m: float
    """Mean distance from the lane's centre, without sign."""
    speed_mps: float
    """Mean speed."""


class DriveMeter:
    """Watches the steps of one episode.

    Args:
        control_period_s: Simulated seconds per step.
    """

    def __init__(self, control_period_s: float) -> None:
        self._period_s = control_period_s
        self._steps = 0
        self._speed = self._way = self._lateral = 0.0
        self._departures = self._invasions = self._wrong_way = 0
        self._is_out = False

    def watch(self, facts: StepFacts) -> None:
        """Take one step in."""
        lateral = abs(facts.lateral_m)
        self._steps += 1
        self._speed += facts.speed_mps
        self._way += abs(facts.speed_mps)
        self._lateral += lateral
        is_out = lateral > 0.5 * facts.lane_width_m
        self._departures += is_out and not self._is_out
        self._is_out = is_out
        self._invasions += facts.lane_invasions
        self._wrong_way += facts.wrong_way

    def measures(self, completion: float) -> DriveMeasures:
        """What was seen so far.

        Args:
            completion: Share of the way to the goal that was driven.
        """
        steps = max(self._steps, 1)
        return DriveMeasures(
            route_completion=completion,
            distance_m=self._way * self._period_s,
            lane_departures=self._departures,
            lane_invasions=self._invasions,
            wrong_way_steps=self._wrong_way,
            lateral_deviation_m=self._lateral / steps,
            speed_mps=self._speed / steps,
        )
