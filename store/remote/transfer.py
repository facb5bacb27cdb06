"""`transfer`: copy a dataset or a directory of policies between two places, and continue it.

Every byte is compared with its SHA-256, a segment's with its manifest and a policy's with its
sidecar, and each segment appears whole or not at all. What is there already is skipped, so running
it again continues it. `SegmentCopier` copies one segment; uploads of collectors and mirrors of
learners use it, too.
"""

import dataclasses
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from avtd3.store.dataset import Dataset, parse_spec
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    FormatVersionError,
    InUseError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
    StorageError,
)
from avtd3.store.files import (
    canonical_json,
    exists,
    fsync_directory,
    parse_json,
    sha256,
    write_aside,
    write_new,
)
from avtd3.store.format.layout import GROUP_FILE, MANIFEST_FILE, MAPS, SEGMENTS, STAGING
from avtd3.store.format.manifest import FileEntry, Manifest, parse_manifest
from avtd3.store.maintenance.removal import Removal, read_removals
from avtd3.store.remote.client import (
    CHUNK_BYTES,
    Limiter,
    LocalPlace,
    Patience,
    Place,
    RemotePlace,
    check_reachable,
    open_place,
)
from avtd3.store.remote.commit import (
    CLAIMS,
    Unit,
    about_episodes,
    create_or_read,
    delete_files,
    publish_segment,
    read_if_any,
    read_manifest_bytes,
    remove_segment,
    segment_key,
)
from avtd3.store.remote.log import LogReader, logged_segments
from avtd3.store.render.text import file_size, join_lines, plural
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import make_directories, staged

MIRROR_FILE = ".mirror.json"
"""File of a dataset that was pulled from a URL, which it names."""
THREADS = 8
"""Files of a segment that are copied at the same time."""
SIDECAR = re.compile(r"policy-(\d{8}|[1-9]\d{8,17})\.json")
"""Names of the files that describe policies."""
LATEST = "LATEST.json"
"""File that names the newest policy."""


class Stopped(Exception):  # noqa: N818 - a request, no fault
    """A transfer that was asked to stop."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """The state of a running transfer."""

    done: int
    """Segments or policies that are there."""
    total: int
    """All that are to be there."""
    noun: str
    """What they are."""
    size_bytes: int
    """Bytes copied."""
    seconds: float
    """Time so far."""
    share: float = 0.0
    """Share of the segment in progress that is copied, in [0, 1)."""
    waiting: str = ""
    """Why nothing is copied at present."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, in [0, 1]."""
        return min((self.done + self.share) / max(self.total, 1), 1.0)

    def line(self) -> str:
        """Describe the progress in one line."""
        what = f"{self.done} of {plural(self.total, self.noun, _plural(self.noun))}"
        rate = file_size(self.size_bytes / max(self.seconds, 1e-3))
        text = f"{what}, {file_size(self.size_bytes)} copied at {rate}/s"
        return f"{text}; {self.waiting}" if self.waiting else text


