"""The one way the collector's settings refuse a value, and worlds a missing package carla."""

import importlib.util
import platform
import sys

from avtd3.store.errors import ConfigError, abbreviate, install_command

MOST = sys.float_info.max
"""Largest finite number; `math.isfinite` fails for whole numbers above it."""
CARLA_PYTHONS = ((3, 10), (3, 12))
"""First and last Python version for which carla 0.9.16 has a wheel."""
CARLA_GLIBC = (2, 31)
"""Oldest glibc that its wheels accept (manylinux_2_31)."""


def check_number(name: str, value: float, *, minimum: float = 0.0, maximum: float = MOST) -> None:
    """Refuse a setting outside its limits, both of which are allowed values."""
    if not minimum <= value <= maximum:
        limit = f"{minimum:g} or more" if maximum == MOST else f"{minimum:g} to {maximum:g}"
        raise ConfigError(f"{name} is {abbreviate(value)}, expected {limit}")


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a finite number above 0."""
    if not 0.0 < value <= MOST:
        raise ConfigError(f"{name} is {abbreviate(value)}, expected a finite number above 0")


def require_carla(user: str, problem: str = "") -> None:
    """Raise `ConfigError` if the package carla, which `user` needs, is missing or has a problem.

    It is not imported here: importing it may crash a process.
    """
    if not problem and importlib.util.find_spec("carla") is not None:
        return
    first, last, glibc = (".".join(map(str, v)) for v in (*CARLA_PYTHONS, CARLA_GLIBC))
    libc, version = platform.libc_ver()
    found_glibc = tuple(int(part) for part in version.split(".")[:2]) if libc == "glibc" else ()
    if (
        CARLA_PYTHONS[0] <= sys.version_info[:2] <= CARLA_PYTHONS[1]
        and (sys.platform, platform.machine()) == ("linux", "x86_64")
        and found_glibc >= CARLA_GLIBC
    ):
        fix = f"install it with: {install_command('carla')}"
    else:
        python = platform.python_version()
        fix = (
            f"it exists for Python {first} to {last} on x86-64 Linux with glibc {glibc} or newer, "
            f"and here is Python {python} on {platform.machine()} {platform.system()} with "
            f"{f'glibc {version}' if libc else 'another C library'}; use another Python or "
            "machine for this, training and audits work without carla"
        )
    raise ConfigError(
        f"{user} needs the package carla 0.9.16, {problem or 'which is not installed'}; {fix}"
    )
