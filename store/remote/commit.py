"""Publish a segment in an object store, so that it exists whole or not at all.

A segment exists if and only if its manifest does. So its other files are put first, under a fresh
id, and the manifest is created last, only if there is none. The answer to such a request may be
lost, and the repeated request then finds its own object: `create_or_read` compares the bytes.

An entry in the log follows, which is how readers find the segment (`avtd3.store.remote.log`). One
that is missing, because the writer died before, is added when the segment is published again.

A unit of work that several processes may do has a claim, which the first one creates with the bytes
of its manifest. The others lose: they complete the winner's commit and delete their own files.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.store.errors import SegmentCorruptError
from avtd3.store.format.codec import unseal
from avtd3.store.format.layout import MANIFEST_FILE, SEGMENTS
from avtd3.store.format.manifest import Manifest, parse_manifest
from avtd3.store.remote.client import LocalPlace, Place, RemotePlace
from avtd3.store.remote.log import LogEntry, add_entry, logged_segments

CLAIMS = "claims"
"""Folder of the claims."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of work of a plan, which is published once, however many processes do it."""

    plan: str
    """Digest of the plan."""
    number: int
    """Number of the unit."""

    @property
    def key(self) -> str:
        """Key of its claim."""
        return f"{claims_of(self.plan)}/{self.number:08d}.json"


def claims_of(plan: str) -> str:
    """Return the folder of the claims of a plan, given by its digest."""
    return f"{CLAIMS}/{plan[:16]}"


def segment_key(segment_id: str, name: str = "") -> str:
    """Return the key of a file of a segment, or the prefix of all."""
    return f"{SEGMENTS}/{segment_id}/{name}"


def read_manifest_bytes(place: Place, data: bytes) -> Manifest:
    """Check the bytes of a manifest of any segment of a dataset."""
    try:
        segment_id = str(json.loads(data)["segment_id"])
    except (KeyError, TypeError, ValueError):
        segment_id = "unknown"
    return parse_manifest(data, Path(place.text) / SEGMENTS / segment_id)


def create_or_read(place: Place, key: str, data: bytes) -> bytes:
    """Create a file unless there is one; return its bytes, which are equal if this created it.

    Where the store ignores conditions, look before creating: two writers at the same time may then
    both create it, and readers drop what is repeated.
    """
    honours = isinstance(place, LocalPlace) or place.honours_conditions
    while True:
        if honours and place.create(key, data):
            return data
        try:
            return place.read(key)
        except FileNotFoundError:  # deleted meanwhile, or never created
            if not honours:
                place.write(key, data)
                return data


def claim_unit(place: Place, unit: Unit, manifest: bytes) -> bytes:
    """Claim a unit of work for the segment with a manifest; return the manifest that has it.

    Equal bytes mean that the caller has it. Otherwise another process was first: complete its
    commit, because it may have died, and delete the caller's files. The claim is a file that is
    created once, in a directory of this machine (also a network mount) or in an object store.

    Args:
        place: The dataset.
        unit: The unit.
        manifest: All bytes of the manifest of the caller's segment, whose other files are whole in
            the dataset already.
    """
    return create_or_read(place, unit.key, manifest)


def publish_segment(
    place: RemotePlace,
    data: bytes,
    put_files: Callable[[Manifest], None],
    *,
    unit: Unit | None = None,
    about: Callable[[], Mapping[str, Any]] = dict,
) -> str:
    """Publish a segment; return the id of the segment that is there then.

    It is another one if another process has done the unit. Publishing the same segment again, also
    at the same time, changes nothing.

    Args:
        place: The dataset.
        data: The bytes of its manifest.
        put_files: Puts its other files; called unless the segment is there.
        unit: The unit of work that it is, if any.
        about: Returns more for the entry in the log, after the files were put.

    Raises:
        SegmentCorruptError: There is a segment with this id and other bytes, or a file has another
            size after it was put.
    """
    manifest = read_manifest_bytes(place, data)
    key = segment_key(manifest.segment_id, MANIFEST_FILE)
    if (there := read_if_any(place, key)) is not None:
        _check_same(place, key, data, there)
        put_files = _nothing
    put_files(manifest)
    if there is None:
        _check_sizes(place, manifest)
        if unit is not None and (winner := claim_unit(place, unit, data)) != data:
            complete(place, winner, unit)
            place.delete([segment_key(manifest.segment_id, name) for name in manifest.files])
            return read_manifest_bytes(place, winner).segment_id
        _check_same(place, key, data, create_or_read(place, key, data))
    add_entry(place, LogEntry.of(manifest, time.time(), unit=unit and unit.number, **about()))
    return manifest.segment_id


