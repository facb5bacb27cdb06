"""Blueprints: a few vehicles, and the supported sensors."""

import itertools

BOOL, INT, FLOAT, STRING, COLOUR = range(1, 6)
"""Types of attributes."""

ROAD_CAR = "vehicle.tesla.model3"
"""The vehicle with the dynamics of the built-in simulator's car."""
SIZES_M = {
    ROAD_CAR: (4.6, 1.85, 1.5),
    "vehicle.lincoln.mkz_2017": (4.6, 1.85, 1.5),
    "vehicle.audi.tt": (4.2, 1.8, 1.4),
    "vehicle.nissan.micra": (3.6, 1.7, 1.5),
    "vehicle.ford.ambulance": (6.0, 2.2, 2.4),
}
"""Length, width and height of each vehicle."""


def definitions():
    """Return the blueprint library, as in the answer of `get_actor_definitions`."""
    numbers = itertools.count(1)
    return [
        [next(numbers), name, name.replace(".", ","), attributes]
        for name, attributes in (
            *((name, _vehicle(name)) for name in SIZES_M),
            ("walker.pedestrian.0001", _sensor("pedestrian")),
            ("walker.pedestrian.0002", _sensor("pedestrian")),
            ("sensor.camera.rgb", _camera()),
            ("sensor.camera.semantic_segmentation", _camera()),
            ("sensor.other.collision", _sensor()),
            ("sensor.other.lane_invasion", _sensor()),
        )
    ]


def _attribute(name, kind, value, *choices, fixed=False):
    return [name, kind, str(value), [str(choice) for choice in choices], not fixed, bool(choices)]


def _vehicle(name):
    base = "van" if "ambulance" in name else "car"
    return [
        _attribute("role_name", STRING, "autopilot"),
        _attribute("color", COLOUR, "180,20,20"),
        _attribute("number_of_wheels", INT, 4, fixed=True),
        _attribute("generation", INT, 1, fixed=True),
        _attribute("base_type", STRING, base, fixed=True),
        _attribute("special_type", STRING, "", fixed=True),
        _attribute("has_lights", BOOL, "true", fixed=True),
        _attribute("sticky_control", BOOL, "true"),
        _attribute("terramechanics", BOOL, "false"),
    ]


def _sensor(role="front"):
    return [_attribute("role_name", STRING, role)]


def _camera():
    numbers = {
        "fov": 90.0,
        "sensor_tick": 0.0,
        "gamma": 2.2,
        "exposure_compensation": 0.0,
        "motion_blur_intensity": 0.45,
        "lens_circle_falloff": 5.0,
        "lens_circle_multiplier": 0.0,
        "lens_k": -1.0,
        "lens_kcube": 0.0,
        "chromatic_aberration_intensity": 0.0,
        "bloom_intensity": 0.675,
    }
    return [
        *_sensor(),
        _attribute("image_size_x", INT, 800),
        _attribute("image_size_y", INT, 600),
        _attribute("enable_postprocess_effects", BOOL, "true"),
        _attribute("exposure_mode", STRING, "histogram"),
        *(_attribute(name, FLOAT, value) for name, value in numbers.items()),
    ]
