"""`Segment`: open, read and verify one published segment.

Opening reads the manifest. The first read checks the sizes of all files, and each array is verified
when it is read. `avtd3.store.format.arrays` decodes the bytes.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import (
    STORED_COLUMNS,
    EpisodeTable,
    read_attributes,
    stored_attributes,
)
from avtd3.store.errors import SegmentCorruptError, SpecError
from avtd3.store.events import EventTable, read_events, stored_arrays
from avtd3.store.files import sha256
from avtd3.store.format.arrays import ArrayFiles, FrameShard
from avtd3.store.format.layout import (
    EPISODE_STRINGS,
    MANIFEST_FILE,
    ArrayLayout,
    frames_array,
    raw_bytes,
    segment_arrays,
)
from avtd3.store.format.manifest import Limits, corrupt, read_manifest
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step_labels import LABELS, StepLabels, label_layouts, read_labels
from avtd3.store.world_record import WorldRecord, read_records, read_setups, record_layouts

if TYPE_CHECKING:
    import zarr

_WITHOUT_CONTENT = ("episode_wall_time/", "state_", *(f"{name}/" for name in LABELS))
"""Beginnings of the paths that `Segment.content_digest` ignores."""


class Segment:
    """One published segment: whole episodes that never change; made by `Dataset.open_segment`.

    It keeps no file open, so that a segment can be quarantined or deleted while someone reads it;
    the next read then raises `SegmentNotFoundError`. What reads raises `SegmentCorruptError` if the
    bytes are not those that were published, `SegmentUnreadableError` if a file cannot be read now,
    and `SpecError` for an array that the spec does not have. `Dataset.episodes` reads episode by
    episode.

    Args:
        path: The segment's directory. Only its manifest is read.
        spec: The dataset's spec.
        spec_digest: Its digest.
        limits: Largest size that the segment may claim.

    Raises:
        SegmentNotFoundError: There is no such segment.
        SegmentCorruptError: The manifest is damaged or of another spec, or exceeds the limits.
        FormatVersionError: This version cannot read the segment's format.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create(tempfile.mkdtemp(), spec)
        >>> at = Observation(vector=np.zeros(1, np.float32))
        >>> with SegmentWriter(dataset) as writer:
        ...     writer.begin(at)
        ...     writer.step(np.ones(1, np.float32), 2.0, at, terminated=True)
        >>> (segment,) = dataset.snapshot().segments
        >>> segment.read("reward").tolist()
        [2.0]
    """

    def __init__(self, path: Path, spec: EpisodeSpec, spec_digest: str, limits: Limits) -> None:
        self.path = path
        """Its directory."""
        self.spec = spec
        """The dataset's spec."""
        self._limits = limits
        self._manifest = manifest = read_manifest(path)
        self.id = manifest.segment_id
        """Name of the segment; names sort by time of publication."""
        self.episodes = manifest.episodes
        """Number of episodes."""
        self.steps = manifest.steps
        """Number of steps: the sum of the episodes' lengths."""
        self.observations = manifest.observations
        """Number of observations: one more than steps in each episode."""
        self.provenance = manifest.provenance
        """Who wrote the segment, when and with what."""
        self.files = manifest.files
        """Size and SHA-256 of every file except the manifest, by path below the directory."""
        self.manifest_digest = manifest.digest
        """SHA-256 that covers every byte of the segment."""
        if (found := manifest.spec_digest) != spec_digest:
            raise corrupt(path, f"was written for spec {found:.12}, expected {spec_digest:.12}")
        if (version := manifest.format_version) != spec.format_version:
            raise corrupt(path, f"has format {version}, its dataset {spec.format_version}")
        limits.check(path, steps=self.steps, raw_bytes=self.raw_bytes)

    def __repr__(self) -> str:
        return f"Segment({self.id!r}, episodes={self.episodes}, steps={self.steps})"

    @property
    def content_digest(self) -> str:
        """SHA-256 over the chunks of all arrays but wall times, labels and states of the world.

        Equal episodes have equal digests, no matter when and by whom they were collected: this
        gives segments an order that does not depend on clocks.
        """
        files = sorted(self.files.items())
        chunks = (
            f"{name} {entry.sha256}\n"
            for name, entry in files
            if "/c/" in name and not name.startswith(_WITHOUT_CONTENT)
        )
        return sha256("".join(chunks).encode())

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, without the manifest."""
        return self._manifest.size_bytes

    @property
    def raw_bytes(self) -> int:
        """Bytes of all arrays when decoded."""
        return raw_bytes(self.spec, **self.counts)

    def check_files(self) -> None:
        """Check that every file exists and has its size; the first read does so, too."""
        _ = self._arrays  # created only if the files are right

    @functools.cached_property
    def _arrays(self) -> ArrayFiles:
        self._limits.check(self.path, file_bytes=self.size_bytes)
        self._manifest.check_sizes(self.path)
        return ArrayFiles(self.path, self._manifest)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._layouts)

    def read(self, name: str) -> NDArray[Any]:
        """Read one whole array and verify every checksum.

        Args:
            name: One of `names`; `read_frames` can read a part of a stream's frames.

        Returns:
            The array, writable; its rows are observations, steps or episodes, see docs/format.md.
        """
        layout = self._layout(name)
        if not layout.is_sharded:
            return self._arrays.read(layout)
        frames = np.empty(layout.shape, np.uint8)
        self._arrays.read_frames(layout, 0, frames)
        return frames

    def open_zarr(self) -> "zarr.Group":
        """Open the arrays read-only with zarr-python, for tools that work on Zarr groups.

        zarr-python reads a missing chunk as zeros; call `verify` first if the files may be damaged.
        """
        import zarr

        self.check_files()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{MANIFEST_FILE} is not recognized.*")
            return zarr.open_group(self.path, mode="r")

    def read_frames(
        self,
        start: int = 0,
        stop: int | None = None,
        out: NDArray[np.uint8] | None = None,
        *,
        stream: str | None = None,
    ) -> NDArray[np.uint8]:
        """Decode consecutive frames of a stream; every checksum is verified before decoding.

        Args:
            start: Row of the first observation.
            stop: Row after the last one; None for the end.
            out: uint8 (stop - start, C, H, W), C-contiguous, to decode into; None for a new array.
            stream: Name of the stream, needed if the spec has several.

        Returns:
            uint8 (stop - start, C, H, W): ``out`` if given. Its content is undefined on an error.
        """
        layout = self.frames_layout(stream)
        stop = self.observations if stop is None else stop
        if not 0 <= start <= stop <= self.observations:
            raise SpecError(
                f"segment {self.id}: frames {start}:{stop} are outside 0:{self.observations}"
            )
        shape = (stop - start, *layout.shape[1:])
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise SpecError(f"out is {out.dtype} {out.shape}, expected contiguous uint8 {shape}")
        if start < stop:
            self._arrays.read_frames(layout, start, out)
        return out

    def frame_parts(self, stream: str | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode all frames of a stream part by part, so that they need little memory.

        Yields:
            Row of the part's first frame, and its frames, uint8 (n, C, H, W). The next part
            overwrites their memory.
        """
        return self._arrays.frame_parts(self.frames_layout(stream))

    def frame_shard(self, stream: str | None = None) -> FrameShard:
        """Return where the frames of a stream are and how they are encoded, to read single chunks.

        Returns:
            The shard; its index has been checked.
        """
        return self._arrays.frame_shard(self.frames_layout(stream))

    def frames_layout(self, stream: str | None = None) -> ArrayLayout:
        """Return the layout of a stream's frames; the stream must be named if there are several."""
        return self._layouts[frames_array(self.spec, stream)]

    def episode_table(self) -> EpisodeTable:
        """Read what is known about each episode."""
        columns = {name: self._column(name) for name in STORED_COLUMNS}
        layouts = self._layouts | stored_attributes(self._arrays, episodes=self.episodes)
        table = EpisodeTable(
            segment=[self.id] * self.episodes,
            number=np.arange(self.episodes, dtype=np.int64),
            attributes=read_attributes(self._arrays, layouts),
            **columns,
        )
        ends = np.cumsum(table.length)
        wrong = (table.length < 1) | (table.length > self.steps)  # sums of more may wrap around
        if wrong.any() or ends[-1] != self.steps:
            raise corrupt(self.path, f"episode lengths do not add up to {self.steps} steps")
        if (table.offset != ends - table.length).any():
            raise corrupt(self.path, "episode_offset does not follow from episode_length")
        return table

    def _column(self, field: str) -> Any:  # noqa: ANN401 - an array or a list of strings
        name = field if field.startswith("episode_") else f"episode_{field}"
        return self.read_strings(name) if name in EPISODE_STRINGS else self.read(name)

    def read_strings(self, name: str) -> list[str]:
        """Read one of `EPISODE_STRINGS`: one text per episode."""
        return self._arrays.texts(self._layout(name))

    def events(self) -> EventTable | None:
        """Read the events of its episodes; None if none were recorded."""
        layouts = stored_arrays(self._arrays, steps=self.steps, episodes=self.episodes)
        if not layouts:
            return None
        table = read_events(self._arrays, layouts)
        if problem := table.problem(self.read("episode_length")):
            raise corrupt(self.path, problem)
        return table

    def world_records(self) -> list[WorldRecord | None] | None:
        """Read the state of the world in its episodes; None if no episode has a record of it."""
        layouts = record_layouts(self._arrays, steps=self.steps, episodes=self.episodes)
        if not layouts:
            return None
        lengths = self.read("episode_length").tolist()
        with self._faults(layouts):
            return list(read_records(self._arrays, layouts, lengths))

    def labels(self) -> list[StepLabels | None] | None:
        """Read what else is known of the steps of its episodes; None if nothing is."""
        layouts = label_layouts(self._arrays, self.spec, steps=self.steps, episodes=self.episodes)
        if not layouts:
            return None
        lengths = self.episode_table().length.tolist()
        with self._faults(layouts):
            return read_labels(self._arrays, layouts, lengths, self.spec)

    def map_digests(self) -> frozenset[str]:
        """Read which road networks the records of its episodes need, see `read_map`."""
        layouts = record_layouts(self._arrays, steps=self.steps, episodes=self.episodes)
        if not layouts:
            return frozenset()
        with self._faults(layouts):
            setups = read_setups(self._arrays, layouts, self.episodes)
        found = (setup.get("map") for setup in setups if setup is not None)
        return frozenset(digest for digest in found if isinstance(digest, str) and digest)

    @contextlib.contextmanager
    def _faults(self, layouts: Mapping[str, ArrayLayout]) -> Iterator[None]:
        """Check the size of optional arrays, and name the segment in errors raised inside."""
        memory = sum(layout.nbytes for layout in layouts.values())
        self._limits.check(self.path, raw_bytes=memory)
        try:
            yield
        except SegmentCorruptError:  # a ValueError that names it
            raise
        except ValueError as error:
            raise corrupt(self.path, str(error)) from error

    def verify(self) -> None:
        """Hash every file and compare it with the manifest."""
        if read_manifest(self.path).digest != self.manifest_digest:
            raise corrupt(self.path, "the manifest was replaced since the segment was opened")
        self._manifest.check_sizes(self.path)
        for name in self._manifest.files:
            self._arrays.verify_file(name)
        optional = optional_arrays(
            self._arrays, self.spec, steps=self.steps, episodes=self.episodes
        )
        for layout in (self._layouts | optional).values():
            self._arrays.document(layout)

    def _layout(self, name: str) -> ArrayLayout:
        layouts = self._layouts
        if name not in layouts:
            raise SpecError(f"segment {self.id} has no array {name!r}; it has {', '.join(layouts)}")
        return layouts[name]

    @functools.cached_property
    def _layouts(self) -> dict[str, ArrayLayout]:
        return segment_arrays(self.spec, **self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of episodes, steps and observations, by name."""
        return {name: getattr(self, name) for name in ("episodes", "steps", "observations")}


def optional_arrays(
    files: ArrayFiles, spec: EpisodeSpec, *, steps: int, episodes: int
) -> dict[str, ArrayLayout]:
    """Return the arrays that a segment has and might lack: events, attributes, records, labels."""
    labels = label_layouts(files, spec, steps=steps, episodes=episodes)
    events = stored_arrays(files, steps=steps, episodes=episodes)
    records = record_layouts(files, steps=steps, episodes=episodes)
    return events | records | labels | stored_attributes(files, episodes=episodes)
