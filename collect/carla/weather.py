"""What each of the road world's weathers is on CARLA, varied by episode."""

import carla
import numpy as np

from avtd3.collect.carla.config import KEPT_WEATHER, SCENARIO_WEATHER

_Range = tuple[float, float]
_CLIMATES: dict[str, dict[str, _Range]] = {
    "clear": {"cloudiness": (0, 20), "sun_altitude_angle": (30, 80)},
    "overcast": {"cloudiness": (60, 95), "sun_altitude_angle": (20, 70), "fog_density": (0, 5)},
    "rain": {
        "cloudiness": (70, 100),
        "precipitation": (30, 90),
        "precipitation_deposits": (30, 80),
        "wetness": (50, 100),
        "wind_intensity": (20, 80),
        "sun_altitude_angle": (15, 60),
        "fog_density": (0, 15),
    },
    "fog": {
        "cloudiness": (40, 90),
        "sun_altitude_angle": (15, 60),
        "fog_density": (30, 70),
        "fog_distance": (0, 20),
    },
    "dusk": {"cloudiness": (0, 60), "sun_altitude_angle": (1, 10)},
    "night": {"cloudiness": (0, 60), "sun_altitude_angle": (-60, -10)},
}


def weather_parameters(
    choice: str, drawn: str, rng: np.random.Generator
) -> carla.WeatherParameters | None:
    """The `carla.WeatherParameters` of an episode, None to keep what the server has.

    Args:
        choice: `CarlaConfig.weather`.
        drawn: The weather that the episode has drawn from its scenario.
        rng: Varies it.
    """
    if choice == KEPT_WEATHER:
        return None
    if choice != SCENARIO_WEATHER:
        return getattr(carla.WeatherParameters, choice)
    weather = carla.WeatherParameters()
    weather.sun_azimuth_angle = rng.uniform(0.0, 360.0)
    for name, limits in _CLIMATES[drawn].items():
        setattr(weather, name, rng.uniform(*limits))
    return weather


def needs_lamps(weather: carla.WeatherParameters) -> bool:
    """Whether a car drives with its lamps on."""
    return bool(weather.sun_altitude_angle < 12.0 or weather.fog_density > 30.0)
