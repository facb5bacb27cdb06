"""`Vehicle`: the driven car, a dynamic bicycle model with tyre limits.

Lateral and yaw motion follow Rajamani (2012), *Vehicle Dynamics and Control*, chapter 2, in CARLA's
frame (y to the right, yaw clockwise), where the equations keep their form. Tyres follow Pacejka
(2012), *Tire and Vehicle Dynamics*, the magic formula with C = 1 and E = 0: ``Fy = D sin(atan(B
alpha))``. It is linear for small slip angles and saturates at D, which the friction ellipse leaves
after the longitudinal force: ``D = sqrt((mu Fz)^2 - Fx^2)``. Slip angles are not meaningful near
standstill; there the model blends into the kinematic bicycle.

The code uses plain floats and `math`: a control period of four substeps takes about 20 us, a tenth
of the time with numpy scalars.
"""

import dataclasses
import math

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.driving.world import VehicleState

GRAVITY_MPS2 = 9.81
AIR_DENSITY = 1.2
_KINEMATIC_BELOW_MPS = 1.5
_DYNAMIC_ABOVE_MPS = 3.5
# Traction and brake control use at most this share of the friction, so that the car still steers.
_LONGITUDINAL_SHARE = 0.95
_CRAWL_MPS = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VehicleParams:
    """Parameters of a car; the defaults are a middle-class sedan with front-wheel drive."""

    length_m: float = 4.6
    """Length of the body."""
    width_m: float = 1.85
    """Width of the body."""
    wheelbase_m: float = 2.7
    """Distance between the axles; the centre of mass is in the middle."""
    track_m: float = 1.6
    """Distance between the wheels of an axle."""
    mass_kg: float = 1500.0
    """Mass with the driver."""
    yaw_inertia_kgm2: float = 2500.0
    """Moment of inertia about the vertical axis."""
    mass_height_m: float = 0.55
    """Height of the centre of mass; braking shifts load to the front axle in proportion."""
    front_stiffness_n: float = 90_000.0
    """Cornering stiffness of the front axle, in N per rad of slip."""
    rear_stiffness_n: float = 105_000.0
    """Cornering stiffness of the rear axle; above the front's, so that the car understeers."""
    friction: float = 0.95
    """Coefficient of friction of the tyres on dry asphalt."""
    front_grip: float = 0.88
    """Share of its grip that the front axle can use sideways; below 1 the car understeers, not
    spins."""
    max_wheel_angle_rad: float = 0.45
    """Angle of the front wheels at steer 1; the turning radius is 5.6 m at the rear axle."""
    wheel_rate_radps: float = 1.2
    """Maximum rate of change of the angle of the front wheels."""
    power_w: float = 90_000.0
    """Engine power at the wheels."""
    drive_force_n: float = 6000.0
    """Maximum driving force (at low speed, where power does not limit it)."""
    brake_force_n: float = 13_000.0
    """Braking force at full brake, limited by friction."""
    drag_area_m2: float = 0.65
    """Drag coefficient times frontal area."""
    rolling_resistance: float = 0.013
    """Rolling resistance as a share of the weight."""
    substeps: int = 4
    """Integration steps per control period."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_positive(f"vehicle.{field.name}", getattr(self, field.name))
        check_number("vehicle.substeps", self.substeps, minimum=1, maximum=1000)
        check_number("vehicle.max_wheel_angle_rad", self.max_wheel_angle_rad, maximum=1.2)


class Vehicle:
    """The state of one car and its motion over control periods.

    Attributes are in SI units, at the centre of mass, which is the centre of the body: `x_m`,
    `y_m`, `yaw_rad`, `speed_mps` along the axis, `side_speed_mps` across it (positive to the
    right), `yaw_rate_radps`, and `wheel_rad`, the angle of the front wheels.

    Example:
        >>> car = Vehicle(VehicleParams(), control_period_s=0.05)
        >>> car.place(0.0, 0.0, 0.0, 10.0)
        >>> car.advance(steer=0.0, pedal=0.0)
        >>> round(car.x_m, 2)
        0.5
    """

    def __init__(self, params: VehicleParams, control_period_s: float) -> None:
        self.params = params
        self._period_s = control_period_s
        self.place(0.0, 0.0, 0.0, 0.0)

    def place(self, x_m: float, y_m: float, yaw_rad: float, speed_mps: float) -> None:
        """Set the position of the car; it rolls straight ahead."""
        self.x_m, self.y_m, self.yaw_rad, self.speed_mps = x_m, y_m, yaw_rad, speed_mps
        self.side_speed_mps = self.yaw_rate_radps = self.wheel_rad = 0.0
        self.acceleration_mps2 = self.lateral_acceleration_mps2 = 0.0

    def advance(self, steer: float, pedal: float, grip: float = 1.0) -> None:
        """Drive for one control period.

        Args:
            steer: Steering in [-1, 1], positive to the right; values outside are clipped.
            pedal: Throttle (> 0) or brake (< 0) in [-1, 1]; values outside are clipped. The brake
                never drives the car backwards.
            grip: Factor on the friction, below 1 on wet roads.
        """
        params = self.params
        step_s = self._period_s / params.substeps
        target = min(max(steer, -1.0), 1.0) * params.max_wheel_angle_rad
        turn = params.wheel_rate_radps * step_s
        forces = self._forces(min(max(pedal, -1.0), 1.0), params.friction * grip)
        before = self.speed_mps
        for _ in range(params.substeps):
            gap = target - self.wheel_rad
            self.wheel_rad += gap if -turn <= gap <= turn else math.copysign(turn, gap)
            self._substep(forces, step_s)
        self.acceleration_mps2 = (self.speed_mps - before) / self._period_s

    def _forces(self, pedal: float, friction: float) -> tuple[float, float, float, float]:
        """Return the forces in N of a control period.

        Returns:
            The driving force at the front axle, the sum of the resistances to the motion, and the
            lateral forces that the front and the rear axle can still provide.
        """
        p, speed = self.params, abs(self.speed_mps)
        weight = p.mass_kg * GRAVITY_MPS2
        shift = p.mass_kg * self.acceleration_mps2 * p.mass_height_m / p.wheelbase_m
        front = friction * min(max(0.5 * weight - shift, 0.1 * weight), 0.9 * weight)
        total = friction * weight
        drive = min(p.drive_force_n, p.power_w / max(speed, _CRAWL_MPS)) * max(pedal, 0.0)
        drive = min(drive, _LONGITUDINAL_SHARE * front)
        # The brakes distribute their force over the axles by load, as brake controllers do.
        brake = min(p.brake_force_n * max(-pedal, 0.0), _LONGITUDINAL_SHARE * total)
        left = math.sqrt(1.0 - (brake / total) ** 2)
        front_left = math.sqrt(front * front - drive * drive) if drive > 0.0 else front * left
        drag = 0.5 * AIR_DENSITY * p.drag_area_m2 * speed * speed
        resistance = brake + drag + p.rolling_resistance * weight
        return drive, resistance, front_left * p.front_grip, (total - front) * left

    def _substep(self, forces: tuple[float, float, float, float], step_s: float) -> None:
        p = self.params
        drive, resistance, front_limit, rear_limit = forces
        vx, vy, rate, delta = (
            self.speed_mps,
            self.side_speed_mps,
            self.yaw_rate_radps,
            self.wheel_rad,
        )
        half, mass = 0.5 * p.wheelbase_m, p.mass_kg
        sin_delta, cos_delta = math.sin(delta), math.cos(delta)
        ahead = max(abs(vx), 0.1)
        steered = delta if vx >= 0.0 else -delta
        # Pacejka's formula: limit * sin(atan(force / limit)) = force / sqrt(1 + (force / limit)^2).
        linear = p.front_stiffness_n * (steered - math.atan2(vy + half * rate, ahead))
        front = linear / math.sqrt(1.0 + (linear / front_limit) ** 2)
        linear = -p.rear_stiffness_n * math.atan2(vy - half * rate, ahead)
        rear = linear / math.sqrt(1.0 + (linear / rear_limit) ** 2)

        front_across = front * cos_delta + drive * sin_delta
        across = (front_across + rear) / mass
        # The axes turn with the car. To second order: otherwise a spin would gain energy.
        turn = rate * step_s
        stay = 1.0 - 0.5 * turn * turn
        along = stay * vx + turn * vy + (drive * cos_delta - front * sin_delta) / mass * step_s
        # Resistances act against the motion; they can stop it but not reverse it.
        new_vx = math.copysign(max(abs(along) - resistance / mass * step_s, 0.0), along)
        new_vy = stay * vy - turn * vx + across * step_s
        new_rate = rate + half * (front_across - rear) / p.yaw_inertia_kgm2 * step_s

        if (rolling := math.hypot(new_vx, new_vy)) < _DYNAMIC_ABOVE_MPS:
            share = (rolling - _KINEMATIC_BELOW_MPS) / (_DYNAMIC_ABOVE_MPS - _KINEMATIC_BELOW_MPS)
            share = max(share, 0.0)
            kinematic = new_vx * sin_delta / cos_delta / p.wheelbase_m
            new_rate = share * new_rate + (1.0 - share) * kinematic
            new_vy = share * new_vy + (1.0 - share) * kinematic * half
            across = share * across + (1.0 - share) * new_vx * kinematic
        self.lateral_acceleration_mps2 = across

        middle = self.yaw_rad + 0.5 * new_rate * step_s
        cos_yaw, sin_yaw = math.cos(middle), math.sin(middle)
        self.x_m += (new_vx * cos_yaw - new_vy * sin_yaw) * step_s
        self.y_m += (new_vx * sin_yaw + new_vy * cos_yaw) * step_s
        self.yaw_rad = math.remainder(self.yaw_rad + new_rate * step_s, math.tau)
        self.speed_mps, self.side_speed_mps, self.yaw_rate_radps = new_vx, new_vy, new_rate

    def state(self) -> VehicleState:
        """Return the state of the car for the rest of the collector."""
        return VehicleState(
            x_m=self.x_m,
            y_m=self.y_m,
            yaw_rad=self.yaw_rad,
            speed_mps=self.speed_mps,
            acceleration_mps2=self.acceleration_mps2,
            lateral_acceleration_mps2=self.lateral_acceleration_mps2,
            steer=self.wheel_rad / self.params.max_wheel_angle_rad,
        )
