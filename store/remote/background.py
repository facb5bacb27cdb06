"""Threads that keep a directory of this machine and a URL alike while a learner or collector works.

`Mirror` brings the newest segments of a URL here, for a learner. `Spool` takes segments there that
a collector wrote here. `PolicyPull` and `PolicyPush` do the same with policies. While a URL cannot
be reached, they try again for ever, and say so in `waiting`; nothing is lost, because a file is
deleted at one end only when it is whole at the other.
"""

import contextlib
import dataclasses
import os
import random
import re
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Self

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    Avtd3Error,
    CheckpointError,
    ConfigError,
    DatasetError,
    FormatVersionError,
    InUseError,
    MissingPackageError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
    UnreachableError,
)
from avtd3.store.files import check_local, read_json, remote_url, sha256, storage_errors
from avtd3.store.format.layout import GROUP_FILE, MANIFEST_FILE, MAPS
from avtd3.store.format.manifest import read_manifest
from avtd3.store.locks import ExclusiveLock
from avtd3.store.remote.client import LocalPlace, Patience, Place, RemotePlace, check_reachable
from avtd3.store.remote.commit import (
    CLAIMS,
    Unit,
    about_episodes,
    complete_units,
    read_if_any,
    read_manifest_bytes,
    segment_key,
)
from avtd3.store.remote.log import (
    LogEntry,
    LogReader,
    held_episodes,
    listed_segments,
    summarise_days,
)
from avtd3.store.remote.transfer import (
    LATEST,
    MIRROR_FILE,
    SIDECAR,
    Latest,
    SegmentCopier,
    Stopped,
    copy_latest,
    copy_maps,
    copy_policy,
    create_dataset,
    policies_of,
    read_spec,
)
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import remove_segments

PERIOD_S = 2.0
"""Mean time between two looks at a URL, in seconds; each wait is random, half of it or more."""
_KEPT_POLICIES = 3
"""Policies that `PolicyPull` keeps here."""
_RETRY_S = 300.0
"""Seconds until a segment that is damaged at the URL is tried again."""
_ABSENT_S = 10.0
"""Seconds until a segment that has an entry in the log, but no manifest, is looked for again."""
_LASTING = (SegmentCorruptError, SpecError, InUseError, MissingPackageError)
"""Errors that trying again does not help."""


def local_name(url: str) -> str:
    """Return a name for a directory that belongs to a URL."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2])
    return f"{plain.strip('-')[-40:]}-{sha256(url.encode())[:8]}"


def mirror_path(run: Path, dataset: Path | str) -> Path:
    """Return where a run reads a dataset: its mirror in the run, or the path itself."""
    url = remote_url(dataset)
    return Path(dataset) if url is None else run / "mirror" / local_name(url)


class Background(ABC):
    """Does `work` again and again in a thread. Use it as a context manager.

    Args:
        url: The URL.
        path: The directory of this machine.
    """

    def __init__(self, url: str, path: Path) -> None:
        self.url, self.path = url, path
        self.waiting = ""
        """Why it cannot continue at present; empty while it can."""
        self._stop, self._wake = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._has_worked, self._is_idle, self._lock = False, False, threading.Lock()
        patience = Patience(seconds=float("inf"), should_stop=self._is_over, on_wait=self._note)
        self.place = RemotePlace(url, patience)
        self.local = LocalPlace(path)
        self._thread = threading.Thread(
            target=self._run, name=f"avtd3-{type(self).__name__}", daemon=True
        )

    @abstractmethod
    def work(self) -> None:
        """Do what there is to do now."""

    def opening(self, should_stop: Callable[[], bool]) -> RemotePlace:
        """Return the place for what must be known before the work begins, and not wait for ever."""
        return self.place.patient(Patience(should_stop=should_stop))

    def start(self, *, waits: bool = False) -> Self:
        """Start the thread; first check that the URL can be reached, unless it may wait for it."""
        if not waits:
            check_reachable(self.place)
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Let the thread end after the request in progress; `close` waits for it."""
        self._stop.set()
        self._wake.set()

    def close(self) -> None:
        """End the thread after the request in progress."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise the error that ended the thread, if any."""
        if self._error is not None:
            raise self._error
        if self._thread.ident and not (self._thread.is_alive() or self._stop.is_set()):
            raise RuntimeError(f"the thread {self._thread.name} has ended")

    @property
    def has_failed(self) -> bool:
        """Whether `check` would raise."""
        return self._error is not None

    def finish(self, should_stop: Callable[[], bool], on_wait: Callable[[str], None]) -> bool:
        """Wait until everything is done; return False if stopped before.

        After a stop, continue while the URL can be reached.
        """
        with self._lock:
            self._is_idle = False
            self._wake.set()
        while not self._is_idle:
            self.check()
            if should_stop() and self.waiting:
                return False
            on_wait(self.waiting)
            time.sleep(0.05)
        return True

    def _is_over(self) -> bool:
        return self._stop.is_set()

    def _note(self, reason: str) -> None:
        self.waiting = reason

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.work()
            except Stopped:
                return
            except (Avtd3Error, OSError) as error:
                if self._stop.is_set():
                    return
                # What worked before works again: credentials expire, disks are full for a while.
                can_pass = self._has_worked or isinstance(error, UnreachableError)
                if isinstance(error, _LASTING) or not can_pass:
                    self._error = error
                    return
                self.waiting = str(error)
            else:
                self._has_worked, self.waiting = True, ""
                with self._lock:
                    self._is_idle = not self._wake.is_set()
            self._wake.wait(PERIOD_S * random.uniform(0.5, 1.5))

    def _copier(self, source: Place) -> SegmentCopier:
        other = self.place if source is self.local else self.local
        return SegmentCopier(source, other, should_stop=self._is_over)


