"""The numbered scenarios: what an episode's roads, traffic and light are drawn from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.collect.checks import check_number
from avtd3.collect.driving.world import GENERATED, Scenario
from avtd3.collect.maps.scenario_files import read_scenarios
from avtd3.store.errors import ConfigError

_OF_THE_FILE = frozenset(("town", "networks", "route_length_m"))
_MIXED = ("country", "loop", "town")


def _scenario(
    number: int,
    name: str,
    kinds: tuple[str, ...],
    npcs: int,
    weather: str,
    time_limit_s: float = 60.0,
) -> Scenario:
    return Scenario(
        number=number,
        name=name,
        town=GENERATED,
        network_kinds=kinds,
        networks=200,
        npcs=npcs,
        weather=weather,
        route_length_m=200.0,
        time_limit_s=time_limit_s,
    )


SCENARIOS: tuple[Scenario, ...] = (
    _scenario(0, "mixed roads, fair weather, 20 vehicles", _MIXED, 20, "fair"),
    _scenario(1, "empty country roads", ("country",), 0, "clear"),
    _scenario(2, "town with junctions", ("town",), 20, "fair"),
    _scenario(3, "bad light: dusk, night, fog or rain", _MIXED, 10, "bad"),
    _scenario(4, "dense traffic", ("loop", "town"), 40, "fair", 90.0),
    _scenario(5, "everything at random", (*_MIXED, "motorway"), 20, "random"),
)
"""Every scenario, at the place of its number; 0 is the reports' main one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioConfig:
    """A scenario by its number, with what is changed about it."""

    number: int = 0
    """Number of the scenario."""
    file: str | None = None
    """Path of a scenario file, whose routes are driven by turns; None for the numbered ones."""
    npcs: int | None = None
    """Other vehicles; None as in the scenario."""
    town: str | None = None
    """``generated`` or the path of an .xodr file; None as in the scenario."""
    weather: str | None = None
    """A weather by name; None as in the scenario."""
    networks: int | None = None
    """How many different generated networks to draw from; None as in the scenario."""
    route_length_m: float | None = None
    """Length of the routes in metres; None as in the scenario."""
    time_limit_s: float | None = None
    """Simulated seconds to the time limit; None as in the scenario."""

    def __post_init__(self) -> None:
        self.resolve()

    def resolve(self) -> tuple[Scenario, ...]:
        """The scenarios that episodes take by turns, with the changes made: one, or a file's.

        Raises:
            ConfigError: There is no scenario of this number, the file is not a scenario file, or
                a value is impossible.
        """
        changes = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name not in ("number", "file")
            and (value := getattr(self, field.name)) is not None
        }
        if self.file is None:
            return (scenario(self.number, **changes),)
        if self.number or (wrong := changes.keys() & _OF_THE_FILE):
            named = "number" if self.number else ", ".join(sorted(wrong))
            raise ConfigError(
                f"scenario {named} is given and so is scenario file {self.file}, expected one of "
                "them: write it into the file"
            )
        if "time_limit_s" in changes:
            changes["time_per_m_s"] = 0.0
        return tuple(_changed(entry, changes) for entry in read_scenarios(Path(self.file)))

    def plan_document(self) -> Any:  # noqa: ANN401 - any JSON value
        """What identifies the setting in a plan: not where its files lie."""
        documents = [entry.document() for entry in self.resolve()]
        if self.file is None:
            return documents[0]
        folder = f"{Path(self.file).parent.resolve()}/"
        for document in documents:
            for key in document.keys() & {"town", "xodr"}:
                document[key] = document[key].removeprefix(folder)
        return documents


def scenario(number: int, **changes: object) -> Scenario:
    """A scenario by its number, with some of its fields changed.

    Args:
        number: A place in `SCENARIOS`.
        changes: Fields of `Scenario` and their new values.

    Raises:
        ConfigError: There is no scenario of this number, or a value is impossible.
    """
    if not 0 <= number < len(SCENARIOS):
        known = "; ".join(f"{entry.number} = {entry.name}" for entry in SCENARIOS)
        raise ConfigError(f"scenario {number} does not exist; there are: {known}")
    return _changed(SCENARIOS[number], changes)


def _changed(entry: Scenario, changes: Mapping[str, object]) -> Scenario:
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type] # checked below
    check_number("scenario npcs", changed.npcs, maximum=1000)
    check_number("scenario networks", changed.networks, minimum=1, maximum=1_000_000)
    check_number("scenario route_length_m", changed.route_length_m, minimum=10.0)
    check_number("scenario time_limit_s", changed.time_limit_s, minimum=1.0)
    if not changed.town or not changed.weather:
        raise ConfigError("scenario town and weather must not be empty")
    return changed
