"""The log of an object store: one small object per published segment, found in order of time.

A reader lists only what is new: the keys start with the time at which they were put, and a listing
can start after a key. Clocks differ and listings may lag, so each listing starts `OVERLAP_S` before
the newest known entry, and what is known already is skipped. Anyone may summarise a day that has
passed in one object, so that opening a dataset reads days backwards until it has enough steps,
however many segments there are.

An entry that a reader has seen stays: absence from a listing never means that a segment is gone.
The log is an index, and can be wrong: the manifest alone says whether a segment exists. A listing
of all segments once an hour finds those without an entry.
"""

import contextlib
import dataclasses
import gzip
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from avtd3.store.errors import FormatVersionError, SegmentCorruptError
from avtd3.store.files import canonical_json, parse_json, unzip
from avtd3.store.format.layout import MANIFEST_FILE, SEGMENTS
from avtd3.store.format.manifest import Manifest, parse_manifest
from avtd3.store.remote.client import RemotePlace
from avtd3.store.replaced import REPLACES

LOG, DAYS = "log", "log-day"
"""Folders of the entries and of their daily summaries."""
OVERLAP_S = 900.0
"""Seconds before the newest entry at which a listing starts: clocks, stalls and lag together."""
BACKSTOP_S = 3600.0
"""Seconds between two listings of all segments."""
THREADS = 16
"""Entries that are read at the same time."""
_DAY_S = 86_400.0
_DAY_BYTES = 2**30
"""Largest size of the summary of a day."""
_AT_ONCE = 64
"""Entries that `LogReader.open` reads before it looks whether it has enough."""
_NIGHT = "T240000"
"""Sorts after all stamps of a day."""
_KEY = re.compile(r"log/(\d{8}T\d{6}\.\d{6}Z)([-_])(.+?)(?:~(\d{1,7}))?\.json")
_DATED = re.compile(r"\d{8}T\d{6}\.\d{6}Z-")
_DAY_KEY = re.compile(r"log-day/(\d{8})-(\d{12})\.jsonl\.gz")