class Mirror(Background):
    """A dataset here that has the newest segments of one at a URL.

    It is an ordinary dataset. The oldest segments are removed here when it would grow beyond its
    limit: first those that the sampler does not want, and only those that are still at the URL.

    Args:
        url: URL of the dataset.
        path: Directory of the mirror.
        max_bytes: Largest size, in bytes.
        steps: Newest steps to bring here at first.
    """

    def __init__(self, url: str, path: Path, *, max_bytes: int, steps: int) -> None:
        super().__init__(url, path)
        self._max_bytes, self._steps = max_bytes, steps
        self._reader = LogReader(self.place)
        self._dataset: Dataset | None = None
        self._sizes: dict[str, int] = {}
        self._missing: dict[str, LogEntry] = {}
        self._fetched: set[str] = set()
        self._retry_s: dict[str, float] = {}
        self._absent: set[str] = set()
        self._day = ""
        self.problems: dict[str, str] = {}
        """Why segments of the URL cannot be brought here, by name."""
        self._on_wait: Callable[[str], None] = lambda _: None
        self._should_stop: Callable[[], bool] = lambda: False
        self.wanted: Callable[[], Collection[str]] = frozenset
        """Returns the segments that must stay as long as possible."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the segments that are here."""
        return sum(tuple(self._sizes.values()))

    @property
    def steps_elsewhere(self) -> int:
        """Steps that were published at the URL and were never here since this process started."""
        # What a merged segment replaces was counted when it was published.
        entries = dict(self._reader.segments)
        removed = list(self._reader.removed.values())
        merged = {name for entry in entries.values() for name in entry.replaces}
        merged |= {entry.segment for entry in removed if entry.replaced_by}
        counted = self._fetched | merged
        steps = self._reader.older_steps
        for name, entry in entries.items():
            if name not in counted:
                here = self._fetched.intersection(entry.replaces) & entries.keys()
                steps += entry.steps - sum(entries[old].steps for old in here)
        return steps

    def fill(self, should_stop: Callable[[], bool], on_wait: Callable[[str], None]) -> bool:
        """Bring the newest segments here, in the calling thread; return False if stopped.

        Raises:
            DatasetError: There is no dataset at the URL.
            ConfigError: The limit is below two of the largest segments, or the directory is the
                mirror of another URL.
        """
        check_reachable(self.place)
        self._should_stop, self._on_wait = should_stop, on_wait
        try:
            self._open()
        except (Stopped, UnreachableError):
            if not should_stop():
                raise
            return False
        return True

    def _is_over(self) -> bool:
        return super()._is_over() or self._should_stop()

    def _note(self, reason: str) -> None:
        super()._note(reason)
        self._on_wait(reason)

    def work(self) -> None:
        """Bring here what is new."""
        if self._dataset is None:
            if read_if_any(self.place, GROUP_FILE) is not None:
                self._open()
            return
        if (day := time.strftime("%Y%m%d", time.gmtime())) != self._day:
            with contextlib.suppress(ConfigError):  # these credentials may only read
                summarise_days(self.place, time.time())
            self._day = day
        self._missing |= {entry.segment: entry for entry in self._reader.refresh()}
        self._fetch()
        self._drop_removed()

    def _drop_removed(self) -> None:
        """Remove here what was removed at the URL, unless it is here instead of its successor."""
        removed = self._reader.removed
        for name in sorted(self._sizes.keys() & removed.keys()):
            by = removed[name].replaced_by
            if not by or by in self._sizes:
                remove_segments(self.path, [name])
                del self._sizes[name]

    def _open(self) -> None:
        if (group := read_if_any(self.place, GROUP_FILE)) is None:
            raise DatasetError(
                f"there is no dataset at {self.url}; avtd3 collect {self.url} creates one, or add "
                "--follow to wait for it"
            )
        create_dataset(self.place, self.local, group)
        named = read_json(self.path / MIRROR_FILE)
        if named != {"url": self.url}:
            raise ConfigError(
                f"{self.path} is a mirror of {named}, expected one of {self.url}; remove it, or "
                "give the run another directory"
            )
        dataset = Dataset.open(self.path)
        self._sizes = {
            name: read_manifest(dataset.segments_path / name).size_bytes
            for name in dataset.segment_ids()
        }
        self._fetched = set(self._sizes)
        entries = self._reader.open(self._steps)
        self._check_limit(entries)
        steps = 0
        for entry in sorted(entries, key=lambda entry: entry.segment, reverse=True):
            if steps >= self._steps:
                break
            self._missing[entry.segment] = entry
            steps += entry.steps
        self._dataset = dataset
        self._fetch()
        self._drop_removed()

    def _check_limit(self, entries: Collection[LogEntry]) -> None:
        largest = sorted((entry.size_bytes for entry in entries), reverse=True)[:2]
        least = 2 * largest[0] if len(largest) == 1 else sum(largest)
        if least > self._max_bytes:
            raise ConfigError(
                f"learn.mirror_bytes is {self._max_bytes}, expected at least {least}: the two "
                f"largest segments of {self.url} must fit into the mirror"
            )

    def _fetch(self) -> None:
        """Bring the missing segments here; try damaged ones again later."""
        now_s = time.monotonic()
        due = [name for name in self._missing if self._retry_s.get(name, 0.0) <= now_s]
        if due:
            copy_maps(self.place, self.local)
        with self._copier(self.place) as copier:
            for number, name in enumerate(due):
                self._note(f"copying segment {number + 1} of {len(due)} from {self.url}")
                self.problems.pop(name, None)
                try:
                    self._fetch_one(copier, self._missing[name])
                except (SegmentCorruptError, SegmentNotFoundError, FormatVersionError) as error:
                    if read_if_any(self.place, segment_key(name, MANIFEST_FILE)) is not None:
                        self.problems[name] = str(error)  # damaged, half copied, or newer
                        self._retry_s[name] = now_s + _RETRY_S
                        continue
                    # A listing or an answer may lag: what is missing twice is gone.
                    if name not in self._absent:
                        self._absent.add(name)
                        self._retry_s[name] = now_s + _ABSENT_S
                        continue
                del self._missing[name]

    def _fetch_one(self, copier: SegmentCopier, entry: LogEntry) -> None:
        if entry.segment in self._sizes or entry.segment in self._reader.removed:
            return
        if entry.size_bytes > self._max_bytes:
            self.problems[entry.segment] = (
                f"it has {entry.size_bytes} bytes, learn.mirror_bytes is {self._max_bytes}; raise "
                "it, or let the collectors write smaller segments"
            )
            return
        if not self._make_room(entry):
            return
        if (found := copier.manifest(entry.segment)) is None:
            raise SegmentNotFoundError(f"{self.url} has no segment {entry.segment}")
        copier.copy(*found)
        self._sizes[entry.segment] = entry.size_bytes
        self._fetched.add(entry.segment)

    def _make_room(self, entry: LogEntry) -> bool:
        """Remove older segments here until one fits; return whether it does."""
        wanted = self.wanted()
        newest = max(wanted, default="")  # the sampler has not seen newer ones yet
        older = sorted(name for name in self._sizes if name < entry.segment)
        for name in sorted(older, key=lambda name: name in wanted or name > newest):
            if self.size_bytes + entry.size_bytes <= self._max_bytes:
                break
            # What is no longer at the URL may be the only copy, unless it was removed on purpose.
            is_removed = name in self._reader.removed
            if is_removed or read_if_any(self.place, segment_key(name, MANIFEST_FILE)) is not None:
                remove_segments(self.path, [name])
                del self._sizes[name]
        return self.size_bytes + entry.size_bytes <= self._max_bytes


