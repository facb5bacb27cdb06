"""Heartbeats: what each collector and learner does now, as small files that `avtd3 status` reads.

A process writes ``status/<role>-<name>-<start>.json`` into its dataset or its directory of policies
every `INTERVAL_S` seconds, and a last one when it ends. Clocks of other machines are never
believed: a heartbeat is as old as the time since an observer saw its number change, by the
observer's own clock. At the first look at a directory of this machine, that is the time since the
kernel created or changed the file.
"""

import contextlib
import dataclasses
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from avtd3.store.errors import Avtd3Error, UnreachableError, abbreviate
from avtd3.store.files import parse_json, plain_name
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.remote.client import LocalPlace, Patience, RemotePlace

INTERVAL_S = 10.0
"""Seconds between two heartbeats of a process."""
LATE_S, DEAD_S, CLEARED_S = 30.0, 90.0, 86_400.0
"""Age of a heartbeat after which its process is late, dead, or no longer shown."""
STATUS = "status"
"""Directory of the heartbeats, in a dataset or beside policies."""
MAX_BYTES = 64 * 1024
"""Largest file that is read as a heartbeat."""
MAX_BEATS = 10_000
"""Most heartbeats that are read in one place."""
_LOOK_S = 1.0
"""Longest wait for an answer of a bucket, in seconds, before `LearnerWatch` continues without."""
_MAX_TEXT, _MAX_TEXTS = 500, 20
_SEGMENT = re.compile(r"[^-]+-(.+)-[0-9]{6,}-[0-9a-f]{8}")

Role = Literal["collector", "learner"]
State = Literal["running", "late", "dead", "ended", "unknown"]


