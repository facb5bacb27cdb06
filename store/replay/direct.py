"""`DirectReplay`: frames decoded from the shards of a dataset for each batch, without a cache.

A batch is planned with `ChunkTable`: which chunks hold its frames. A `ChunkDecoder` decodes most of
them at once; `DirectFrames` decodes the rest one by one, and reports what is damaged.
"""

import dataclasses
import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import Avtd3Error, SegmentCorruptError, StorageError
from avtd3.store.files import retry
from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import ChainKind, decode
from avtd3.store.format.manifest import corrupt, read_error
from avtd3.store.format.shard import (
    SLACK_BYTES,
    PackedChunks,
    decode_blocks,
    extents,
    find_blocks,
    room_bytes,
)
from avtd3.store.replay.cache import Changes, Progress, ReplayCache
from avtd3.store.replay.chunks import ChunkDecoder, ChunkPlan, ChunkTable, DecodePool
from avtd3.store.replay.native import open_decoder
from avtd3.store.replay.scratch import Key
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

_MOST_OPEN = 512
_TOO_MANY = frozenset((errno.EMFILE, errno.ENFILE))


def descriptor_budget() -> int:
    """Return how many shards may be open: a quarter of the process's limit, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(_MOST_OPEN, soft // 4 if soft > 0 else _MOST_OPEN))


class ShardFiles:
    """Open file descriptors of shards; the least recently used is closed first."""

    def __init__(self, most: int | None = None) -> None:
        """Start with no open file; at most `most` will be open, by default `descriptor_budget`."""
        self.most = most or descriptor_budget()
        self._open: OrderedDict[Path, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def descriptor(self, path: Path) -> int:
        """Return the descriptor of a shard, valid until `most` others were requested.

        Raise StorageError, unlike other OSErrors, if the process has no descriptors left.
        """
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= self.most:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = self._open_file(path)
        return self._open[path]

    def keep(self, paths: Iterable[Path]) -> None:
        """Close all other files."""
        for path in self._open.keys() - set(paths):
            os.close(self._open.pop(path))

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self.keep(())

    def _open_file(self, path: Path) -> int:
        try:
            return retry(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
            raise StorageError(
                f"{path} cannot be opened: {error.strerror}; {len(self._open)} shards of the "
                "replay are open; raise the limit with `ulimit -n` or use --replay cache"
            ) from error


_KINDS: tuple[ChainKind, ...] = ("raw", "blosc")


class JoinedDecoder:
    """A `ChunkDecoder` of chunks of one frame, raw or LZ4; see `avtd3.store.format.shard`.

    It reads chunks while holding the GIL, and decodes them in all threads without it.
    """

    def __init__(self, frame_bytes: int, threads: int | None = None) -> None:
        self._frame_bytes = frame_bytes
        self._decode_pool = DecodePool(threads)
        self._packed = PackedChunks()
        self.bind(())

    def bind(self, shards: Sequence[FrameShard]) -> None:
        """Decode chunks of these shards from now on."""
        self._kinds = np.array(
            [
                _KINDS.index(shard.kind) if shard.chunk_frames == 1 and shard.kind in _KINDS else -1
                for shard in shards
            ],
            np.int64,
        )

    def decode(
        self, plan: ChunkPlan, descriptors: NDArray[np.int32], out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Decode verified chunks into place; see `ChunkDecoder.decode`."""
        is_small = plan.size <= self._frame_bytes + SLACK_BYTES
        kinds = np.where(is_small, self._kinds.take(plan.shard), -1)
        mine = np.flatnonzero(kinds >= 0)
        offset, size, files = plan.begin.take(mine), plan.size.take(mine), descriptors.take(mine)
        # One table per thread, before all chunks.
        room = room_bytes(len(out))
        packed, begin = self._packed.read(files, offset, size, room * self._decode_pool.threads)
        starts = np.zeros(len(kinds), np.int64)
        for number, kind in enumerate(_KINDS):
            alike = kinds.take(mine) == number
            starts[mine[alike]] = find_blocks(
                kind, packed, begin[alike], size[alike], self._frame_bytes
            )
        frames = starts.repeat(np.diff(plan.first))
        is_found = frames > 0
        table, place = frames[is_found], plan.place[is_found]
        try:
            if len(table) == len(out):
                table[place] = table.copy()
                self._decode(packed, table, room, out)
            elif len(table):
                aside = np.empty((len(table), self._frame_bytes), np.uint8)
                self._decode(packed, table, room, aside)
                out[place] = aside
        except ValueError:  # one chunk is damaged: decoding one by one finds it
            starts[:] = 0
        return np.flatnonzero(starts == 0)

    def _decode(
        self,
        packed: NDArray[np.uint8],
        table: NDArray[np.int64],
        room: int,
        out: NDArray[np.uint8],
    ) -> None:
        """Decode blocks in all threads."""

        def work(thread: int, low: int, high: int) -> None:
            if low < high:
                shift = room * thread
                blocks = table[low:high] - shift
                decode_blocks(packed[shift:], blocks, self._frame_bytes, out[low:high])

        self._decode_pool.share(len(out), work)

    def close(self) -> None:
        """Stop the threads; safe to call twice."""
        self._decode_pool.close()