def complete(place: RemotePlace, winner: bytes, unit: Unit) -> None:
    """Create the manifest and the log entry of a claimed segment whose writer may have died."""
    manifest = read_manifest_bytes(place, winner)
    key = segment_key(manifest.segment_id, MANIFEST_FILE)
    if read_if_any(place, key) is None:
        if manifest.segment_id in logged_segments(place)[1]:
            return  # done, and removed since
        _check_sizes(place, manifest)
        _check_same(place, key, winner, create_or_read(place, key, winner))
    about = about_episodes(place, manifest)
    add_entry(place, LogEntry.of(manifest, time.time(), unit=unit.number, **about))


def complete_units(place: RemotePlace, plan: str, published: Collection[int]) -> set[int]:
    """Return the numbers of the claimed units of a plan; complete those that are not published.

    Args:
        place: The dataset.
        plan: Digest of the plan, as in `Unit`.
        published: Numbers of units that need no look.
    """
    claimed = set[int]()
    for key in place.sizes(f"{claims_of(plan)}/"):
        if not (stem := Path(key).stem).isdecimal():
            continue
        unit = Unit(plan=plan, number=int(stem))
        claimed.add(unit.number)
        if unit.number not in published:
            # Without its files, the segment was removed: what it had is collected as another unit.
            with contextlib.suppress(SegmentCorruptError):
                complete(place, place.read(key), unit)
    return claimed


def about_episodes(place: Place, manifest: Manifest) -> dict[str, Any]:
    """Return what the log says about the episodes of a segment, whose files are in a place."""

    def column(name: str) -> list[int]:
        key = segment_key(manifest.segment_id, f"episode_{name}/c/0")
        values: list[int] = np.frombuffer(unseal(place.read(key)), "<i8").tolist()
        return values

    try:
        index, length, version = map(column, ("index", "length", "policy_version"))
    except (FileNotFoundError, ValueError):
        return {}
    drove = [number for number in version if number >= 0]
    versions = (min(drove), max(drove)) if drove else ()
    return {"indices": tuple(index), "lengths": tuple(length), "policy_versions": versions}


def remove_segment(place: RemotePlace, manifest: Manifest, replaced_by: str = "") -> None:
    """Remove a segment on purpose; `replaced_by` is the one that has its episodes now, if any.

    The tombstone in the log decides: readers skip the segment from then on, and who is killed
    before all files are deleted leaves only files to delete.
    """
    more = {"removed": True, "replaced_by": replaced_by}
    add_entry(place, LogEntry.of(manifest, time.time(), **more))
    delete_files(place, manifest.segment_id)


def delete_files(place: RemotePlace, segment_id: str) -> None:
    """Delete the files of a segment that has a tombstone, the manifest first."""
    place.delete([segment_key(segment_id, MANIFEST_FILE)])
    place.delete(place.sizes(segment_key(segment_id)))


def _nothing(manifest: Manifest) -> None:
    """Put no files."""


def read_if_any(place: Place, key: str) -> bytes | None:
    """Return a small file, or None if there is none."""
    try:
        return place.read(key)
    except FileNotFoundError:
        return None


def _check_same(place: RemotePlace, key: str, data: bytes, found: bytes) -> None:
    if found != data:
        raise SegmentCorruptError(
            f"{place.text}/{key} exists with other content, expected the same bytes or nothing: "
            "one of the two segments of this name was altered; find out which (avtd3 "
            "replay-inspect --full), and remove it"
        )


def _check_sizes(place: RemotePlace, manifest: Manifest) -> None:
    prefix = segment_key(manifest.segment_id)
    found = place.sizes(prefix)
    for name, entry in manifest.files.items():
        size = found.get(f"{prefix}{name}")
        if size is None:  # the listing may lag
            with contextlib.suppress(FileNotFoundError):
                size = place.size(f"{prefix}{name}")
        if size != entry.size:
            raise SegmentCorruptError(
                f"{place.text}/{prefix}{name} has {size} bytes after it was put, expected "
                f"{entry.size}; run the same command again"
            )
