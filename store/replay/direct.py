"""Replay straight from the compressed shards, for datasets that fit neither memory nor scratch.

Of a dataset's frames only the shards' indices are held (16 bytes per chunk, 4 MB for a million
frames) and a few hundred open files. A batch reads, verifies and decodes the two or three chunks
of each transition: all checksums, on every draw.

It costs three times the gather from a cache, most of it LZ4. With the optional packages of the
extra ``native`` one call decodes a batch on several cores with the interpreter's lock released;
without them `JoinedDecoder` does that for chunks of one frame. Whatever they cannot do, or find
wrong, goes chunk by chunk through numcodecs, which has the words for it.
"""

import dataclasses
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError, StorageError
from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import decode
from avtd3.store.format.joined import extents
from avtd3.store.format.manifest import corrupt, gone_or_torn
from avtd3.store.replay.cache import CachedSegment, Changes, Progress, ReplayCache
from avtd3.store.replay.direct_files import ShardFiles
from avtd3.store.replay.direct_plan import ChunkPlan, ChunkTable
from avtd3.store.replay.rows import Key
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

_MOST_BYTES = 2**26
"""Frames that are planned and decoded at once, which bounds the memory that it takes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlacedShard:
    """The frames of a segment, and the rows they have in the replay."""

    key: Key
    """Which segment."""
    start: int
    """Row of its first frame."""
    directory: Path
    """The segment's directory."""
    shard: FrameShard
    """Its frames."""


