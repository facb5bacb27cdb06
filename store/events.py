"""`Event`: what happened in an episode besides its steps, so that scores can be computed again.

A segment stores events in optional arrays, one row per event. A segment without events does not
have these arrays, and readers that do not know them ignore them.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SpecError, abbreviate
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.layout import ArrayLayout, Column

EVENT_NUMBERS: Mapping[str, str] = {
    "event_episode": "int64",
    "event_step": "int64",
    "event_value": "float64",
    "event_x": "float64",
    "event_y": "float64",
}
"""Numeric columns with one row per event, and their dtypes."""

EVENT_STRINGS = ("event_kind", "event_subject")
"""Columns of int32 codes into the array's attribute ``categories``."""

_FIRST_ARRAY = "event_episode"
"""Array whose length is the number of events of a segment."""
MAX_TEXT = 512
"""Most characters of a text that is stored per event or episode."""
_PER_STEP = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in an episode, such as a collision.

    Example:
        >>> Event(step=7, kind="collision", subject="barrier", value=4.2, x_m=10.0, y_m=-2.5).kind
        'collision'
    """

    step: int
    """Step of the episode after which it was observed, from 0."""
    kind: str
    """What happened; docs/format.md lists the kinds that avtd3 writes."""
    subject: str = ""
    """The other party, or an empty string."""
    value: float = 0.0
    """A number whose meaning depends on the kind."""
    x_m: float
    """Where it happened, in the world's frame, metres."""
    y_m: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventTable:
    """The N events of a segment, ordered by episode and step, as columns of length N."""

    episode: NDArray[np.int64]
    """Number of the episode in the segment."""
    step: NDArray[np.int64]
    """Step of the episode, from 0."""
    value: NDArray[np.float64]
    x: NDArray[np.float64]
    """Metres."""
    y: NDArray[np.float64]
    kind: Sequence[str]
    subject: Sequence[str]

    @classmethod
    def of(cls, episodes: Sequence[Sequence[Event]]) -> "EventTable":
        """Return the table of the events of all episodes of a segment, in order."""
        rows = [(number, event) for number, events in enumerate(episodes) for event in events]
        return cls(
            episode=np.array([number for number, _ in rows], np.int64),
            step=np.array([event.step for _, event in rows], np.int64),
            value=np.array([event.value for _, event in rows], np.float64),
            x=np.array([event.x_m for _, event in rows], np.float64),
            y=np.array([event.y_m for _, event in rows], np.float64),
            kind=tuple(event.kind for _, event in rows),
            subject=tuple(event.subject for _, event in rows),
        )

    def __len__(self) -> int:
        return len(self.episode)

    def of_episode(self, number: int) -> tuple[Event, ...]:
        """Return the events of one episode, in order."""
        return tuple(
            Event(
                step=int(self.step[row]),
                kind=self.kind[row],
                subject=self.subject[row],
                value=float(self.value[row]),
                x_m=float(self.x[row]),
                y_m=float(self.y[row]),
            )
            for row in np.flatnonzero(self.episode == number).tolist()
        )

    def problem(self, lengths: NDArray[np.int64]) -> str:
        """Return what contradicts episodes of these lengths, int64 (E,); empty if nothing does."""
        episode, step = self.episode, self.step
        outside = (episode < 0) | (episode >= len(lengths))
        if outside.any():
            row = int(outside.argmax())
            return f"event {row} is of episode {episode[row]}, expected 0 to {len(lengths) - 1}"
        late = (step < 0) | (step >= lengths[episode])
        if late.any():
            row = int(late.argmax())
            where = f"event {row} is of step {step[row]} of episode {episode[row]}"
            return f"{where}, expected 0 to {lengths[episode[row]] - 1}"
        again = (np.diff(episode) < 0) | ((np.diff(episode) == 0) & (np.diff(step) < 0))
        if again.any():
            row = int(again.argmax()) + 1
            return f"event {row} is earlier than the event before it, expected them ordered by time"
        wrong = ~(np.isfinite(self.value) & np.isfinite(self.x) & np.isfinite(self.y))
        if wrong.any():
            return f"event {int(wrong.argmax())} has a number that is not finite"
        return ""


def check_events(events: Sequence[Event], steps: int) -> None:
    """Raise if an episode of this many steps cannot have these events."""
    if len(events) > most_events(steps=steps, episodes=1):
        raise SpecError(f"{len(events)} events in {steps} steps, expected at most {_PER_STEP} each")
    last = 0
    for number, event in enumerate(events):
        where = f"event {number} ({abbreviate(event.kind, 40)})"
        if not isinstance(event.step, int | np.integer) or not last <= event.step < steps:
            found = abbreviate(event.step)
            raise SpecError(f"{where} is of step {found}, expected {last} to {steps - 1}")
        values = (event.value, event.x_m, event.y_m)
        if not all(isinstance(each, numbers.Real) and math.isfinite(each) for each in values):
            raise SpecError(f"{where} has a number that is not finite")
        texts = (event.kind, event.subject)
        is_text = all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts)
        if not event.kind or not is_text:
            raise SpecError(
                f"{where}: kind must have 1 to {MAX_TEXT} characters, subject at most {MAX_TEXT}"
            )
        last = event.step


def most_events(*, steps: int, episodes: int) -> int:
    """Return how many events a segment of this many steps and episodes may have."""
    return _PER_STEP * (steps + episodes)


def stored_arrays(files: ArrayFiles, *, steps: int, episodes: int) -> dict[str, ArrayLayout]:
    """Return the arrays of events that a segment has; empty if it has no events."""
    count = files.rows(_FIRST_ARRAY, most_events(steps=steps, episodes=episodes))
    dtypes = {**EVENT_NUMBERS, **dict.fromkeys(EVENT_STRINGS, "int32")} if count else {}
    return {
        name: ArrayLayout(name=name, shape=(count,), dtype=dtype, dimensions=("event",))
        for name, dtype in dtypes.items()
    }


def read_events(files: ArrayFiles, layouts: Mapping[str, ArrayLayout]) -> EventTable:
    """Read the events of a segment."""
    columns: dict[str, Any] = {
        name.removeprefix("event_"): files.texts(layout)
        if name in EVENT_STRINGS
        else files.read(layout)
        for name, layout in layouts.items()
    }
    return EventTable(**columns)


def event_columns(table: EventTable) -> dict[str, Column]:
    """Return the columns by the names of their arrays; empty for no events."""
    names = (*EVENT_NUMBERS, *EVENT_STRINGS) if len(table) else ()
    return {name: getattr(table, name.removeprefix("event_")) for name in names}
