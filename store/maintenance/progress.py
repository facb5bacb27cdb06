"""How far a housekeeping command is."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HousekeepingProgress:
    """Told after each piece of work."""

    verb: str
    """What is done, as a past participle."""
    done: int
    """Segments done."""
    total: int
    """Segments to do."""

    @property
    def fraction(self) -> float:
        """Share of the segments that is done, in [0, 1]."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Where it stands, in one line."""
        return f"{self.verb} {self.done:,} of {count(self.total, 'segment')}"


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where that is due."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