def _plural(noun: str) -> str:
    return {"policy": "policies"}.get(noun, f"{noun}s")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """The result of `transfer`."""

    source: str
    """Where it was copied from."""
    destination: str
    """Where it was copied to."""
    noun: str
    """What was copied: ``segment`` or ``policy``."""
    copied: int
    """How many were copied."""
    present: int
    """How many were there before."""
    size_bytes: int
    """Bytes copied."""
    seconds: float
    """Wall-clock time."""
    problems: tuple[str, ...]
    """What could not be copied, and why."""
    stopped: bool
    """Whether it was interrupted."""
    removed: int
    """Segments that were removed at the destination."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        what = plural(self.copied, self.noun, _plural(self.noun))
        verb = "stopped early after copying" if self.stopped else "copied"
        rate = file_size(self.size_bytes / max(self.seconds, 1e-3))
        lines = [
            f"{verb} {what} ({file_size(self.size_bytes)}, {rate}/s) from {self.source} "
            f"to {self.destination}; {self.present} were there",
            *([f"removed {plural(self.removed, 'segment')} there"] if self.removed else ()),
            *(f"not done: {problem}" for problem in self.problems),
        ]
        if self.stopped:
            lines.append("run the same command again to continue")
        return join_lines(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


class SegmentCopier:
    """Copies single segments from one place to another, with several files at a time.

    Use it as a context manager.

    Args:
        source: Where the segments are.
        destination: Where they go; its dataset exists.
        limiter: Limits the bytes per second.
        should_stop: Called before each piece; true raises `Stopped`.
        on_bytes: Called with the number of bytes of each piece, from several threads.
    """

    def __init__(
        self,
        source: Place,
        destination: Place,
        *,
        limiter: Limiter | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._source, self._destination = source, destination
        self.limiter, self.should_stop, self.on_bytes = limiter or Limiter(), should_stop, on_bytes
        self._pool = ThreadPoolExecutor(THREADS, "avtd3-transfer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def manifest(self, segment_id: str) -> tuple[Manifest, bytes] | None:
        """Read a manifest at the source; None if there is none, so no segment either."""
        data = read_if_any(self._source, segment_key(segment_id, MANIFEST_FILE))
        if data is None:
            return None
        return parse_manifest(data, Path(self._source.text) / SEGMENTS / segment_id), data

    def copy(self, manifest: Manifest, data: bytes, *, unit: Unit | None = None) -> str:
        """Copy one segment, of which `manifest` returned these; return the id of what is there.

        It is that of another segment if another process has done the unit.

        Raises:
            SegmentCorruptError: The bytes at the source are not those of the manifest.
            SegmentNotFoundError: The segment was removed meanwhile.
            UnreachableError: One of the places cannot be reached.
            Stopped: It was asked to stop.
        """
        if isinstance(self._destination, RemotePlace):
            return publish_segment(
                self._destination,
                data,
                self._put,
                unit=unit,
                about=lambda: about_episodes(self._source, manifest),
            )
        self._receive(manifest, data, self._destination.path)
        return manifest.segment_id

    def _put(self, manifest: Manifest) -> None:
        """Put the files of a segment into an object store."""

        def put(item: tuple[str, FileEntry]) -> None:
            name, entry = item
            key = segment_key(manifest.segment_id, name)
            content = _Verified(self, self._source, key, entry)
            whole = entry.size <= CHUNK_BYTES
            self._destination.write(key, b"".join(content) if whole else content)

        list(self._pool.map(put, manifest.files.items()))

    def _receive(self, manifest: Manifest, data: bytes, dataset: Path) -> None:
        """Write the files of a segment into staging, and rename it."""
        segment_id = manifest.segment_id
        target = dataset / SEGMENTS / segment_id
        staging = dataset / STAGING / f"{segment_id}.{secrets.token_hex(4)}"

        def write(item: tuple[str, FileEntry]) -> None:
            name, entry = item
            key = segment_key(segment_id, name)
            with (staging / name).open("xb") as file:
                for piece in _Verified(self, self._source, key, entry):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())

        try:
            with staged(staging, target):
                directories = make_directories(staging, manifest.files)
                list(self._pool.map(write, manifest.files.items()))
                write_new(staging / MANIFEST_FILE, data)
                for directory in reversed(directories):
                    fsync_directory(directory)
        except StorageError:
            if not exists(target / MANIFEST_FILE):  # otherwise, another process was faster
                raise


class _Verified:
    """The bytes of a file in pieces; the last one only if all match the manifest."""

    def __init__(
        self,
        copier: SegmentCopier,
        source: Place,
        key: str,
        entry: FileEntry,
    ) -> None:
        self._copier, self._source, self._key, self._entry = copier, source, key, entry

    def __iter__(self) -> Iterator[bytes]:
        digest, size, last = hashlib.sha256(), 0, b""
        for piece in self._pieces():
            if self._copier.should_stop():
                raise Stopped
            self._copier.limiter.spend(len(piece), self._copier.should_stop)
            self._copier.on_bytes(len(piece))
            digest.update(piece)
            size += len(piece)
            if size > self._entry.size:
                break  # it may be endless
            if last:
                yield last
            last = piece
        if size != self._entry.size or digest.hexdigest() != self._entry.sha256:
            found = f"{size} bytes with SHA-256 {digest.hexdigest():.12}"
            if size > self._entry.size:
                found = f"more than {self._entry.size} bytes"
            raise SegmentCorruptError(
                f"{self._source.text}/{self._key} has {found}, its manifest says "
                f"{self._entry.size} bytes with {self._entry.sha256:.12}; audit the source with "
                "avtd3 replay-inspect --full"
            )
        yield last

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from self._source.chunks(self._key, self._entry.size)
        except FileNotFoundError:
            raise SegmentNotFoundError(
                f"{self._source.text}/{self._key} is missing; the segment was removed or is "
                "damaged: audit the source with avtd3 replay-inspect"
            ) from None


def transfer(
    source: Path | str,
    destination: Path | str,
    *,
    bytes_per_s: float = 0.0,
    removals: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[TransferProgress], None] = lambda _: None,
) -> TransferReport:
    """Copy a dataset, or a directory of policies, to another place; continue what was begun.

    Args:
        source: Path or URL.
        destination: Path or URL; created if it does not exist.
        bytes_per_s: Largest number of bytes per second; 0 is no limit.
        removals: Whether to remove at the destination, a URL, what maintenance has removed from
            the source, a directory.
        should_stop: Called often; true ends the transfer in good order.
        on_progress: Called after each piece.

    Raises:
        ConfigError: A URL is malformed, its bucket is missing, or the store refuses.
        DatasetError: The source is neither a dataset nor a directory of policies.
        SpecError: The destination is a dataset with another spec.
        UnreachableError: A place cannot be reached.
        StorageError: The disk is full.

    Example:
        >>> from avtd3.store import Dataset, EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> _ = Dataset.create("here", spec)
        >>> transfer("here", "there").copied
        0
        >>> Dataset.open("there").spec == spec
        True
    """
    work = _Transfer(source, destination, bytes_per_s, should_stop, on_progress)
    return work.run(removals=removals)


class _Transfer:
    """One call of `transfer`."""

    def __init__(
        self,
        source: Path | str,
        destination: Path | str,
        bytes_per_s: float,
        should_stop: Callable[[], bool],
        on_progress: Callable[[TransferProgress], None],
    ) -> None:
        patience = Patience(should_stop=should_stop, on_wait=self._wait)
        self._source, self._destination = (open_place(p, patience) for p in (source, destination))
        if self._source.text == self._destination.text:
            raise ConfigError(f"{source} is both source and destination; give two places")
        self._limiter, self._should_stop = Limiter(bytes_per_s), should_stop
        self._on_progress, self._began_s = on_progress, time.monotonic()
        self._noun, self._total, self._done, self._copied = "segment", 0, 0, 0
        self._size_bytes, self._part_bytes, self._whole_bytes = 0, 0, 1
        self._waiting, self._lock = "", threading.Lock()
        self._problems: list[str] = []
        self._removals: tuple[LocalPlace, RemotePlace] | None = None
        self._removed = 0

    def run(self, *, removals: bool) -> TransferReport:
        """Copy what is missing; then remove what was removed here, if that is wanted."""
        if removals:
            if isinstance(self._source, RemotePlace) or isinstance(self._destination, LocalPlace):
                raise ConfigError(
                    "--removals needs a directory as the source and a URL as the destination; in "
                    "a directory, run avtd3 store prune or compact"
                )
            self._removals = self._source, self._destination
        present = 0
        for place in (self._source, self._destination):
            check_reachable(place)
        try:
            try:
                group = self._source.read(GROUP_FILE)
            except FileNotFoundError:
                self._noun = "policy"
                present = self._copy_policies()
            else:
                present = self._copy_dataset(group)
            stopped = False
        except Stopped:
            stopped = True
        return TransferReport(
            source=self._source.text,
            destination=self._destination.text,
            noun=self._noun,
            copied=self._copied,
            present=present,
            size_bytes=self._size_bytes,
            seconds=time.monotonic() - self._began_s,
            problems=tuple(self._problems),
            stopped=stopped,
            removed=self._removed,
        )

    def _copy_dataset(self, group: bytes) -> int:
        create_dataset(self._source, self._destination, group)
        here, _ = list_segments(self._source)
        there, removed = list_segments(self._destination)
        missing = sorted(here - there - removed)
        self._total, self._done = len(here), len(here) - len(missing)
        copy_maps(self._source, self._destination)
        with SegmentCopier(
            self._source,
            self._destination,
            limiter=self._limiter,
            should_stop=self._should_stop,
            on_bytes=self._count,
        ) as copier:
            for segment_id in missing:
                self._copy_segment(copier, segment_id)
        if self._removals is not None:
            self._remove(*self._removals)
        return len(here & there)

    def _remove(self, source: LocalPlace, place: RemotePlace) -> None:
        """Remove at a URL what maintenance removed here, after what replaces it is there."""
        here, records = Dataset.open(source.path).segment_ids(), read_removals(source.path)
        there, removed = list_segments(place)
        for name in removed & set(place.folders(f"{SEGMENTS}/")):
            delete_files(place, name)  # left by a process that was killed
        checked: dict[str, bool] = {}
        for name in sorted((records.keys() & there).difference(here)):
            if self._should_stop():
                raise Stopped
            by = _successor(name, records, here)
            data = read_if_any(place, segment_key(name, MANIFEST_FILE))
            if data is None:
                continue
            manifest = read_manifest_bytes(place, data)
            if by and by not in checked:
                key = segment_key(by, MANIFEST_FILE)
                checked[by] = read_if_any(source, key) == read_if_any(place, key) is not None
            if manifest.digest != records[name].digest or (by and not checked[by]):
                self._problems.append(
                    f"{place.text}: {name} stays, because it or the segment that replaces it is "
                    "not the one that is known here; pull the dataset again, and compare them"
                )
                continue
            remove_segment(place, manifest, by)
            self._removed += 1

    def _copy_segment(self, copier: SegmentCopier, segment_id: str) -> None:
        try:
            if (found := copier.manifest(segment_id)) is None:
                self._total -= 1  # a half copy at the source
                return
            self._part_bytes, self._whole_bytes = 0, max(found[0].size_bytes, 1)
            copier.copy(*found)
        except (SegmentCorruptError, SegmentNotFoundError, FormatVersionError) as error:
            self._problems.append(str(error))
        else:
            self._copied += 1
        self._done, self._part_bytes = self._done + 1, 0
        self._report()

    def _copy_policies(self) -> int:
        sidecars = policies_of(self._source)
        if not sidecars:  # a listing may lag: what LATEST names is there
            named = Latest.parse(read_if_any(self._source, LATEST)).sidecar
            sidecars = [named] if SIDECAR.fullmatch(named) else []
        if not sidecars:
            raise DatasetError(
                f"{self._source.text} is neither a dataset nor a directory of policies: it has "
                f"no {GROUP_FILE} and no policy-*.json; check the path"
            )
        self._total = len(sidecars)
        present = 0
        for sidecar in sidecars:
            if self._should_stop():
                raise Stopped
            try:
                size_bytes, problem = copy_policy(self._source, self._destination, sidecar)
            except FileNotFoundError:  # removed meanwhile, or not yet whole
                self._total -= 1
                continue
            self._problems += [problem] if problem else []
            self._copied += bool(size_bytes)
            present += not (size_bytes or problem)
            self._limiter.spend(size_bytes, self._should_stop)
            self._done += 1
            self._count(size_bytes)
        copy_latest(self._source, self._destination)
        return present

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            self._size_bytes += size_bytes
            self._part_bytes += size_bytes
        self._waiting = ""
        self._report()

    def _wait(self, reason: str) -> None:
        self._waiting = f"waiting: {reason}"
        self._report()

    def _report(self) -> None:
        progress = TransferProgress(
            done=self._done,
            total=self._total,
            noun=self._noun,
            size_bytes=self._size_bytes,
            seconds=time.monotonic() - self._began_s,
            share=min(self._part_bytes / self._whole_bytes, 0.99) if self._whole_bytes > 1 else 0.0,
            waiting=self._waiting,
        )
        self._on_progress(progress)


def _successor(name: str, records: Mapping[str, Removal], here: Collection[str]) -> str:
    """Return which segment has the episodes of a removed one now; empty if they were pruned."""
    by, seen = records[name].replaced_by, {name}
    while by and by not in here and by in records and by not in seen:
        seen.add(by)
        by = records[by].replaced_by
    return by


def create_dataset(source: Place, destination: Place, group: bytes) -> None:
    """Create the dataset that a source's ``zarr.json`` describes, or check that it is the same.

    Raises:
        SpecError: There is one with another spec.
        DatasetError: The source, or what is at the destination, is no dataset.
    """
    spec = read_spec(group, source.text)
    if isinstance(destination, RemotePlace):
        found = create_or_read(destination, GROUP_FILE, group)
        there = read_spec(found, destination.text)
        if there != spec:
            raise SpecError(
                f"dataset {destination.text} has another spec ({there.difference(spec)}); "
                "choose another URL"
            )
        return
    Dataset.create(destination.path, spec).clean_staging()
    mirror = destination.path / MIRROR_FILE
    if isinstance(source, RemotePlace) and not exists(mirror):
        write_aside(mirror, canonical_json({"url": source.text}))


def read_spec(group: bytes, where: str) -> EpisodeSpec:
    """Return the spec in the bytes of the ``zarr.json`` of a place."""
    try:
        document = parse_json(group, f"{where}/{GROUP_FILE}")
    except ValueError as error:
        raise DatasetError(f"{where} is not a dataset: {error}") from error
    return parse_spec(Path(where) / GROUP_FILE, document)


def list_segments(place: Place) -> tuple[set[str], set[str]]:
    """Return the segments of a place, and those that were removed from it on purpose.

    Those of a URL are the ones whose publication was completed.
    """
    if isinstance(place, LocalPlace):
        here = set(Dataset.open(place.path).segment_ids())
        return here, read_removals(place.path).keys() - here
    logged, removed = logged_segments(place)
    folders = set(place.folders(f"{SEGMENTS}/"))
    known = logged & folders
    # Those without an entry in the log may be segments, too: their manifests say so.
    others = folders - known - removed
    unlogged = {s for s in others if read_if_any(place, segment_key(s, MANIFEST_FILE))}
    found = known | unlogged
    if place.folders(f"{CLAIMS}/"):
        reader = LogReader(place)
        reader.open()
        found -= reader.repeated
    return found, removed


def copy_maps(source: Place, destination: Place, only: Collection[str] | None = None) -> None:
    """Copy the road networks that the destination lacks; their names are their digests."""
    for key in source.sizes(f"{MAPS}/").keys() - destination.sizes(f"{MAPS}/").keys():
        if only is None or key.removeprefix(f"{MAPS}/").partition(".")[0] in only:
            destination.create(key, source.read(key))


def policies_of(place: Place) -> list[str]:
    """Return the sidecars of the policies in a place, oldest first."""
    keys = (key for key in place.sizes("") if SIDECAR.fullmatch(key))
    return sorted(keys, key=lambda key: (len(key), key))


def copy_policy(source: Place, destination: Place, sidecar: str) -> tuple[int, str]:
    """Copy a policy unless it is there; return the bytes copied, and why it cannot be copied.

    Raises:
        InUseError: The destination has another policy of this version.
        FileNotFoundError: The policy is not whole, or no longer, at the source.
    """
    try:
        about = source.read(sidecar)
        name, digest = f"{sidecar.removesuffix('.json')}.safetensors", json.loads(about)["sha256"]
        there = read_if_any(destination, sidecar)
        data = b"" if there == about else b"".join(source.chunks(name))
    except (KeyError, TypeError, ValueError):
        return 0, f"{source.text}/{sidecar} does not describe a policy"
    if there == about:
        return 0, ""
    if sha256(data) != digest:
        return 0, f"{source.text}/{name} does not have the SHA-256 of {sidecar}; copy it again"
    # First the weights: a policy whose sidecar is there is whole.
    found = (create_or_read(destination, name, data), create_or_read(destination, sidecar, about))
    if found != (data, about):
        raise InUseError(destination.text, f"another learner, which published another {name}")
    return len(data) + len(about), ""


class Latest(NamedTuple):
    """What a ``LATEST.json`` says."""

    version: int = -1
    sidecar: str = ""
    """File that describes the policy; any text."""
    run: str = ""

    @classmethod
    def parse(cls, data: bytes | None) -> Self:
        """Read one; the defaults if there is none, or another file."""
        try:
            found = parse_json(data or b"", LATEST)
            sidecar = str(found["file"]).replace(".safetensors", ".json")
            return cls(int(found["version"]), sidecar, str(found.get("run", "")))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return cls()


def copy_latest(source: Place, destination: Place) -> None:
    """Let ``LATEST.json`` name the same policy as at the source, if it is there and newer."""
    data = read_if_any(source, LATEST)
    latest, there = Latest.parse(data), Latest.parse(read_if_any(destination, LATEST))
    if data is None or latest.version <= there.version:
        return
    if read_if_any(destination, latest.sidecar) is not None:
        destination.write(LATEST, data)