class Spool(Background):
    """A dataset here whose segments go to a URL, and are deleted here when they are there.

    Args:
        url: URL of the dataset.
        path: Directory of the spool; several collectors for one URL may share it.
        unit: The unit of work that its only segment is, which is published once.
    """

    def __init__(self, url: str, path: Path, *, unit: Unit | None = None) -> None:
        super().__init__(url, path)
        self._unit = unit
        self._maps: set[str] = set()

    @property
    def left(self) -> int:
        """Number of segments that are not at the URL yet."""
        return len(Dataset.open(self.path).segment_ids()) if self.is_dataset else 0

    @property
    def is_dataset(self) -> bool:
        """Whether the spool exists."""
        return (self.path / GROUP_FILE).exists()

    def check_spec(self, should_stop: Callable[[], bool]) -> None:
        """Raise `SpecError` if there is a dataset with another spec at the URL."""
        if (group := read_if_any(self.opening(should_stop), GROUP_FILE)) is not None:
            there, here = read_spec(group, self.url), Dataset.open(self.path).spec
            if there != here:
                raise SpecError(
                    f"dataset {self.url} has another spec ({there.difference(here)}); collect "
                    "into another URL, or with the dataset's settings"
                )

    def read_spec(self, should_stop: Callable[[], bool]) -> EpisodeSpec:
        """Return the spec of the dataset at the URL, which exists."""
        return read_spec(self.opening(should_stop).read(GROUP_FILE), self.url)

    def held(self, plan: str, should_stop: Callable[[], bool]) -> tuple[set[int], dict[int, int]]:
        """Return the claimed units of a plan, and the steps of its episodes at the URL, by index.

        First complete what workers that died have claimed.
        """
        place, claimed = self.opening(should_stop), set[int]()
        reader = LogReader(place)
        entries = reader.open()
        if place.folders(f"{CLAIMS}/"):
            published = {e.unit for e in entries if e.plan == plan and e.unit is not None}
            claimed = complete_units(place, plan, published)
            if claimed - published:
                entries += reader.refresh()
        own = (_with_episodes(place, entry) for entry in entries if entry.plan == plan)
        return claimed, held_episodes(own, plan)

    def work(self) -> None:
        """Copy all segments, oldest first, and delete each here when a listing shows it there.

        A listing may lag, and from a listing a resume knows what need not be collected again.
        """
        if not self.is_dataset or not self.left:
            return
        lock = ExclusiveLock(self.path, purpose="avtd3 collect, upload", name=".upload.lock")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except InUseError as error:
                raise UnreachableError(f"another collector uploads: {error}") from error
            self._upload()

    def _upload(self) -> None:
        create_dataset(self.local, self.place, self.local.read(GROUP_FILE))
        if (maps := set(self.local.sizes(f"{MAPS}/"))) - self._maps:
            copy_maps(self.local, self.place)
            self._maps = maps
        is_listed = True
        with self._copier(self.local) as copier:
            for name in Dataset.open(self.path).segment_ids():
                if (found := copier.manifest(name)) is not None:
                    since_s = time.time()
                    there = copier.copy(*found, unit=self._unit)
                    if there in listed_segments(self.place, since_s):
                        remove_segments(self.path, [name])
                    else:
                        is_listed = False
                    self.waiting = ""  # more may follow for minutes
        if not is_listed:
            raise UnreachableError(f"uploaded segments are not listed at {self.url} yet")


