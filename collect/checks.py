"""The one way the collector's settings refuse a value."""

import math

from avtd3.store.errors import ConfigError


def check_number(
    name: str, value: float, *, minimum: float = 0.0, maximum: float = math.inf
) -> None:
    """Refuse a setting outside its limits, both of which are allowed values."""
    if not (math.isfinite(value) and minimum <= value <= maximum):
        limit = f"{minimum:g} or more" if math.isinf(maximum) else f"{minimum:g} to {maximum:g}"
        raise ConfigError(f"{name} is {value!r}, expected {limit}")


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} is {value!r}, expected a finite number above 0")