def collector_of(segment_id: str) -> str:
    """Return the name of the collector in the name of a segment; empty if it has none."""
    found = _SEGMENT.fullmatch(segment_id)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat. What does not apply to a role, or is not known, is None."""

    role: Role
    """What the process does."""
    name: str
    """Name of the collector, or of the learner's run."""
    id: str = ""
    """Name that no other process has."""
    host: str = ""
    """Name of the machine."""
    pid: int = 0
    """Process id."""
    started: str = ""
    """When the process started as its machine counts, for people."""
    sequence: int = 0
    """Number of this heartbeat; it grows while the process runs."""
    is_ended: bool = False
    """Whether the process said that it ends."""
    quiet_s: float = 0.0
    """Seconds since the process last reported progress."""
    steps: int | None = None
    """Steps collected by this process, or published in the learner's datasets."""
    rate: float | None = None
    """Steps or updates per second."""
    policy_version: int | None = None
    """Newest policy that has driven, or was published."""
    updates: int | None = None
    """Updates of the learner."""
    target: int | None = None
    """Updates at which the learner ends."""
    refused: int | None = None
    """Segments that the learner cannot use."""
    acknowledged: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Steps that the learner has seen, by the name of the collector in the segments' names."""
    spool_bytes: int | None = None
    """Bytes that wait to be uploaded."""
    mirror_bytes: int | None = None
    """Bytes of the learner's local copy of a remote dataset."""
    disk_free_bytes: int | None = None
    """Free space of the disk that the process writes to."""
    waiting: str = ""
    """What the process waits for; empty while it works."""
    alerts: tuple[str, ...] = ()
    """What a person should look at."""

    def to_bytes(self) -> bytes:
        """Return the heartbeat as JSON."""
        document = {"format": 1, **dataclasses.asdict(self)}
        document["waiting"] = self.waiting[:_MAX_TEXT]
        document["alerts"] = [text[:_MAX_TEXT] for text in self.alerts[-_MAX_TEXTS:]]
        return json.dumps(document, allow_nan=False).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; fields of a newer version are ignored.

        Raise ValueError if the bytes are something else.
        """
        document = parse_json(data, "the file")
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - a file, not an argument
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in document:
                value = document[field.name]
                is_unknown = value is None and field.default is None
                if not (is_unknown or _FITS[field.name](value)):
                    raise ValueError(f"{field.name} is {abbreviate(value)}")
                given[field.name] = tuple(value) if field.name == "alerts" else value
        if not {"role", "name"} <= given.keys():
            raise ValueError("role or name is missing")
        return cls(**given)

    @property
    def key(self) -> str:
        """The file of the process, below a dataset or a directory of policies."""
        return f"{STATUS}/{self.id}.json"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0.0 <= value < 1e18


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 2 * _MAX_TEXT


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_TEXTS and all(map(_is_text, value))


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and _is_count(count) for name, count in value.items()
    )


_FITS: Mapping[str, Callable[[Any], bool]] = {
    **{field.name: _is_count for field in dataclasses.fields(Beat)},
    **dict.fromkeys(("name", "id", "host", "started", "waiting"), _is_text),
    **dict.fromkeys(("quiet_s", "rate"), _is_number),
    "role": lambda value: value in ("collector", "learner"),
    "is_ended": lambda value: isinstance(value, bool),
    "alerts": _is_texts,
    "acknowledged": _is_counts,
}


class Heartbeat:
    """Writes the heartbeats of this process from a thread of its own, and never disturbs the work.

    It begins at the first `update`. A place that cannot be written, as a dataset that is mounted
    read-only, gets no heartbeats. ``name`` is that of the collector or the run; ``datasets`` are
    places that get heartbeats as soon as there is a dataset.
    """

    def __init__(
        self,
        places: Sequence[LocalPlace | RemotePlace],
        role: Role,
        name: str,
        *,
        datasets: Sequence[LocalPlace | RemotePlace] = (),
        interval_s: float = INTERVAL_S,
    ) -> None:
        plain = plain_name(name) or role
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._interval_s = interval_s
        # A collector creates its dataset: until then, its directory gets no heartbeats.
        self._places = [(_hasty(place), False) for place in places]
        self._places += [(_hasty(place), True) for place in datasets]
        self._beat = Beat(
            role=role,
            name=name[:_MAX_TEXT],
            id=f"{role}-{plain}-{started}-{secrets.token_hex(4)}",
            host=platform.node(),
            pid=os.getpid(),
            started=started,
        )
        self._lock, self._end = threading.Lock(), threading.Event()
        self._progress_s = time.monotonic()
        self._thread: threading.Thread | None = None
        self._unreachable: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            self.update(alerts=(*self._beat.alerts, f"ended by an error: {error}"))
        self._end.set()
        self._thread.join(timeout=INTERVAL_S)

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Beat
        """Change what the next heartbeat says; the process has made progress."""
        with self._lock:
            self._beat = dataclasses.replace(self._beat, **changes)
            self._progress_s = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if not self._end.is_set():
            self._write(is_ended=False)
            for place, _ in self._places:
                with contextlib.suppress(Avtd3Error, OSError):
                    _sweep(place, self._beat.key)
        while not self._end.wait(self._interval_s):
            self._write(is_ended=False)
        self._write(is_ended=True)

    def _write(self, *, is_ended: bool) -> None:
        with self._lock:
            quiet_s = round(time.monotonic() - self._progress_s, 1)
            self._beat = dataclasses.replace(
                self._beat, sequence=self._beat.sequence + 1, is_ended=is_ended
            )
            beat = dataclasses.replace(self._beat, quiet_s=quiet_s)
        for place, is_dataset in self._places:
            if is_ended and place.text in self._unreachable:
                continue  # a process that ends does not wait for a cut link
            self._unreachable.discard(place.text)
            with contextlib.suppress(Avtd3Error, OSError):
                try:
                    if is_dataset:
                        place.read(GROUP_FILE)
                    place.write(beat.key, beat.to_bytes())
                except UnreachableError:
                    self._unreachable.add(place.text)


def _hasty(place: LocalPlace | RemotePlace) -> LocalPlace | RemotePlace:
    """Return a place whose requests are not repeated for long: the next heartbeat is better."""
    if isinstance(place, LocalPlace):
        return place
    return place.patient(Patience(seconds=INTERVAL_S / 2.0))


def _sweep(place: LocalPlace | RemotePlace, own: str) -> None:
    """Delete the heartbeats that nobody changed for a day; in a bucket, compare with one's own."""
    if isinstance(place, LocalPlace):
        files = place.path.joinpath(STATUS).glob("*.json")
        ages_s = {f"{STATUS}/{path.name}": _age_s(path) for path in files}
    else:
        times = place.times(f"{STATUS}/")
        ages_s = {key: times[own] - time_s for key, time_s in times.items() if own in times}
    place.delete([key for key, age_s in ages_s.items() if age_s > CLEARED_S and key != own])


