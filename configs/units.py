"""Parse amounts given on a command line: ``10GB``, ``30d``, ``name=1.0,other=0.5``."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from avtd3.store.errors import ConfigError

_BYTES = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**n for n, prefix in enumerate("kMGT", start=1)},
    **{f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", start=1)},
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Return the bytes in ``10GB`` (powers of 1000), ``10GiB`` (of 1024) or ``10000``.

    Capitals and small letters mean the same: nobody means megabits.

    Raises:
        ConfigError: If the text is none of these.
    """
    units = {unit.lower(): factor for unit, factor in _BYTES.items()}
    return round(_parse(text, units, "an amount of bytes as 10GB, 500MB or 2GiB"))


def parse_seconds(text: str) -> float:
    """Return the seconds in ``45s``, ``90m``, ``12h``, ``30d`` or ``2w``.

    Raises:
        ConfigError: If the text is none of these.
    """
    return _parse(text, _SECONDS, "a time as 30d, 12h, 90m or 45s")


def _parse(text: str, units: Mapping[str, float], expected: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{text!r} cannot be read: expected {expected}")
    amount = float(match[1]) * factor
    if not math.isfinite(amount):
        raise ConfigError(f"{text!r} is too large: expected {expected}")
    return amount


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Parse factors by name from ``name=1.0,other=0.5``, or from a YAML file of such pairs.

    Args:
        texts: Each is a list of pairs or the path of a file; later values replace earlier ones.

    Raises:
        ConfigError: If a part is neither, or the file does not map names to numbers.
    """
    weights: dict[str, float] = {}
    for text in texts:
        if "=" not in text:
            weights |= _read_weights(Path(text))
            continue
        for part in text.split(","):
            name, _, value = part.partition("=")
            weights[name.strip()] = _number(name, value)
    return weights


def _number(name: str, value: object) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ConfigError(f"weight {name}={value}: expected NAME=NUMBER, as safety/collision=2.0")


def _read_weights(path: Path) -> dict[str, float]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--weights {path}: expected NAME=NUMBER,... or a YAML file of such pairs ({reason})"
        ) from error
    if not isinstance(document, dict):
        raise ConfigError(f"--weights {path}: expected a mapping of reward terms to numbers")
    return {str(name): _number(str(name), value) for name, value in document.items()}