_MOST_BYTES = 2**26
"""Maximum size of the frames planned and decoded at once; it limits the memory use."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlacedShard:
    """The frames of a segment, and the row of the first one in the replay."""

    key: Key
    start: int
    directory: Path
    shard: FrameShard


class DirectFrames:
    """A `FrameSource` that decodes frames from shards."""

    def __init__(self, frame_bytes: int, decoder: ChunkDecoder, streams: int = 1) -> None:
        """Start with no shards; what `decoder` leaves undone is decoded one chunk at a time.

        The `streams` of a replay divide the open files that it may have.
        """
        self._frame_bytes = frame_bytes
        self._decoder = decoder
        self._files = ShardFiles(max(1, descriptor_budget() // streams))
        self._damaged: dict[Key, Exception] = {}
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
        """See `FrameSource`; raise StorageError, too, if too many files are open."""
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

    def take_damaged(self) -> Mapping[Key, Exception]:
        """Return the segments in which `take` failed since the last call, with the reason."""
        damaged, self._damaged = self._damaged, {}
        return damaged

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._files.close()
        self._decoder.close()

    def _open(self, plan: ChunkPlan) -> NDArray[np.int32]:
        """Return the open file of each chunk, int32 (G,)."""
        numbers, index = np.unique(plan.shard, return_inverse=True)
        descriptors = []
        for number in numbers.tolist():
            try:
                descriptors.append(self._files.descriptor(self._shards[number].path))
            except StorageError:
                raise  # an OSError, but not a fault of the segment
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
        """Decode chunks one at a time."""
        shards, begins, sizes = plan.shard.tolist(), plan.begin.tolist(), plan.size.tolist()
        files, firsts, runs = descriptors.tolist(), plan.first.tolist(), plan.is_run().tolist()
        places, insides = plan.place.tolist(), plan.inside.tolist()
        target, frame = out.reshape(-1).data, self._frame_bytes
        number = 0
        try:
            for number in numbers:
                shard = self._shards[shards[number]]
                data = retry(os.pread, files[number], sizes[number], begins[number])
                frames = memoryview(decode(shard.kind, data, shard.chunk_frames * frame))
                first, end = firsts[number], firsts[number + 1]
                step = end - first if runs[number] else 1
                for at in range(first, end, step):
                    to, source = places[at] * frame, insides[at] * frame
                    target[to : to + step * frame] = frames[source : source + step * frame]
        except OSError as error:
            raise self._fault(shards[number], error) from error
        except ValueError as error:
            where = f"chunk {plan.chunk[number]}: "
            raise self._fault(shards[number], error, where) from error

    def _fault(self, number: int, error: OSError | ValueError, where: str = "") -> Avtd3Error:
        """Record a segment as damaged, and return the error that names it."""
        placed = self._placed[number]
        if isinstance(error, OSError):
            fault = read_error(placed.directory, placed.shard.name, error)
        else:
            fault = corrupt(placed.directory, f"{placed.shard.name}: {where}{error}")
        self._damaged[placed.key] = fault
        return fault


def _blocks_read() -> int:
    """Return how many blocks this process has read from disk instead of the page cache."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def _read_ahead(plan: ChunkPlan, descriptors: NDArray[np.int32]) -> None:
    """Ask the kernel to read all chunks of a batch at once.

    It halves the time of a batch that is on disk, and adds a twentieth to one that is in memory. So
    it is called only after a batch that was read from disk.
    """
    leads, sizes = extents(plan.shard, plan.begin, plan.size)
    files, begins = descriptors.take(leads), plan.begin.take(leads)
    if hasattr(os, "posix_fadvise"):  # macOS has none
        for file, begin, size in zip(files.tolist(), begins.tolist(), sizes.tolist(), strict=True):
            os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)


