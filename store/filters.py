"""`EpisodeFilter`: which episodes are meant, by what the store knows of each.

Written as texts, ``KEY=VALUE``: one way for the command line, the configuration and the reports.

============ ===================================== ==============================================
key          value                                 an episode matches if
============ ===================================== ==============================================
``scenario`` ``0,2``                               its scenario is one of the numbers
``world``    ``road``                              its world is one of the names; ``*``, ``?`` and
``town``     ``country-*,town-3``                  ``[...]`` stand for characters as in a shell
``driver``   ``policy*``
``end``      ``collision,off_road``
``policy``   ``3..7``, ``5``, ``3..``, ``none``    its policy's version is in the range, both ends
                                                   included; no policy is in no range but ``none``
``date``     ``2026-11-01..2026-11-20``            it began on one of these days, in UTC; times of
                                                   day are allowed: from the first, before the last
============ ===================================== ==============================================
"""

import dataclasses
import datetime
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import ConfigError

NO_POLICY = -1
"""Version of the policy of an episode that no policy drove."""
NEWEST = 2**63 - 1
"""End of an open range of versions."""

_LISTS = {
    "scenario": "scenarios",
    "world": "worlds",
    "town": "towns",
    "driver": "drivers",
    "end": "end_reasons",
}
_ATTRIBUTES = {"worlds": "world", "towns": "town", "drivers": "driver"}
KEYS = (*_LISTS, "policy", "date")
"""What a filter's text may begin with."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFilter:
    """Episodes for which all that is given holds; nothing given, all episodes."""

    scenarios: tuple[int, ...] = ()
    """Numbers of scenarios; empty: any."""
    worlds: tuple[str, ...] = ()
    """Patterns of the simulator's name; empty: any."""
    towns: tuple[str, ...] = ()
    """Patterns of the road network's name; empty: any."""
    drivers: tuple[str, ...] = ()
    """Patterns of the driver's name; empty: any."""
    end_reasons: tuple[str, ...] = ()
    """Patterns of the reason of the episode's end; empty: any."""
    policy_versions: tuple[int, ...] = ()
    """Lowest and highest version of the driving policy, -1 for none; empty: any."""
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
        """Which episodes are meant: bool (E,)."""
        found = np.ones(len(table.length), np.bool_)
        if self.scenarios:
            found &= np.isin(table.numbers("scenario"), self.scenarios)
        for field, attribute in _ATTRIBUTES.items():
            if patterns := getattr(self, field):
                found &= _any_pattern(table.texts(attribute), patterns)
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
    """Read a filter from texts as in the module's table.

    Values of one key, joined by commas or given twice, are alternatives; all keys must hold.

    Raises:
        ConfigError: An unknown key, a value that cannot be read, or a second policy or date.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, found, value = text.partition("=")
        if not found or key not in KEYS or not value.strip():
            raise ConfigError(
                f"filter {text!r}: expected KEY=VALUE with a KEY of {', '.join(KEYS)}, as "
                "'end=collision' or 'policy=3..7'"
            )
        if key in _LISTS:
            values[_LISTS[key]] = values.get(_LISTS[key], ()) + _parse_list(key, value, text)
            continue
        fields = _parse_policy(value, text) if key == "policy" else _parse_date(value)
        if fields.keys() & values.keys():
            raise ConfigError(f"filter {text!r}: {key} is given twice; give one range")
        values |= fields
    return EpisodeFilter(**values)


def _parse_list(key: str, value: str, text: str) -> tuple[Any, ...]:
    items = tuple(item.strip() for item in value.split(","))
    if key != "scenario":
        return items
    try:
        return tuple(int(item) for item in items)
    except ValueError as error:
        raise ConfigError(
            f"filter {text!r}: expected whole numbers of scenarios, as 'scenario=0,2'"
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
            f"filter {text!r}: expected a version, a range as 'policy=3..7', or 'policy=none'"
        ) from error
    return {"policy_versions": (low, high)}


def _parse_date(value: str) -> dict[str, Any]:
    first, dots, last = value.partition("..")
    return {"since": first, "until": last if dots else first}


def _any_pattern(names: Sequence[str], patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Bool (E,): whether a name fits a pattern; each name is compared once, however often it is."""
    expression = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    fits = {name: expression.match(name) is not None for name in set(names)}
    return np.array([fits[name] for name in names], np.bool_)


def _seconds(text: str, *, last: bool) -> float:
    """Seconds since 1970 of a day or moment; the end of the day if `last`; unbounded if empty."""
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
            f"filter date {text!r}: expected a day as 2026-11-01 or a moment as "
            "2026-11-01T08:30:00, in UTC unless it says otherwise"
        ) from error
