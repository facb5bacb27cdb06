"""`EpisodeFilter`: choose episodes by what is known about each.

A filter is written as texts, ``KEY=VALUE``, on the command line, in configurations and in Python:

================== ============================== ================================================
key                value                          an episode matches if
================== ============================== ================================================
``world``          ``road``                       its attribute of this name is one of the values;
``town``           ``country-*,town-3``           ``*``, ``?`` and ``[...]`` are wildcards as in a
``driver``         ``policy*``                    shell
``scenario``       ``0,2``
``attribute.NAME`` ``3,4``
``end``            ``collision,off_road``         its end reason is one of the values
``policy``         ``3..7``, ``5``, ``3..``,      its policy's version is in the range, both ends
                   ``none``                       included; ``none``: no policy acted
``date``           ``2026-11-01..2026-11-20``     it began on one of these days, in UTC; with times,
                                                  from the first until before the last
================== ============================== ================================================
"""

import dataclasses
import datetime
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import ConfigError, abbreviate

NO_POLICY = -1
"""Policy version of an episode in which no policy acted."""
NEWEST = 2**63 - 1
"""End of an open range of versions."""

_ATTRIBUTE = "attribute."
_ATTRIBUTE_KEYS = ("scenario", "world", "town", "driver")
KEYS = (*_ATTRIBUTE_KEYS, "end", "policy", "date", f"{_ATTRIBUTE}NAME")
"""Keys that a filter's text may have."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFilter:
    """Chooses the episodes that match every given field; without any, all episodes.

    `parse_filter` makes one from texts.

    Example:
        >>> parse_filter(["town=country-*", "end=goal"]).end_reasons
        ('goal',)
    """

    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Shell patterns by name of the attribute; numbers match as text."""
    end_reasons: tuple[str, ...] = ()
    """Shell patterns of the end reason; empty: any."""
    policy_versions: tuple[int, ...] = ()
    """Lowest and highest version of the policy that acted, -1 for none; empty: any."""
    since: str = ""
    """First day, or moment, of the episode's start: ISO 8601, UTC unless it says otherwise."""
    until: str = ""
    """Last day, whole, or the moment before which the episode started."""

    def __post_init__(self) -> None:
        if self.policy_versions:
            low, high = self.policy_versions
            if not NO_POLICY <= low <= high:
                raise ConfigError(
                    f"filter policy={low}..{high}: expected a lower version before a higher one"
                )
        if _seconds(self.since, last=False) >= _seconds(self.until, last=True):
            raise ConfigError(
                f"filter date={self.since}..{self.until}: expected an earlier date before a later"
            )

    def matches(self, table: EpisodeTable) -> NDArray[np.bool_]:
        """Return which episodes match, bool (E,)."""
        found = np.ones(len(table), np.bool_)
        for name, patterns in self.attributes.items():
            found &= _any_pattern(table.texts(name), patterns)
        if self.end_reasons:
            found &= _any_pattern(table.end_reason, self.end_reasons)
        if self.policy_versions:
            low, high = self.policy_versions
            found &= (table.policy_version >= low) & (table.policy_version <= high)
        if self.since or self.until:
            start = table.wall_time
            found &= start >= _seconds(self.since, last=False)
            found &= start < _seconds(self.until, last=True)
        return found


def parse_filter(texts: Sequence[str]) -> EpisodeFilter:
    """Return the filter that texts describe.

    Values of one key, separated by commas or given twice, are alternatives. An episode must match
    all keys.

    Args:
        texts: ``KEY=VALUE`` each, such as ``end=collision``, ``policy=3..7``, ``date=2026-11-01``,
            ``town=country-*`` or ``attribute.lap=3``.

    Raises:
        ConfigError: An unknown key, a value that cannot be read, or a second policy or date.

    Example:
        >>> parse_filter(["policy=3..7"]).policy_versions
        (3, 7)
    """
    values: dict[str, Any] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, found, value = text.partition("=")
        attribute = key.removeprefix(_ATTRIBUTE)
        is_attribute = key in _ATTRIBUTE_KEYS or (attribute and attribute != key)
        is_known = is_attribute or key in ("end", "policy", "date")
        if not found or not is_known or not value.strip():
            raise ConfigError(
                f"filter {abbreviate(text)}: expected KEY=VALUE with a KEY of {', '.join(KEYS)}, "
                "as 'end=collision' or 'policy=3..7'"
            )
        if is_attribute:
            items = _parse_scenarios(value, text) if key == "scenario" else _split(value)
            attributes[attribute] = attributes.get(attribute, ()) + items
            continue
        if key == "end":
            values["end_reasons"] = values.get("end_reasons", ()) + _split(value)
            continue
        fields = _parse_policy(value, text) if key == "policy" else _parse_date(value)
        if fields.keys() & values.keys():
            raise ConfigError(f"filter {abbreviate(text)}: {key} is given twice; give one range")
        values |= fields
    return EpisodeFilter(attributes=attributes, **values)


def _split(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(","))


def _parse_scenarios(value: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(str(int(item)) for item in value.split(","))
    except ValueError as error:
        raise ConfigError(
            f"filter {abbreviate(text)}: expected whole numbers of scenarios, as 'scenario=0,2'"
        ) from error


def _parse_policy(value: str, text: str) -> dict[str, Any]:
    if value == "none":
        return {"policy_versions": (NO_POLICY, NO_POLICY)}
    first, dots, last = value.partition("..")
    try:
        low = int(first) if first else 0
        high = (int(last) if last else NEWEST) if dots else low
    except ValueError as error:
        raise ConfigError(
            f"filter {abbreviate(text)}: expected a version, a range as 'policy=3..7', or "
            "'policy=none'"
        ) from error
    return {"policy_versions": (low, high)}


def _parse_date(value: str) -> dict[str, Any]:
    first, dots, last = value.partition("..")
    return {"since": first, "until": last if dots else first}


def _any_pattern(names: Sequence[str], patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Return which names match a pattern, bool (E,); equal names are compared once."""
    expression = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    fits = {name: expression.match(name) is not None for name in set(names)}
    return np.array([fits[name] for name in names], np.bool_)


def _seconds(text: str, *, last: bool) -> float:
    """Return a day or moment as seconds since 1970: the day's end if ``last``, inf if empty."""
    if not text:
        return float("inf") if last else float("-inf")
    try:
        moment = datetime.datetime.fromisoformat(text)
        is_day = len(text) <= len("2026-11-01")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        if is_day and last:
            moment += datetime.timedelta(days=1)
        return moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"filter date {abbreviate(text)}: expected a day as 2026-11-01 or a moment as "
            "2026-11-01T08:30:00, in UTC unless it says otherwise"
        ) from error