class DirectReplay(ReplayCache):
    """A `ReplayCache` that caches only the numbers, and decodes frames for each batch."""

    def __init__(
        self, spec: EpisodeSpec, scratch: Path, *, labels: bool = False, action_repeat: int = 1
    ) -> None:
        """Start empty; `spec` has an image. Raise StorageError if `scratch` cannot be written."""
        assert spec.images, "without an image there is nothing to decode"
        super().__init__(spec, scratch, frames=False, labels=labels, action_repeat=action_repeat)
        self._shards: dict[Key, tuple[dict[str, FrameShard], Path]] = {}
        sizes = {stream: image.frame_bytes for stream, image in spec.images.items()}
        self._direct_frames = {
            stream: DirectFrames(size, open_decoder(size) or JoinedDecoder(size), len(sizes))
            for stream, size in sizes.items()
        }

    @property
    def frames(self) -> Mapping[str, DirectFrames]:
        """See `ReplayCache`."""
        return self._direct_frames

    def frame_array(self, stream: str | None = None) -> None:
        """Return None: no frames are in memory."""

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """See `ReplayCache`."""
        refused = self._open_new(wanted)
        good = {key: segment for key, segment in wanted.items() if key not in refused}
        try:
            changes = super().follow(good, on_progress)
        finally:
            self._bind()
        return dataclasses.replace(changes, refused={**refused, **changes.refused})

    def take_damaged(self) -> Mapping[Key, Exception]:
        """Return the segments whose frames could not be read since the last call."""
        damaged: dict[Key, Exception] = {}
        for frames in self._direct_frames.values():
            damaged |= frames.take_damaged()
        return damaged

    def close(self) -> None:
        """Close all files and free the disk space; safe to call twice."""
        for frames in self._direct_frames.values():
            frames.close()
        super().close()

    def _open_new(self, wanted: Mapping[Key, Segment]) -> dict[Key, Exception]:
        """Read the indexes of new shards; return why some segments cannot be used."""
        refused: dict[Key, Exception] = {}
        for key, segment in wanted.items():
            if key in self._shards:
                continue
            try:
                found = {stream: segment.frame_shard(stream) for stream in self.spec.images}
                self._shards[key] = (found, segment.path)
            except (SegmentCorruptError, OSError) as error:
                refused[key] = error
        return refused

    def _bind(self) -> None:
        """Forget the shards of dropped segments, and bind the frames to the current rows."""
        self._shards = {key: found for key, found in self._shards.items() if key in self.segments}
        for stream, frames in self._direct_frames.items():
            frames.bind(
                [
                    PlacedShard(
                        key=key, start=self.start(key), directory=directory, shard=shards[stream]
                    )
                    for key, (shards, directory) in self._shards.items()
                ]
            )