def stamp(time_s: float) -> str:
    """Format seconds since 1970 so that texts sort by time."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y%m%dT%H%M%S.%f}Z"


def _parse_stamp(text: str) -> float:
    with contextlib.suppress(ValueError):  # there is no such time: not one of our keys
        return datetime.strptime(f"{text}+0000", "%Y%m%dT%H%M%S.%fZ%z").timestamp()
    return 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A published segment."""

    segment: str
    """Its id."""
    time_s: float
    """Time on its writer's clock when it was put, in seconds since 1970."""
    steps: int
    """Number of steps."""
    episodes: int
    """Number of episodes."""
    size_bytes: int
    """Bytes without the manifest."""
    manifest_digest: str
    """Digest in its manifest."""
    plan: str = ""
    """Digest of the plan that it was collected for; empty if there is none."""
    unit: int | None = None
    """Number of the unit of the plan, if the work is claimed in units."""
    indices: tuple[int, ...] = ()
    """Positions of its episodes in the plan."""
    lengths: tuple[int, ...] = ()
    """Steps of its episodes."""
    policy_versions: tuple[int, ...] = ()
    """The lowest and the highest version of a policy that drove; empty if none did."""
    replaces: tuple[str, ...] = ()
    """Segments that it claims to replace."""
    removed: bool = False
    """Whether this is a tombstone: the segment was removed on purpose."""
    replaced_by: str = ""
    """Of a tombstone: the segment that has the episodes now; empty if none has."""

    @classmethod
    def of(cls, manifest: Manifest, time_s: float, **more: Any) -> Self:  # noqa: ANN401 - fields
        """Return the entry of a segment."""
        replaces, plan = manifest.provenance.get(REPLACES), manifest.provenance.get("plan_digest")
        return cls(
            segment=manifest.segment_id,
            time_s=time_s,
            steps=manifest.steps,
            episodes=manifest.episodes,
            size_bytes=manifest.size_bytes,
            manifest_digest=manifest.digest,
            plan=plan if isinstance(plan, str) else "",
            replaces=tuple(sorted(replaces)) if isinstance(replaces, dict) else (),
            **more,
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read an entry; raise `ValueError` if it is none."""
        try:
            values = {k: v for k, v in document.items() if k in _KINDS and _is_of(_KINDS[k], v)}
            lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
            entry = cls(**(values | lists))
        except (AttributeError, TypeError) as error:
            raise ValueError(f"it is no entry: {error}") from error
        is_now = 0.0 <= entry.time_s < _LATEST_S
        if "/" in entry.segment or entry.steps < 1 or entry.size_bytes < 0 or not is_now:
            raise ValueError("a value is out of range")
        return entry

    @property
    def key(self) -> str:
        """Key of its object; that of a published segment says its steps."""
        if self.removed:
            return f"{LOG}/{stamp(self.time_s)}_{self.segment}.json"
        return f"{LOG}/{stamp(self.time_s)}-{self.segment}~{self.steps}.json"

    def to_bytes(self) -> bytes:
        """Return the content of its object."""
        return canonical_json(dataclasses.asdict(self))


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("segment", "manifest_digest", "plan", "replaced_by"), (str,)),
    **dict.fromkeys(("steps", "episodes", "size_bytes"), (int,)),
    "time_s": (int, float),
    "unit": (int, type(None)),
    "removed": (bool,),
    **dict.fromkeys(("indices", "lengths", "policy_versions"), (list, int)),
    "replaces": (list, str),
}
"""Types of the fields in JSON; of a list, also that of its values."""
_LATEST_S = 253_370_764_800.0
"""Seconds since 1970 until the year 9999, the last one that `stamp` formats."""


def _is_of(kinds: tuple[type, ...], value: object) -> bool:
    """Return whether a value of a document has one of the types, or is a list of such values."""
    if list in kinds:
        return isinstance(value, list) and all(type(each) in kinds[1:] for each in value)
    return type(value) in kinds


def add_entry(place: RemotePlace, entry: LogEntry) -> None:
    """Put an entry; several of one segment do no harm."""
    place.write(entry.key, entry.to_bytes())


_Key: TypeAlias = tuple[str, re.Match[str]]
"""The key of an entry, and its parts."""


class _Block(NamedTuple):
    """A part of the log that is read at once: some entries, or the summary of a day."""

    keys: tuple[str, ...]
    """Keys of the objects."""
    until: str
    """No segment that sorts after this was published in this block or earlier, clocks aside."""
    steps: int | None
    """Steps of its segments; None if only the entries say so."""


class LogReader:
    """Follows the log of a dataset.

    `segments` has every entry that was found, oldest first by the time at which it was put. An
    entry that repeats the episodes of a unit of work is dropped: where a store ignores conditions,
    two processes may both have published it.
    """

    def __init__(self, place: RemotePlace) -> None:
        self._place = place
        self.segments: dict[str, LogEntry] = {}
        """Entries by segment, in the order in which they were found; also of removed segments."""
        self.removed: dict[str, LogEntry] = {}
        """Tombstones by segment."""
        self._seen: dict[str, None] = {}
        self._units: set[tuple[str, int]] = set()
        self.repeated: set[str] = set()
        """Segments that were dropped, because another one has their unit of work."""
        self.older_steps = 0
        """Steps of the segments that `open` had no need to read about."""
        self._newest_s, self._horizon = 0.0, ""
        self._next_backstop_s = time.monotonic() + BACKSTOP_S

    def open(self, steps: float = float("inf")) -> list[LogEntry]:
        """Find at least so many of the newest steps, or all; return the entries, oldest first.

        The newest steps are those of the segments with the greatest ids. It costs one request for
        each entry since the newest summary that is needed, one for each summary that is needed,
        and listings of the entries since the newest summary and of the summaries.
        """
        found: list[list[LogEntry]] = []
        self.older_steps, self._horizon = 0, ""
        total, later = 0, list[LogEntry]()
        days = _days(self._place)
        keys = self._list(f"{max(days)}{_NIGHT}" if days else "")
        for block in _blocks(keys, days):
            # A merged segment was published late, but has old steps: look at the ids.
            total += sum(e.steps for e in later if _position(e) > block.until)
            later = [e for e in later if _position(e) <= block.until]
            if total >= steps and block.steps is not None:
                self.older_steps += block.steps
                self._horizon = self._horizon or block.until
                continue
            entries = _read_entries(self._place, block.keys)
            self._bury(entries)
            found.append(entries)
            later += [e for e in entries if not e.removed and e.segment not in self.removed]
        if days:
            self._newest_s = max(self._newest_s, _parse_stamp(f"{max(days)}T235959.999999Z"))
        self._mark(keys)
        added = [e for entries in reversed(found) for e in entries if self._take(e)]
        return added or self._backstop()  # a dataset that was copied there has no log

    def refresh(self) -> list[LogEntry]:
        """Find what is new; return it in order. It costs a listing, and a request for each."""
        # A clock that is ahead must not move the cursor beyond now.
        cursor_s = min(self._newest_s, time.time()) - OVERLAP_S
        keys = self._list(stamp(cursor_s) if cursor_s > 0 else "")
        entries = _read_entries(self._place, [key for key, _ in keys])
        self._mark(keys)
        self._bury(entries)
        added = [entry for entry in entries if self._take(entry)]
        if time.monotonic() >= self._next_backstop_s:
            added += self._backstop()
        return added

    def _list(self, after: str) -> list[_Key]:
        """Return the keys of the entries after a stamp that were not seen, and their parts."""
        keys = self._place.sizes(f"{LOG}/", after=f"{LOG}/{after}" if after else "")
        matches = ((key, _KEY.fullmatch(key)) for key in keys if key not in self._seen)
        return [(key, match) for key, match in matches if match is not None]

    def _mark(self, keys: Iterable[_Key]) -> None:
        """Remember the keys of entries that were read or need not be; forget very old ones."""
        for key, match in keys:
            self._newest_s = max(self._newest_s, _parse_stamp(match[1]))
            self._seen[key] = None
        self._forget_old()

    def _forget_old(self) -> None:
        """Forget the keys that no listing will return again."""
        newest_s = min(self._newest_s, time.time())
        oldest = f"{LOG}/{stamp(max(newest_s - 4.0 * OVERLAP_S, 0.0))}"
        self._seen = {key: None for key in self._seen if key >= oldest}

    def _bury(self, entries: Iterable[LogEntry]) -> None:
        """Remember the tombstones."""
        self.removed |= {entry.segment: entry for entry in entries if entry.removed}

    def _take(self, entry: LogEntry) -> bool:
        """Remember an entry; return whether its segment is new, there, and no repetition."""
        if entry.removed or entry.segment in self.segments:
            return False
        if entry.segment in self.removed:
            self.segments[entry.segment] = entry
            return False
        unit = (entry.plan, -1 if entry.unit is None else entry.unit)
        if entry.unit is not None and unit in self._units:
            self.repeated.add(entry.segment)
            return False
        self._units.add(unit)
        self.segments[entry.segment] = entry
        return True

    def _backstop(self) -> list[LogEntry]:
        """Find the segments without an entry by a listing of all."""
        self._next_backstop_s = time.monotonic() + BACKSTOP_S
        found = []
        known = self.segments.keys() | self.repeated | self.removed.keys()
        for segment_id in self._place.folders(f"{SEGMENTS}/"):
            if segment_id in known or segment_id < self._horizon:
                continue
            try:
                data = self._place.read(f"{SEGMENTS}/{segment_id}/{MANIFEST_FILE}")
                manifest = parse_manifest(data, Path(self._place.text) / SEGMENTS / segment_id)
            except (FileNotFoundError, SegmentCorruptError, FormatVersionError):
                continue  # being published or copied, left by a killed process, or newer
            entry = LogEntry.of(manifest, 0.0)
            if self._take(entry):
                found.append(entry)
        return found


def summarise_days(place: RemotePlace, now_s: float) -> list[str]:
    """Summarise the days that have passed a day ago or longer and have no summary; return them.

    Any process may do so at any time. The name of a summary has the day's steps. If this machine's
    clock is ahead, the time at which the newest entry was put counts, which the store says: a day
    that has not ended must not be summarised.
    """
    done = _days(place)
    after = f"{LOG}/{max(done)}{_NIGHT}" if done else ""
    by_day: dict[str, list[str]] = {}
    keys = [key for key in place.sizes(f"{LOG}/", after=after) if _KEY.fullmatch(key)]
    now_s = min([now_s, *map(place.put_time, keys[-1:])])
    for key in keys:
        if key[4:12] < stamp(now_s - _DAY_S)[:8]:
            by_day.setdefault(key[4:12], []).append(key)
    for day, keys in sorted(by_day.items()):
        entries = {(e.segment, e.removed): e for e in _read_entries(place, keys)}.values()
        # Merged segments have the steps of those that they replace.
        steps = sum(e.steps * (-1 if e.removed else 1) for e in entries if _counts(e))
        text = b"".join(entry.to_bytes() + b"\n" for entry in entries)
        place.create(_day_key(day, max(steps, 0)), gzip.compress(text, mtime=0))
    return sorted(by_day)


def _counts(entry: LogEntry) -> bool:
    """Return whether an entry changes how many steps were collected."""
    return not entry.removed or bool(entry.replaced_by)


def _read_entries(place: RemotePlace, keys: Sequence[str]) -> list[LogEntry]:
    """Read entries and summaries of days, several at the same time; return them in order.

    What cannot be read is missing: the listing of all segments finds the segment.
    """

    def read(key: str) -> list[LogEntry]:
        try:
            data = place.read(key)
            lines = unzip(data, _DAY_BYTES).splitlines() if key.startswith(DAYS) else [data]
            return [LogEntry.from_json(parse_json(line, key)) for line in lines]
        except (FileNotFoundError, ValueError):
            return []

    if len(keys) < 2:
        return [entry for key in keys for entry in read(key)]
    with ThreadPoolExecutor(min(THREADS, len(keys)), "avtd3-log") as pool:
        return [entry for entries in pool.map(read, keys) for entry in entries]


def _blocks(keys: Sequence[_Key], days: Mapping[str, int]) -> Iterator[_Block]:
    """Yield the parts of a log, newest first: entries since the newest summary, and summaries."""
    for end in range(len(keys), 0, -_AT_ONCE):
        part = keys[max(end - _AT_ONCE, 0) : end]
        steps = [match[4] for _, match in part]  # missing in tombstones and older entries
        known = None if None in steps else sum(map(int, steps))
        yield _Block(tuple(key for key, _ in part), part[-1][1][1], known)
    for day, steps_of_day in sorted(days.items(), reverse=True):
        yield _Block((_day_key(day, steps_of_day),), f"{day}{_NIGHT}", steps_of_day)


def _position(entry: LogEntry) -> str:
    """Return where an entry's segment sorts by time: its id, or the stamp of its entry."""
    return entry.segment if _DATED.match(entry.segment) else stamp(entry.time_s)


def _days(place: RemotePlace) -> dict[str, int]:
    """Return the days that have a summary with their steps, in order; of two, the longer one."""
    matches = filter(None, map(_DAY_KEY.fullmatch, place.sizes(f"{DAYS}/")))
    return {match[1]: int(match[2]) for match in matches}


def _day_key(day: str, steps: int) -> str:
    return f"{DAYS}/{day}-{steps:012d}.jsonl.gz"


def listed_segments(place: RemotePlace, since_s: float) -> set[str]:
    """Return the segments with an entry since a time that a listing of the log shows."""
    keys = place.sizes(f"{LOG}/", after=f"{LOG}/{stamp(since_s)}")
    return {match[3] for key in keys if (match := _KEY.fullmatch(key)) and match[2] == "-"}


def logged_segments(place: RemotePlace) -> tuple[set[str], set[str]]:
    """Return the segments that have an entry in the log, and those that were removed."""
    matches = [m for key in place.sizes(f"{LOG}/") if (m := _KEY.fullmatch(key))]
    removed = {match[3] for match in matches if match[2] == "_"}
    return {match[3] for match in matches} - removed, removed


def held_episodes(entries: Iterable[LogEntry], plan: str) -> dict[int, int]:
    """Return the steps of the episodes of a plan that entries hold, by position in the plan."""

    def pairs() -> Iterator[tuple[int, int]]:
        for entry in entries:
            if entry.plan == plan:
                yield from zip(entry.indices, entry.lengths, strict=False)

    return dict(pairs())
