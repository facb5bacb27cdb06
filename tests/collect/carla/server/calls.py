"""The calls that the server answers, by their names on the wire."""

import collections
import os
from typing import Any

import numpy as np

from avtd3.tests.collect.carla.server import packing
from avtd3.tests.collect.carla.server.actors import Car, Light, Walker, numbers
from avtd3.tests.collect.carla.server.batch import run_batch
from avtd3.tests.collect.carla.server.simulation import Refused


class Bare:
    """A result that is sent without the usual wrapper."""

    def __init__(self, value):
        self.value = value


class Calls:
    """The calls on a simulation: every public method is one."""

    def __init__(self, simulation, stream_port):
        self._simulation, self._stream_port = simulation, stream_port
        self._managers = {}
        self.commands: collections.Counter[str] = collections.Counter()
        """Commands in batches, by the name of the same call."""
        self.later: list[tuple[str, Any]] = []
        """Calls to carry out after the next tick."""
        self._counts: collections.Counter[str] = collections.Counter()

    def is_late(self, fault):
        """Return whether a call is the n-th of those that are carried out late."""
        every = getattr(self._simulation.faults, fault)
        self._counts[fault] += 1
        return every > 0 and self._counts[fault] % every == 0

    def _car(self, number):
        car = self._simulation.actors.get(number)
        if not isinstance(car, Car):
            raise Refused(f"unable to find vehicle {number}")
        return car

    def _actor(self, number):
        if number not in self._simulation.actors:
            raise Refused(f"unable to find actor {number}")
        return self._simulation.actors[number]

    # The client and its episode.

    def version(self):
        return self._simulation.faults.version

    def get_episode_info(self):
        return [self._simulation.episode_id, self._token(packing.SNAPSHOT_STREAM)]

    def _token(self, stream_id):
        return [packing.token(stream_id, self._stream_port)]

    def get_sensor_token(self, stream_id):
        return self._token(stream_id)

    def get_episode_settings(self):
        settings = list(self._simulation.settings)
        if self._simulation.faults.float_settings:
            settings = [as_float32(value) for value in settings]
        return settings

    def set_episode_settings(self, settings):
        if self._simulation.faults.is_due("refuse_settings_after"):
            raise Refused("settings are refused")
        simulation = self._simulation
        simulation.settings = list(settings)
        simulation.delta_s = simulation.step_s
        # The client waits for a snapshot of the frame in the answer, and has it already.
        return simulation.frame

    def get_required_files(self, _folder, _download=True):
        return []

    def get_map_info(self):
        town = self._simulation.map
        return [town.name, town.spawn_points()]

    def get_map_data(self):
        xodr = self._simulation.map.xodr
        return xodr.replace("\n", "\r\n") if self._simulation.faults.crlf else xodr

    def get_available_maps(self):
        return self._simulation.maps.available()

    def load_new_episode(self, name, reset_settings=True, _layers=65535):
        faults = self._simulation.faults
        if faults.refuse_loads:
            faults.refuse_loads -= 1
            raise Refused("the map could not be loaded")
        self._simulation.load(name, reset_settings=reset_settings)

    def copy_opendrive_to_file(self, xodr, _parameters):
        self._simulation.maps.opendrive = xodr

    def tick_cue(self):
        simulation, faults = self._simulation, self._simulation.faults
        if faults.is_due("exit_after_ticks"):
            os._exit(1)
        if not simulation.is_synchronous:
            return simulation.frame + 1
        simulation.tick()
        frame = simulation.frame
        if self.is_late("foreign_ticks_every"):
            simulation.tick()
        return frame

    def get_weather_parameters(self):
        return list(self._simulation.weather)

    def set_weather_parameters(self, values):
        self._simulation.weather = tuple(values)

    # Actors.

    def get_actor_definitions(self):
        return list(self._simulation.blueprints.values())

    def get_actors_by_id(self, ids):
        actors = self._simulation.actors
        return [actors[number].wire() for number in ids if number in actors]

    def get_spectator(self):
        return self._simulation.spectator.wire()

    def spawn_actor(self, description, place):
        return self._simulation.spawn(description, numbers(place)).wire()

    def spawn_actor_with_parent(self, description, place, parent_id, _attachment=0, _socket=""):
        return self._simulation.spawn(description, numbers(place), parent_id).wire()

    def destroy_actor(self, number):
        if not self._simulation.destroy(number):
            raise Refused(f"unable to destroy actor {number}: not found")
        return True

    def get_actor_bounding_box(self, number):
        return self._actor(number).box()

    def set_actor_transform(self, number, place):
        self._actor(number).move_to(numbers(place))

    def set_actor_location(self, number, place):
        actor = self._actor(number)
        actor.move_to((*place, *actor.pose[3:]))

    def set_actor_target_velocity(self, number, velocity):
        self._car(number).set_velocity(complex(velocity[0], velocity[1]))

    def set_actor_target_angular_velocity(self, number, turn_deg):
        self._car(number).set_turn(turn_deg[2])

    def enable_actor_constant_velocity(self, number, velocity):
        self._car(number).constant_mps = velocity[0]

    def disable_actor_constant_velocity(self, number):
        self._car(number).constant_mps = None

    def set_actor_simulate_physics(self, number, enabled):
        actor = self._actor(number)
        if isinstance(actor, Car | Walker):
            actor.simulates = enabled
        if isinstance(actor, Car) and not enabled:
            actor.halt()

    def set_actor_enable_gravity(self, number, _enabled):
        self._actor(number)

    # Vehicles.

    def apply_control_to_vehicle(self, number, control):
        self._car(number).control = list(control)

    def apply_control_to_walker(self, number, control):
        self._actor(number).control = list(control)

    def set_actor_autopilot(self, number, _enabled):
        self._car(number)

    def get_physics_control(self, number):
        return self._car(number).physics()

    def apply_physics_control(self, number, physics):
        if not self._simulation.faults.ignore_physics:
            self._car(number).apply_physics(physics)

    def set_vehicle_light_state(self, number, flags):
        self._car(number).light_flags = flags[0]

    def get_vehicle_light_state(self, number):
        return [self._car(number).light_flags]

    def get_vehicle_light_states(self):
        return [[car.id, car.light_flags] for car in self._simulation.cars()]

    # Traffic lights.

    def _light(self, number):
        light = self._actor(number)
        if not isinstance(light, Light):
            raise Refused(f"actor {number} is no traffic light")
        return light

    def set_traffic_light_state(self, number, state):
        self._light(number).light_state = state

    def freeze_all_traffic_lights(self, are_frozen):
        self._simulation.lights_are_frozen = are_frozen

    # The traffic manager, which runs in a client and only registers here.

    def is_traffic_manager_running(self, port):
        return port in self._managers

    def get_traffic_manager_running(self, port):
        return self._managers.get(port, ["", 0])

    def add_traffic_manager_running(self, address):
        host, port = address
        is_new = port not in self._managers
        self._managers.setdefault(port, [host, port])
        return is_new

    def destroy_traffic_manager(self, port):
        return self._managers.pop(port, None) is not None

    # Features without an implementation.

    def query_lights_state(self, _client):
        return []

    def update_lights_state(self, _client, _discard, _lights):
        return None

    def reset_all_traffic_lights(self):
        return None

    def get_environment_objects(self, _tag):
        return []

    def get_all_level_BBs(self, _tag):
        return []

    def get_names_of_all_objects(self):
        return []

    def draw_debug_shape(self, _shape):
        return None

    def apply_batch(self, commands, _do_tick=False):
        return Bare(run_batch(self, self._simulation, commands))


def as_float32(value):
    """Return numbers in a setting as a server that stores float32 returns them."""
    if isinstance(value, list):
        return [as_float32(part) for part in value]
    return float(np.float32(value)) if isinstance(value, float) else value


VOID = frozenset(
    name
    for name in vars(Calls)
    if name.startswith(
        ("set_", "apply_", "enable_", "disable_", "load_", "copy_", "reset_", "freeze_", "draw_")
    )
    or name == "update_lights_state"
) - {"set_episode_settings", "apply_batch"}
"""Calls whose answer is only success or an error."""
