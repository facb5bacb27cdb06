"""Which rows of a shared frame file hold which segment, and who draws from them.

Plain data, changed only by who holds the directory's lock (`SharedDirectory.exclusive`). Rows that
a living process lists are neither moved nor given to another segment. A segment that nobody
lists stays until its room is wanted; then the one that was placed first goes first.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self


@dataclasses.dataclass(slots=True, kw_only=True)
class Placed:
    """A segment's rows."""

    start: int
    """First row."""
    stop: int
    """Row behind the last one."""
    is_ready: bool = False
    """Whether all of its frames are in place."""
    decoder: str = ""
    """Lease of the process that is decoding it; empty if none is."""
    users: set[str] = dataclasses.field(default_factory=set)
    """Leases of the processes that draw from it or are about to."""


class SharedIndex:
    """Segments by content, the one placed first in front; ranges never overlap."""

    def __init__(self, rows: int = 0, placed: Mapping[str, Placed] | None = None) -> None:
        self.rows = rows
        self._placed = dict(placed or {})

    @classmethod
    def from_document(cls, document: Any) -> Self:  # noqa: ANN401 - any JSON value
        """Read what `to_document` made.

        Raises:
            ValueError: It is something else.
        """
        try:
            placed = {
                str(content): Placed(
                    start=int(start),
                    stop=int(stop),
                    is_ready=bool(is_ready),
                    decoder=str(decoder),
                    users=set(users),
                )
                for content, (start, stop, is_ready, decoder, users) in document["segments"]
            }
            return cls(int(document["rows"]), placed)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("not an index of shared frames") from error

    def to_document(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        segments = [
            [content, [at.start, at.stop, at.is_ready, at.decoder, sorted(at.users)]]
            for content, at in self._placed.items()
        ]
        return {"rows": self.rows, "segments": segments}

    def copy(self) -> Self:
        """An index of its own with the same content."""
        return type(self).from_document(self.to_document())

    def __contains__(self, content: str) -> bool:
        return content in self._placed

    def __getitem__(self, content: str) -> Placed:
        return self._placed[content]

    def __iter__(self) -> Iterable[str]:
        return iter(self._placed)

    def keep(self, living: Collection[str]) -> None:
        """Forget what processes wanted that are no more."""
        for at in self._placed.values():
            at.users.intersection_update(living)
            if at.decoder not in living:
                at.decoder = ""
        self._forget_useless(list(self._placed))

    def release(self, lease: str, contents: Iterable[str]) -> None:
        """Let go of segments; those that are ready stay until their room is wanted."""
        contents = [content for content in contents if content in self._placed]
        for content in contents:
            at = self._placed[content]
            at.users.discard(lease)
            if at.decoder == lease:
                at.decoder = ""
        self._forget_useless(contents)

    def claim(self, lease: str, wanted: Mapping[str, int]) -> None:
        """List segments, and give rows to those that have none.

        Args:
            lease: Who wants them.
            wanted: Number of rows of each.
        """
        for content in wanted:
            if content in self._placed:
                self._placed[content].users.add(lease)
        gaps = self._gaps()
        for content, rows in wanted.items():
            if content in self._placed:
                continue
            while (gap := next((g for g in gaps if g[1] - g[0] >= rows), None)) is None:
                if not self._evict():
                    break
                gaps = self._gaps()
            start = self._take(gap, gaps, rows)
            self._placed[content] = Placed(start=start, stop=start + rows, users={lease})

    def take_over(self, lease: str, content: str) -> bool:
        """Become the one who decodes a segment; False if it is ready or another's to decode."""
        at = self._placed[content]
        if at.is_ready or at.decoder not in ("", lease):
            return False
        at.decoder = lease
        return True

    def finish(self, contents: Iterable[str]) -> None:
        """Say that all frames of some segments are in place."""
        for content in contents:
            at = self._placed[content]
            at.is_ready, at.decoder = True, ""

    def _take(self, gap: tuple[int, int] | None, gaps: list[tuple[int, int]], rows: int) -> int:
        """Take rows from a gap, or from the end and behind it; returns the first."""
        if gap is None:
            # Free rows that reach up to the end are grown, not left behind.
            start = gaps.pop()[0] if gaps and gaps[-1][1] == self.rows else self.rows
            self.rows = start + rows
            return start
        number = gaps.index(gap)
        gaps[number : number + 1] = [(gap[0] + rows, gap[1])] if gap[1] - gap[0] > rows else []
        return gap[0]

    def _gaps(self) -> list[tuple[int, int]]:
        """Rows that belong to no segment, in order."""
        gaps, free = [], 0
        for at in sorted(self._placed.values(), key=lambda at: at.start):
            if at.start > free:
                gaps.append((free, at.start))
            free = at.stop
        return [*gaps, (free, self.rows)] if free < self.rows else gaps

    def _evict(self) -> bool:
        """Give up the oldest segment that nobody lists; False if there is none."""
        for content, at in self._placed.items():
            if not at.users:
                del self._placed[content]
                return True
        return False

    def _forget_useless(self, contents: Iterable[str]) -> None:
        """Take the rows of segments that nobody wants and that are not whole."""
        for content in contents:
            at = self._placed[content]
            if not at.users and not at.is_ready:
                del self._placed[content]
