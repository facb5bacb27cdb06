import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.collect.sim.world import GRAVITY_MPS2, Vehicle, VehicleParams
from avtd3.store.errors import ConfigError

PERIOD_S = 0.05


def make_vehicle(speed_mps=0.0, **params):
    vehicle = Vehicle(VehicleParams(**params), PERIOD_S)
    vehicle.place(0.0, 0.0, 0.0, speed_mps)
    return vehicle


def hold_speed(vehicle, speed_mps, steer, seconds=8.0):
    for _ in range(round(seconds / PERIOD_S)):
        vehicle.advance(steer, 0.5 * (speed_mps - vehicle.speed_mps))


@pytest.mark.parametrize("steer", [0.1, 0.5, 1.0, -0.7])
def test_slow_turns_have_the_radius_of_the_wheelbase_and_wheel_angle(steer):
    vehicle = make_vehicle(1.0)
    hold_speed(vehicle, 1.0, steer)
    params = vehicle.params
    radius = params.wheelbase_m / math.tan(steer * params.max_wheel_angle_rad)
    assert vehicle.speed_mps / vehicle.yaw_rate_radps == pytest.approx(radius, rel=1e-6)


def test_steering_right_turns_clockwise_towards_positive_y():
    vehicle = make_vehicle(5.0)
    hold_speed(vehicle, 5.0, 0.2, seconds=1.0)
    assert vehicle.yaw_rad > 0.1
    assert vehicle.y_m > 0.1
    assert vehicle.lateral_acceleration_mps2 > 0.5
    assert vehicle.state().steer == pytest.approx(0.2)


def test_fast_turns_follow_the_understeer_gradient():
    # Rajamani 2012, section 3.2: delta = L / R + K_v a_y, K_v from axle loads and stiffness.
    vehicle = make_vehicle(15.0, drag_area_m2=1e-6, rolling_resistance=1e-6)
    hold_speed(vehicle, 15.0, 0.05)
    params = vehicle.params
    load = params.mass_kg / 2.0
    gradient = load / params.front_stiffness_n - load / params.rear_stiffness_n
    rate = vehicle.yaw_rate_radps
    wheel = params.wheelbase_m * rate / vehicle.speed_mps + gradient * vehicle.speed_mps * rate
    assert vehicle.wheel_rad == pytest.approx(wheel, rel=0.03)


@pytest.mark.parametrize("grip", [1.0, 0.5])
def test_full_brake_stops_within_what_friction_and_brakes_allow(grip):
    vehicle = make_vehicle(20.0)
    for _ in range(400):
        vehicle.advance(0.0, -1.0, grip)
    params = vehicle.params
    braking = min(
        params.brake_force_n / params.mass_kg, 0.95 * params.friction * grip * GRAVITY_MPS2
    )
    assert vehicle.speed_mps == 0.0
    assert vehicle.x_m == pytest.approx(20.0**2 / (2.0 * braking), rel=0.05)
    assert vehicle.x_m > 20.0**2 / (2.0 * (params.friction * grip + 0.05) * GRAVITY_MPS2)


def test_brake_holds_and_never_reverses():
    vehicle = make_vehicle(0.5)
    for _ in range(100):
        vehicle.advance(0.3, -0.2)
        assert vehicle.speed_mps >= 0.0
    x = vehicle.x_m
    vehicle.advance(0.3, -1.0)
    assert (vehicle.x_m, vehicle.speed_mps) == (x, 0.0)


def test_lateral_acceleration_stays_within_friction():
    vehicle = make_vehicle(20.0)
    for _ in range(200):
        vehicle.advance(1.0, 0.3)
        assert abs(vehicle.lateral_acceleration_mps2) <= vehicle.params.friction * GRAVITY_MPS2


def test_cannot_gain_more_energy_than_the_engine_gives():
    vehicle = make_vehicle(1.0)
    params, start = vehicle.params, 0.5 * 1500.0
    for step in range(1, 400):
        vehicle.advance(0.0, 1.0)
        energy = 0.5 * params.mass_kg * vehicle.speed_mps**2
        assert energy - start <= params.power_w * step * PERIOD_S
    assert 30.0 < vehicle.speed_mps < 60.0


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 40), st.lists(st.floats(-1, 1), min_size=20, max_size=60))
def test_a_skidding_car_without_throttle_only_loses_energy(speed, steers):
    vehicle = make_vehicle(speed)

    def energy():
        params = vehicle.params
        moved = vehicle.speed_mps**2 + vehicle.side_speed_mps**2
        return 0.5 * (params.mass_kg * moved + params.yaw_inertia_kgm2 * vehicle.yaw_rate_radps**2)

    allowed = energy()
    for steer in steers:
        vehicle.advance(steer, 0.0)
    # At walking pace, the kinematic model may turn the car without a force.
    assert energy() <= allowed * 1.02 + 50.0
    assert all(math.isfinite(value) for value in dataclasses.astuple(vehicle.state()))


def test_wheels_turn_no_faster_than_their_rate():
    vehicle = make_vehicle(5.0)
    vehicle.advance(1.0, 0.0)
    assert vehicle.wheel_rad == pytest.approx(vehicle.params.wheel_rate_radps * PERIOD_S)
    for _ in range(20):
        vehicle.advance(5.0, 0.0)
    assert vehicle.wheel_rad == pytest.approx(vehicle.params.max_wheel_angle_rad)


def test_state_reports_the_change_of_speed_over_the_period():
    vehicle = make_vehicle(10.0)
    vehicle.advance(0.0, 0.7)
    before = vehicle.speed_mps
    vehicle.advance(0.0, -0.5)
    state = vehicle.state()
    assert state.acceleration_mps2 == pytest.approx((state.speed_mps - before) / PERIOD_S)


def test_same_actions_give_the_same_state():
    def drive():
        vehicle = make_vehicle(8.0)
        for step in range(200):
            vehicle.advance(math.sin(step / 9.0), math.cos(step / 17.0), 0.8)
        return vehicle.state()

    assert drive() == drive()


@pytest.mark.parametrize("values", [{"mass_kg": 0.0}, {"substeps": 0}, {"max_wheel_angle_rad": 2}])
def test_impossible_parameters_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        VehicleParams(**values)