def _with_episodes(place: RemotePlace, entry: LogEntry) -> LogEntry:
    """Complete the entry of a segment that the log lacks, so that its manifest was found."""
    if entry.indices:
        return entry
    manifest = place.read(segment_key(entry.segment, MANIFEST_FILE))
    return dataclasses.replace(entry, **about_episodes(place, read_manifest_bytes(place, manifest)))


def spool_path(url: str, configured: str) -> Path:
    """Return the directory of the spool for a URL; it must survive a restart of the machine."""
    if configured:
        check_local(configured)
        return Path(configured)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "avtd3" / "spool" / local_name(url)


class SpoolSize:
    """Measures how many bytes of segments a spool holds; each manifest is read once."""

    def __init__(self, path: Path) -> None:
        self._dataset, self._sizes = Dataset.open(path), dict[str, int]()

    def measure(self) -> int:
        """Return the bytes of all segments that are there now."""
        names = self._dataset.segment_ids()
        self._sizes = {name: self._sizes.get(name) or self._size(name) for name in names}
        return sum(self._sizes.values())

    def _size(self, name: str) -> int:
        with contextlib.suppress(SegmentCorruptError, OSError):  # uploaded meanwhile
            return read_manifest(self._dataset.segments_path / name).size_bytes
        return 0


class PolicyPull(Background):
    """A directory of policies here that has the newest policies of a URL."""

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(url, path)
        self._etag: str | None = None

    def work(self) -> None:
        """Bring the policy here that ``LATEST.json`` names, if that has changed."""
        with contextlib.suppress(FileNotFoundError):
            if (changed := self.place.read_changed(LATEST, self._etag)) is not None:
                _pull_latest(self.place, self.local, changed[0])
                self._etag = changed[1]
                for old in policies_of(self.local)[:-_KEPT_POLICIES]:
                    self.local.delete([old.replace(".json", ".safetensors"), old])