class ChunkDecoder(Protocol):
    """A fast way to decode some of a batch's chunks."""

    def bind(self, shards: Sequence[FrameShard]) -> None:
        """Decode chunks of these shards from now on; plans have their numbers."""

    def decode(
        self, plan: ChunkPlan, descriptors: NDArray[np.int32], out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Put the frames of verified chunks into place.

        Args:
            plan: What to decode.
            descriptors: int32 (G,), open file of each chunk.
            out: uint8 (frames of the batch, C*H*W), contiguous.

        Returns:
            int64: numbers of the chunks it did not decode, for whatever reason.
        """

    def close(self) -> None:
        """Give back what it holds; safe to call twice."""


class DirectFrames:
    """A `FrameSource` over shards."""

    def __init__(self, frame_bytes: int, decoder: ChunkDecoder) -> None:
        """Start with no shard.

        Args:
            frame_bytes: Size of a raw frame.
            decoder: Tried first.
        """
        self._frame_bytes = frame_bytes
        self._decoder = decoder
        self._files = ShardFiles()
        self._damaged: dict[Key, str] = {}
        self._is_on_disk = False
        self.bind(())

    def bind(self, placed: Sequence[PlacedShard]) -> None:
        """Read from these shards from now on."""
        self._placed = sorted(placed, key=lambda item: item.start)
        self._shards = [item.shard for item in self._placed]
        self._table = ChunkTable.of([(item.start, item.shard) for item in self._placed])
        self._files.keep(shard.path for shard in self._shards)
        self._decoder.bind(self._shards)

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode the frames of these rows into place; see `FrameSource`.

        Raises:
            SegmentNotFoundError: A segment was removed; `take_damaged` has it.
            SegmentCorruptError: A chunk is not the one that was published; as above.
            StorageError: Too many files are open.
        """
        flat, wanted = out.reshape((-1, self._frame_bytes), copy=False), rows.reshape(-1)
        most = max(1, _MOST_BYTES // self._frame_bytes)
        before = _blocks_read()
        for low in range(0, len(wanted), most):
            self._take(wanted[low : low + most], flat[low : low + most])
        self._is_on_disk = _blocks_read() != before

    def _take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        for part in self._table.plan(rows).parts(self._files.most):
            descriptors = self._open(part)
            if self._is_on_disk:
                _read_ahead(part, descriptors)
            rest = self._decoder.decode(part, descriptors, out).tolist()
            if rest:
                self._decode(part, rest, descriptors, out)

    def take_damaged(self) -> Mapping[Key, str]:
        """Segments in which `take` has failed since the last call, with the reason."""
        damaged, self._damaged = self._damaged, {}
        return damaged

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._files.close()
        self._decoder.close()

    def _open(self, plan: ChunkPlan) -> NDArray[np.int32]:
        """The open file of each chunk, int32 (G,)."""
        numbers, index = np.unique(plan.shard, return_inverse=True)
        descriptors = []
        for number in numbers.tolist():
            try:
                descriptors.append(self._files.descriptor(self._shards[number].path))
            except StorageError:
                raise  # an OSError, but not the segment's fault
            except OSError as error:
                raise self._fault(number, error) from error
        return np.array(descriptors, np.int32).take(index)

    def _decode(
        self,
        plan: ChunkPlan,
        numbers: Sequence[int],
        descriptors: NDArray[np.int32],
        out: NDArray[np.uint8],
    ) -> None:
        """Decode chunks one after another, the way every other reader of shards does."""
        shards, begins, sizes = plan.shard.tolist(), plan.begin.tolist(), plan.size.tolist()
        files, firsts, runs = descriptors.tolist(), plan.first.tolist(), plan.is_run().tolist()
        places, insides = plan.place.tolist(), plan.inside.tolist()
        target, frame = out.reshape(-1).data, self._frame_bytes
        number = 0
        try:
            for number in numbers:
                shard = self._shards[shards[number]]
                data = os.pread(files[number], sizes[number], begins[number])
                frames = memoryview(decode(shard.kind, data, shard.chunk_frames * frame))
                first, behind = firsts[number], firsts[number + 1]
                step = behind - first if runs[number] else 1
                for at in range(first, behind, step):
                    to, source = places[at] * frame, insides[at] * frame
                    target[to : to + step * frame] = frames[source : source + step * frame]
        except OSError as error:
            raise self._fault(shards[number], error) from error
        except ValueError as error:
            where = f"chunk {plan.chunk[number]}: "
            raise self._fault(shards[number], error, where) from error

    def _fault(
        self, number: int, error: OSError | ValueError, where: str = ""
    ) -> SegmentCorruptError | SegmentNotFoundError:
        """The error that names the segment, which is remembered as damaged."""
        placed = self._placed[number]
        fault: SegmentCorruptError | SegmentNotFoundError
        if isinstance(error, OSError):
            fault = gone_or_torn(placed.directory, f"{placed.shard.name}: {error.strerror}")
        else:
            fault = corrupt(placed.directory, f"{placed.shard.name}: {where}{error}")
        self._damaged[placed.key] = str(fault)
        return fault


def _blocks_read() -> int:
    """Blocks that this process has had to wait for, because they were not in the page cache."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def _read_ahead(plan: ChunkPlan, descriptors: NDArray[np.int32]) -> None:
    """Have all chunks of a batch fetched at once, not one after another.

    It halves the time of a batch that is on disk, and costs a twentieth of one that is in memory:
    so it is done only after a batch that had to be fetched.
    """
    leads, sizes = extents(plan.shard, plan.begin, plan.size)
    files, begins = descriptors.take(leads), plan.begin.take(leads)
    if hasattr(os, "posix_fadvise"):  # macOS has none
        for file, begin, size in zip(files.tolist(), begins.tolist(), sizes.tolist(), strict=True):
            os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)


class DirectReplay:
    """What a sampler needs of a `ReplayCache`, without the frames in it."""

    def __init__(self, spec: EpisodeSpec, scratch: Path, decoder: ChunkDecoder) -> None:
        """Start empty.

        Args:
            spec: What every segment holds; with an image.
            scratch: Directory for the nameless files of all that is small: rewards, actions,
                vectors.
            decoder: See `DirectFrames`.

        Raises:
            StorageError: `scratch` cannot be written.
        """
        assert spec.image is not None, "without an image there is nothing to decode"
        self._numbers = ReplayCache(spec, scratch, frames=False)
        self._shards: dict[Key, FrameShard] = {}
        self._directories: dict[Key, Path] = {}
        self.frames = DirectFrames(spec.image.frame_bytes, decoder)

    @property
    def segments(self) -> Mapping[Key, CachedSegment]:
        """Segments that can be drawn from."""
        return self._numbers.segments

    @property
    def rows(self) -> int:
        """Rows that have disk space behind them."""
        return self._numbers.rows

    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns but the frames; see `ReplayCache.columns`."""
        return self._numbers.columns()

    def start(self, key: Key) -> int:
        """First row of a segment."""
        return self._numbers.start(key)

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """Hold the wanted segments and no others; see `ReplayCache.follow`."""
        refused = self._open_new(wanted)
        good = {key: segment for key, segment in wanted.items() if key not in refused}
        try:
            changes = self._numbers.follow(good, on_progress)
        finally:
            self._place()
        return dataclasses.replace(changes, refused={**refused, **changes.refused})

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self.frames.close()
        self._numbers.close()

    def _open_new(self, wanted: Mapping[Key, Segment]) -> dict[Key, str]:
        """Read the indices of new shards; the reasons for those that cannot be used."""
        refused = {}
        for key, segment in wanted.items():
            if key in self._shards:
                continue
            try:
                shard = segment.frame_shard()
            except (SegmentCorruptError, OSError) as error:
                refused[key] = str(error)
                continue
            if shard is None:
                refused[key] = (
                    f"segment {segment.id} ({segment.path.parent}): its frames are in a chain of "
                    "codecs that only zarr-python reads, too slow to draw from; use --replay cache"
                )
                continue
            self._shards[key], self._directories[key] = shard, segment.path
        return refused

    def _place(self) -> None:
        """Forget the shards of segments that are gone, and follow the rows of the others."""
        held = self._numbers.segments
        self._shards = {key: shard for key, shard in self._shards.items() if key in held}
        self._directories = {key: self._directories[key] for key in self._shards}
        self.frames.bind(
            [
                PlacedShard(
                    key=key,
                    start=self._numbers.start(key),
                    directory=self._directories[key],
                    shard=shard,
                )
                for key, shard in self._shards.items()
            ]
        )
