"""Draw the light, sky, fog and road wetness of an episode from its named weather.

Brightness is a share of white from 0 to 1, as an ideal camera would record it.
"""

import dataclasses

import numpy as np

from avtd3.store.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """The drawn weather of one episode, by one of the names in `WEATHERS`."""

    name: str
    grip: float
    """Factor on the friction of the tyres."""
    light: float
    """Daylight: factor on the brightness of all lit surfaces."""
    contrast: float
    """Factor on the brightness differences of the ground."""
    sky_top: float
    sky_horizon: float
    """Brightness of the sky above the horizon, and of fog."""
    fog_per_m: float
    """Share of the light lost per metre; fog replaces it."""
    headlights: float
    """Brightness that the headlights add directly in front of the car; 0 when they are off."""
    noise: float
    """Factor on the camera's noise."""


# Fixed values, and ranges to draw from.
_CLIMATES: dict[str, dict[str, float | tuple[float, float]]] = {
    "clear": dict(
        grip=1.0, light=(0.9, 1.2), contrast=(1.0, 1.2), sky_top=(0.45, 0.65),
        sky_horizon=(0.75, 0.95), fog_per_m=(0.001, 0.003), headlights=(0.0, 0.0), noise=1.0,
    ),
    "overcast": dict(
        grip=1.0, light=(0.65, 0.9), contrast=(0.7, 0.95), sky_top=(0.55, 0.75),
        sky_horizon=(0.65, 0.85), fog_per_m=(0.002, 0.006), headlights=(0.0, 0.0), noise=1.0,
    ),
    "rain": dict(
        grip=0.75, light=(0.45, 0.7), contrast=(0.6, 0.85), sky_top=(0.35, 0.5),
        sky_horizon=(0.45, 0.6), fog_per_m=(0.008, 0.02), headlights=(0.05, 0.15), noise=1.8,
    ),
    "fog": dict(
        grip=0.95, light=(0.6, 0.85), contrast=(0.6, 0.9), sky_top=(0.6, 0.8),
        sky_horizon=(0.6, 0.8), fog_per_m=(0.025, 0.055), headlights=(0.0, 0.1), noise=1.0,
    ),
    "dusk": dict(
        grip=1.0, light=(0.3, 0.5), contrast=(0.8, 1.0), sky_top=(0.15, 0.3),
        sky_horizon=(0.4, 0.65), fog_per_m=(0.002, 0.006), headlights=(0.2, 0.4), noise=1.4,
    ),
    "night": dict(
        grip=1.0, light=(0.08, 0.18), contrast=(0.9, 1.1), sky_top=(0.01, 0.05),
        sky_horizon=(0.05, 0.1), fog_per_m=(0.002, 0.008), headlights=(0.7, 1.1), noise=1.8,
    ),
}  # fmt: skip
WEATHERS: tuple[str, ...] = tuple(_CLIMATES)
WEATHER_GROUPS: dict[str, tuple[str, ...]] = {
    "fair": ("clear", "overcast"),
    "bad": ("rain", "fog", "dusk", "night"),
    "random": WEATHERS,
}
"""Names for a random choice among several weathers, all equally likely."""


def draw_weather(name: str, rng: np.random.Generator) -> Weather:
    """Draw the weather of an episode: `name` is one of `WEATHERS` or `WEATHER_GROUPS`."""
    group = WEATHER_GROUPS.get(name, (name,))
    chosen = group[int(rng.integers(len(group)))]
    if chosen not in _CLIMATES:
        known = ", ".join((*WEATHERS, *WEATHER_GROUPS))
        raise ConfigError(f"weather is {name!r}, expected one of: {known}")
    values = {
        name: rng.uniform(*value) if isinstance(value, tuple) else value
        for name, value in _CLIMATES[chosen].items()
    }
    return Weather(name=chosen, **values)