def _pull_latest(place: RemotePlace, local: LocalPlace, latest: bytes) -> None:
    """Bring one policy here, and let ``LATEST.json`` here name it unless it is older."""
    _pull_policy(place, local, Latest.parse(latest).sidecar)
    copy_latest(place, local)


def _pull_policy(place: RemotePlace, local: LocalPlace, sidecar: str) -> None:
    if SIDECAR.fullmatch(sidecar) is None:
        raise UnreachableError(f"{place.text}/{LATEST} names no policy; publish a new one")
    try:
        problem = copy_policy(place, local, sidecar)[1]
    except FileNotFoundError:
        problem = f"{place.text}/{sidecar} describes a policy that is not there; publish a new one"
    if problem:
        raise UnreachableError(problem)


def fetch_policy(url: str, folder: Path) -> Path:
    """Bring the newest policy of a URL, or the one whose file it names, here; return its path.

    Raises:
        CheckpointError: There is none.
        UnreachableError: The URL cannot be reached, or the policy is damaged there.
    """
    base, _, name = url.rpartition("/") if url.endswith(".safetensors") else (url, "", "")
    place, local = RemotePlace(base), LocalPlace(folder)
    check_reachable(place)
    sidecar = name.replace(".safetensors", ".json")
    if not name:
        latest, every = read_if_any(place, LATEST), policies_of(place)
        sidecar = Latest.parse(latest).sidecar if latest else every[-1] if every else ""
    if not sidecar or read_if_any(place, sidecar) is None:
        raise CheckpointError(
            f"{url} holds no policy; give the URL that a learner publishes into (avtd3 learn "
            "--policies), or that of one of its files"
        )
    _pull_policy(place, local, sidecar)
    return folder / name


@contextlib.contextmanager
def local_policy(named: Path | str) -> Iterator[Path]:
    """Yield a policy's path on this machine: that of a URL is copied for the time inside."""
    if (url := remote_url(named)) is None:
        yield Path(named)
        return
    with tempfile.TemporaryDirectory(prefix="avtd3-policies-") as folder:
        yield fetch_policy(url, Path(folder))


class PolicyPush(Background):
    """A directory of policies here whose policies go to a URL.

    Args:
        url: URL of the policies.
        path: Directory that the learner publishes into.
        prunes: Whether to delete policies there that are older than all here.
        run: Id of the run that publishes here; empty to accept policies of any run there.
    """

    def __init__(self, url: str, path: Path, *, prunes: bool = False, run: str = "") -> None:
        super().__init__(url, path)
        self._prunes, self._done = prunes, set[str]()
        self._run_id, self._runs = run, {"", run}
        self._latest: bytes | None = None

    def adopt(self, should_stop: Callable[[], bool]) -> None:
        """Bring the newest policy of an earlier run here, so that versions continue after it."""
        check_reachable(self.place)
        place = self.opening(should_stop)
        if (latest := read_if_any(place, LATEST)) is not None:
            self._runs.add(Latest.parse(latest).run)
            _pull_latest(place, self.local, latest)

    def _check_alone(self) -> None:
        """Raise if a run has published there that had not when this one started."""
        run = Latest.parse(read_if_any(self.place, LATEST)).run if self._run_id else ""
        if run not in self._runs:
            raise InUseError(self.url, f"another learner, run {run}, which published there")

    def work(self) -> None:
        """Copy what is new; after a cut link, first what collectors wait for: the newest policy."""
        new = [name for name in policies_of(self.local) if name not in self._done]
        if new:
            self._check_alone()
        for name in reversed(new):
            with contextlib.suppress(FileNotFoundError):  # being published
                if not copy_policy(self.local, self.place, name)[1]:
                    self._done.add(name)
            self._send_latest()
        self._send_latest()
        if new:
            self._prune()

    def _send_latest(self) -> None:
        """Let ``LATEST.json`` there name the newest policy, if that is there."""
        latest = read_if_any(self.local, LATEST)
        if latest != self._latest and Latest.parse(latest).sidecar in self._done:
            copy_latest(self.local, self.place)
            self._latest = latest

    def _prune(self) -> None:
        here = policies_of(self.local)
        if self._prunes and here:
            there = policies_of(self.place)
            for old in there[: there.index(here[0])] if here[0] in there else ():
                self.place.delete([old.replace(".json", ".safetensors"), old])