def _age_s(path: Path) -> float:
    """Return the seconds since a file was created or changed here, by this machine's clock.

    Programs that copy files set their time of modification, but not this one.
    """
    return max(0.0, time.time() - path.stat().st_ctime)


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A heartbeat as an observer sees it."""

    beat: Beat
    place: str
    """Path or URL in which it was found."""
    age_s: float | None
    """Seconds since it changed; None if that is not known yet."""

    @property
    def state(self) -> State:
        """What the observer makes of it."""
        if self.beat.is_ended:
            return "ended"
        if self.age_s is None:
            return "unknown"
        if self.age_s > LATE_S:
            return "dead" if self.age_s > DEAD_S else "late"
        return "running"


class Observer:
    """Reads the heartbeats of datasets and directories of policies, and measures their ages."""

    def __init__(
        self,
        places: Sequence[LocalPlace | RemotePlace],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places, self._clock = places, clock
        self._known: dict[str, tuple[int, float | None, float]] = {}
        self.problems: tuple[str, ...] = ()
        """What could not be read at the last look."""

    def look(self) -> list[Seen]:
        """Read all heartbeats; return the newest one of each process, by role and name."""
        newest: dict[str, tuple[Beat, str, float | None]] = {}
        problems: list[str] = []
        for place in self._places:
            for beat, age_s in self._read(place, problems):
                known = newest.get(beat.id)
                if known is None or beat.sequence > known[0].sequence:
                    newest[beat.id] = beat, place.text, age_s
        self.problems = tuple(problems)
        found = [self._see(*each) for each in newest.values()]
        shown = [seen for seen in found if seen.age_s is None or seen.age_s <= CLEARED_S]
        return sorted(shown, key=lambda seen: (seen.beat.role, seen.beat.name, seen.beat.id))

    def _see(self, beat: Beat, place: str, age_s: float | None) -> Seen:
        now_s = self._clock()
        since_s = None if age_s is None else now_s - age_s
        sequence, since_s, first_s = self._known.get(beat.id, (beat.sequence, since_s, now_s))
        if beat.sequence > sequence:
            since_s = now_s
        elif since_s is None and now_s - first_s > LATE_S:
            since_s = first_s  # it is at least as old
        self._known[beat.id] = max(beat.sequence, sequence), since_s, first_s
        return Seen(beat, place, None if since_s is None else now_s - since_s)

    def _read(
        self, place: LocalPlace | RemotePlace, problems: list[str]
    ) -> Iterable[tuple[Beat, float | None]]:
        try:
            sizes = place.sizes(f"{STATUS}/")
        except (Avtd3Error, OSError) as error:
            problems.append(f"{place.text}: {error}")
            return
        if len(sizes) > MAX_BEATS:
            problems.append(
                f"{place.text}/{STATUS} has {len(sizes)} files, expected {MAX_BEATS} at most; only "
                "the last ones by name are read"
            )
        for key, size in list(sizes.items())[-MAX_BEATS:]:
            try:
                beat = _read_beat(place, key, size)
                age_s = _age_s(place.path / key) if isinstance(place, LocalPlace) else None
            except FileNotFoundError:
                continue  # deleted meanwhile
            except (Avtd3Error, OSError, ValueError) as error:
                problems.append(f"{place.text}/{key} is not a heartbeat: {error}; delete it")
                continue
            yield beat, age_s


def _read_beat(place: LocalPlace | RemotePlace, key: str, size: int) -> Beat:
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, expected {MAX_BYTES} at most")
    beat = Beat.from_bytes(place.read(key))
    if beat.key != key:
        raise ValueError(f"it names the process {abbreviate(beat.id)}")
    return beat


class LearnerWatch:
    """Counts the steps of one collector that a running learner has not seen yet.

    The collector's name is that in its segments' names. While a bucket cannot be reached, it
    continues with what it knew a moment before.
    """

    def __init__(
        self,
        places: Sequence[LocalPlace | RemotePlace],
        collector: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observer = Observer(places, clock=clock)
        self._collector, self._clock = collector, clock
        self._first: dict[str, tuple[int, int]] = {}
        self._next_s, self._seen = float("-inf"), list[Seen]()
        self._pool = ThreadPoolExecutor(1, "avtd3-watch")
        self._wait_s = None if all(isinstance(p, LocalPlace) for p in places) else _LOOK_S
        self._look: Future[list[Seen]] | None = None

    def unseen(self, published: int) -> int:
        """Return how many of this process's published steps the slowest learner has not seen.

        It is 0 without a running learner, and while a learner waits for data. What was published
        before a learner's first heartbeat does not count: the learner may read merged copies of it.
        """
        if self._look is None and self._clock() >= self._next_s:
            self._look = self._pool.submit(self._observer.look)
            wait([self._look], self._wait_s)  # a cut link must not hold up the collection
        if self._look is not None and self._look.done():
            self._seen, self._look = self._look.result(), None
            self._next_s = self._clock() + INTERVAL_S / 5.0
        most = 0
        for seen in self._seen:
            beat = seen.beat
            if beat.role != "learner":
                continue
            acknowledged = beat.acknowledged.get(self._collector, 0)
            before = self._first.setdefault(beat.id, (published, acknowledged))
            if seen.state == "running" and not beat.waiting:
                most = max(most, (published - before[0]) - (acknowledged - before[1]))
        return most
