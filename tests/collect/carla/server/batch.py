"""The commands of `apply_batch`, by their index in the client's variant."""

from avtd3.tests.collect.carla.server.actors import numbers
from avtd3.tests.collect.carla.server.simulation import Refused

_SPAWN, _DESTROY, _CONTROL, _LIGHTS = 0, 1, 2, 18
_CALLS = {
    4: "apply_control_to_walker",
    2: "apply_control_to_vehicle",
    5: "apply_physics_control",
    6: "set_actor_transform",
    8: "set_actor_target_velocity",
    9: "set_actor_target_angular_velocity",
    14: "set_actor_simulate_physics",
    15: "set_actor_enable_gravity",
    16: "set_actor_autopilot",
    19: "set_actor_location",
}


def run_batch(calls, simulation, commands):
    """Run commands in order; return the id of an actor or an error for each."""
    return [_answer(calls, simulation, command, 0) for command in commands]


def _answer(calls, simulation, command, spawned):
    try:
        return [[1, _run(calls, simulation, command, spawned)]]
    except Refused as error:
        return [[0, [str(error)]]]


def _run(calls, simulation, command, spawned):
    """Run a command; `spawned` replaces actor 0 in commands that follow a spawn."""
    index, payload = command[0] if len(command) == 1 else command
    if index == _SPAWN:
        description, place, parent = payload[:3]
        actor = simulation.spawn(description, numbers(place), parent[1] if parent[0] else 0)
        for following in payload[5]:
            _run(calls, simulation, following, actor.id)
        return actor.id
    number, *arguments = payload
    number = number or spawned
    if index == _DESTROY:
        calls.destroy_actor(number)
    elif index == _LIGHTS:
        calls.set_vehicle_light_state(number, arguments)
    elif index in _CALLS:
        calls.commands[_CALLS[index]] += 1
        if index == _CONTROL and calls.is_late("late_controls_every"):
            calls.later.append((_CALLS[index], (number, *arguments)))
        else:
            getattr(calls, _CALLS[index])(number, *arguments)
    else:
        raise Refused(f"command {index} is not understood")
    return number
