"""`WorldRecord`: the state of the world in every observation of an episode, to draw it again.

A segment stores the records of its episodes in three optional arrays, which docs/format.md
describes. Readers that do not know them ignore them. Poses of other actors are whole numbers of
`POSITION_STEPS_PER_M` and `ANGLE_STEPS_PER_RAD`; a simulator draws its live pictures from these
numbers, too, so that the same pictures can be drawn later.

The texts of road networks are stored once per dataset: `DATASET/maps/<SHA-256 of the text>.xodr.gz`
holds one of which records know the digest.
"""

import dataclasses
import gzip
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import DatasetError, DatasetUnreadableError, SpecError, abbreviate, advice
from avtd3.store.files import (
    canonical_json,
    exists,
    is_passing,
    list_directory,
    parse_json,
    read_bytes,
    sha256,
    storage_errors,
    unzip,
    write_aside,
)
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.layout import MAPS, ArrayLayout

POSITION_STEPS_PER_M, ANGLE_STEPS_PER_RAD = 1_000_000, 1_000_000
"""Resolution of the stored poses of actors: 1 um and 1 urad. 0.1 mm and 0.01 mrad would take half
the bytes, but some pictures would differ in a pixel from those of exact poses."""
MAX_SETUP_BYTES = 256 * 1024
"""Largest size of what is stored once per episode."""
MAX_ACTORS = 1000
"""Most other actors of an episode."""
SETUP, EGO, ACTOR = "state_setup", "state_ego", "state_actor"
"""Names of the arrays."""
_DTYPES = {SETUP: "uint8", EGO: "int64", ACTOR: "int64"}
_DIMENSIONS = {SETUP: "state_byte", EGO: "state_ego_value", ACTOR: "state_actor_value"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorldRecord:
    """The state of the world in each of the T + 1 observations of an episode.

    `Episode.world_record` returns it. Coordinates are those of docs/worlds.md.

    Example:
        >>> import numpy as np
        >>> record = WorldRecord(
        ...     setup={"actors": [{"length_m": 4.5}]},
        ...     ego=np.zeros((3, 3)),
        ...     actors=np.array([[[2_500_000, 0, 0]]] * 3),
        ... )
        >>> record.poses[0].tolist()
        [[2.5, 0.0, 0.0]]
    """

    setup: Mapping[str, Any]
    """What stays the same in the episode, as a JSON object: the shapes of N actors in a list
    ``actors``, the SHA-256 of the road network's text as ``map``, and what the world adds."""
    ego: NDArray[np.float64]
    """float64 (T + 1, 3): x, y in metres and yaw in radians of the car, exact."""
    actors: NDArray[np.int64]
    """int64 (T + 1, N, 3): x, y and yaw of the other actors, in whole steps."""
    map_text: str = ""
    """OpenDRIVE text of the road network, for the writer; empty in records that were read, see
    `read_map`."""

    @property
    def poses(self) -> NDArray[np.float64]:
        """float64 (T + 1, N, 3): x, y in metres and yaw in radians of the other actors."""
        steps = (POSITION_STEPS_PER_M, POSITION_STEPS_PER_M, ANGLE_STEPS_PER_RAD)
        found: NDArray[np.float64] = self.actors / np.array(steps, np.float64)
        return found

    @property
    def map_digest(self) -> str:
        """SHA-256 of the road network's text; empty if it is not known."""
        return str(self.setup.get("map", ""))

    def to_bytes(self, *, has_setup: bool = True) -> bytes:
        """Return bytes that are equal for equal records, without the map's text."""
        setup = canonical_json(dict(self.setup)) if has_setup else b""
        return setup + self.ego.tobytes() + self.actors.tobytes()

    def first(self, observations: int) -> Self:
        """Return the record of the first observations; raise SpecError if it cannot be stored."""
        shown = self.setup.get("actors")
        if not isinstance(shown, list | tuple):
            raise SpecError(
                f"world record's setup has actors {abbreviate(shown)}, expected a list of shapes"
            )
        shapes = ((observations, 3), (observations, len(shown), 3))
        ego, actors = self.ego[:observations], self.actors[:observations]
        dtypes = (np.dtype(np.float64), np.dtype(np.int64))
        if (ego.shape, actors.shape) != shapes or (ego.dtype, actors.dtype) != dtypes:
            raise SpecError(
                f"world record has ego {ego.dtype} {ego.shape} and actors {actors.dtype} "
                f"{actors.shape}, expected float64 {shapes[0]} and int64 {shapes[1]}"
            )
        if not np.isfinite(ego).all():
            raise SpecError("world record has a pose of the car that is not finite")
        if shapes[1][1] > MAX_ACTORS:
            raise SpecError(f"world record has {shapes[1][1]} actors, expected up to {MAX_ACTORS}")
        try:
            size = len(canonical_json(dict(self.setup)))
        except (TypeError, ValueError) as error:
            raise SpecError(f"world record's setup is not JSON: {error}") from error
        if size > MAX_SETUP_BYTES:
            raise SpecError(f"world record's setup has {size} bytes, most are {MAX_SETUP_BYTES}")
        return dataclasses.replace(self, ego=ego, actors=actors)


def record_columns(records: Sequence[WorldRecord | None]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the records of a segment's episodes by name; none without a record."""
    if not any(records):
        return {}
    known = [record for record in records if record is not None]
    columns = {
        SETUP: setup_column([None if record is None else record.setup for record in records]),
        EGO: np.concatenate([_differences(r.ego.view(np.int64)[:, None]) for r in known]),
        ACTOR: np.concatenate([_differences(record.actors) for record in known]),
    }
    return {name: column for name, column in columns.items() if len(column)}


def setup_column(setups: Sequence[Mapping[str, Any] | None]) -> NDArray[np.uint8]:
    """Return the array of the setups of a segment's episodes."""
    documents = [None if setup is None else dict(setup) for setup in setups]
    return np.frombuffer(canonical_json(documents), np.uint8)


def _differences(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the second differences in time of int64 (T, N, 3), one series after the other.

    Smooth motion gives small numbers, which compress to a tenth. Sums and differences wrap around.
    """
    series = np.ascontiguousarray(values.transpose(1, 2, 0))
    return np.diff(series, n=2, prepend=np.zeros((*series.shape[:2], 2), np.int64)).reshape(-1)


def _values(differences: NDArray[np.int64], rows: int, actors: int) -> NDArray[np.int64]:
    """Return int64 (T, N, 3) from what `_differences` made of it."""
    series = differences.reshape(actors, 3, rows).cumsum(axis=2).cumsum(axis=2)
    return np.ascontiguousarray(series.transpose(2, 0, 1))


def record_layout(name: str, size: int) -> ArrayLayout:
    """Return the layout of one of the arrays."""
    return ArrayLayout(
        name=name,
        shape=(size,),
        dtype=_DTYPES[name],
        dimensions=(_DIMENSIONS[name],),
        is_packed=True,
    )


def record_layouts(files: ArrayFiles, *, steps: int, episodes: int) -> dict[str, ArrayLayout]:
    """Return the arrays of records that a segment has; empty without records."""
    values = 3 * (steps + episodes)
    most = {
        SETUP: episodes * (MAX_SETUP_BYTES + len("[],")),
        EGO: values,
        ACTOR: values * MAX_ACTORS,
    }
    sizes = {name: files.rows(name, count) for name, count in most.items()}
    if not sizes[SETUP]:
        return {}
    return {name: record_layout(name, size) for name, size in sizes.items() if size}


def read_setups(
    files: ArrayFiles, layouts: Mapping[str, ArrayLayout], episodes: int
) -> list[dict[str, Any] | None]:
    """Read what is stored once per episode; raise ValueError if it is no such list."""
    setups = parse_json(files.read(layouts[SETUP]).tobytes(), SETUP)
    if not isinstance(setups, list) or len(setups) != episodes:
        raise ValueError(f"{SETUP} is no list of {episodes} episodes")
    canonical_json(setups)  # raises ValueError for NaN and Infinity, which Python reads
    for setup in setups:
        if setup is not None and not _is_setup(setup):
            raise ValueError(f"{SETUP} has an entry that is no object with a list of actors")
    return setups


def _is_setup(setup: object) -> bool:
    return isinstance(setup, dict) and isinstance(setup.get("actors"), list)


def read_records(
    files: ArrayFiles, layouts: Mapping[str, ArrayLayout], lengths: Sequence[int]
) -> Iterator[WorldRecord | None]:
    """Read the records of episodes of these lengths; raise ValueError if they contradict them."""
    setups = read_setups(files, layouts, len(lengths))
    counts = [-1 if setup is None else len(setup["actors"]) for setup in setups]
    rows = [length + 1 for length in lengths]
    for name, factors in ((EGO, [count >= 0 for count in counts]), (ACTOR, counts)):
        expected = sum(3 * row * max(n, 0) for row, n in zip(rows, factors, strict=True))
        found = layouts[name].shape[0] if name in layouts else 0
        if found != expected:
            raise ValueError(f"{name} has {found} values, expected {expected}")
    ego = files.read(layouts[EGO]) if EGO in layouts else np.zeros(0, np.int64)
    actors = files.read(layouts[ACTOR]) if ACTOR in layouts else np.zeros(0, np.int64)
    for setup, count, row in zip(setups, counts, rows, strict=True):
        if setup is None:
            yield None
            continue
        own, ego = np.split(ego, [3 * row])
        others, actors = np.split(actors, [3 * row * count])
        poses = _values(own, row, 1)[:, 0].view(np.float64)
        if not np.isfinite(poses).all():
            raise ValueError(f"{EGO} has a number that is not finite")
        yield WorldRecord(setup=setup, ego=poses, actors=_values(others, row, count))


_MAP_SUFFIX = ".xodr.gz"
_MAX_MAP_BYTES = 64 * 1024 * 1024
"""Largest size of a text, that of the .xodr files that the built-in simulator reads."""
_MAP_DIGEST = re.compile(r"[0-9a-f]{64}")


def map_path(dataset: Path, digest: str) -> Path:
    """Return the path of the text of a road network."""
    return dataset / MAPS / f"{digest}{_MAP_SUFFIX}"


def publish_map(dataset: Path, text: str) -> str:
    """Store the text of a road network unless it is there; return its digest.

    One that is there becomes as young as a new one, so that a pruning at the same time keeps it.
    """
    data = text.encode()
    digest = sha256(data)
    path = map_path(dataset, digest)
    try:
        os.utime(path)
        if read_map(dataset, digest) == text:
            return digest
    except OSError:  # a DatasetError, too
        pass  # missing or damaged: write it
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_aside(path, gzip.compress(data, 9, mtime=0))
    return digest


def read_map(dataset: Path, digest: str) -> str:
    """Read the text of a road network, and verify its digest.

    Raise DatasetError if it is missing or damaged, DatasetUnreadableError if it is unreadable now.
    """
    if not _MAP_DIGEST.fullmatch(digest):
        raise SpecError(f"{abbreviate(digest)} is not the digest of a map")
    path = map_path(dataset, digest)
    source = "copy it from the dataset that these segments were copied from"
    try:
        data = unzip(read_bytes(path, _MAX_MAP_BYTES), _MAX_MAP_BYTES)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; {source}") from error
    except OSError as error:
        kind = DatasetUnreadableError if is_passing(error) else DatasetError
        raise kind(f"{path} cannot be read: {advice(error, reads=True)}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}); {source}") from error
    if sha256(data) != digest:
        raise DatasetError(f"{path} is damaged: its SHA-256 is not that of its name; {source}")
    return data.decode("utf-8", "replace")


def stored_maps(dataset: Path) -> dict[str, Path]:
    """Return the files of a dataset's maps by digest."""
    folder = dataset / MAPS
    with storage_errors(folder):
        names = list_directory(folder)[1] if exists(folder) else []
    digests = (name.removesuffix(_MAP_SUFFIX) for name in names if name.endswith(_MAP_SUFFIX))
    return {
        digest: map_path(dataset, digest) for digest in digests if _MAP_DIGEST.fullmatch(digest)
    }
