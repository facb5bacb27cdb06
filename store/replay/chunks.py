"""Which chunks hold the frames of a batch, and the threads that decode them."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.arrays import FrameShard

MOST_THREADS = 4
"""Maximum number of threads that decode a batch; also limited by the cores of the process."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class DecodePool:
    """A few threads that share the work on one batch, including the caller's thread."""

    def __init__(self, threads: int | None = None) -> None:
        """Prepare the threads, by default one per core; they start when they are first needed."""
        self.threads = threads or min(MOST_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), "replay-decode")

    def share(self, count: int, work: Callable[[int, int, int], None]) -> None:
        """Split ``range(count)`` evenly across the threads and wait for all of them.

        `work` is called once per thread, with the thread's number and the two ends of its share.
        What it raises is raised again.
        """
        cuts = [count * number // self.threads for number in range(self.threads + 1)]
        jobs = [
            self._pool.submit(work, number, cuts[number], cuts[number + 1])
            for number in range(1, self.threads)
        ]
        try:
            work(0, 0, cuts[1])
        finally:
            wait(jobs)  # also if one has failed: the others still write to the batch
        for job in jobs:
            job.result()

    def close(self) -> None:
        """Stop the threads; safe to call twice."""
        self._pool.shutdown()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlan:
    """The G chunks that contain the N frames of a batch."""

    shard: NDArray[np.int64]
    """int64 (G,), index of the shard; ascending."""
    chunk: NDArray[np.int64]
    """int64 (G,), index of the chunk in its shard."""
    begin: NDArray[np.int64]
    """int64 (G,), offset of the chunk in its file."""
    size: NDArray[np.int64]
    """int64 (G,), bytes of the chunk in its file."""
    first: NDArray[np.int64]
    """int64 (G + 1,): items ``first[g]:first[g + 1]`` of the two arrays below belong to chunk g."""
    inside: NDArray[np.int64]
    """int64 (N,), index of the frame in its chunk; ascending within a run of `place`."""
    place: NDArray[np.int64]
    """int64 (N,), index of the frame in the batch; ascending within a chunk."""

    def is_run(self) -> NDArray[np.bool_]:
        """Return whether the frames of each chunk are contiguous in chunk and batch, bool (G,)."""
        breaks = (np.diff(self.inside) != 1) | (np.diff(self.place) != 1)
        before = np.concatenate([[0], breaks.cumsum()])
        run: NDArray[np.bool_] = before[self.first[1:] - 1] == before[self.first[:-1]]
        return run

    def parts(self, most: int) -> Iterator[Self]:
        """Yield the chunks in parts of at most `most` shards; usually one part."""
        new = np.flatnonzero(np.diff(self.shard, prepend=-1))
        if len(new) <= most:
            yield self
            return
        cuts = [*new[::most].tolist(), len(self.shard)]
        for low, high in itertools.pairwise(cuts):
            frames = slice(int(self.first[low]), int(self.first[high]))
            yield dataclasses.replace(
                self,
                shard=self.shard[low:high],
                chunk=self.chunk[low:high],
                begin=self.begin[low:high],
                size=self.size[low:high],
                first=self.first[low : high + 1] - frames.start,
                inside=self.inside[frames],
                place=self.place[frames],
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTable:
    """The shard, chunk and bytes of each row: the indexes of all shards, concatenated.

    It takes 16 bytes per chunk: 4 MB for a million frames in chunks of four.
    """

    start: NDArray[np.int64]
    """int64 (S,), first row of each shard; ascending."""
    chunk_frames: NDArray[np.int64]
    """int64 (S,), frames per chunk."""
    first_chunk: NDArray[np.int64]
    """int64 (S,), index in `spans` of each shard's first chunk."""
    spans: NDArray[np.int64]
    """int64 (chunks of all shards, 2): start and end in the file."""

    @classmethod
    def of(cls, shards: Sequence[tuple[int, FrameShard]]) -> Self:
        """Make the table of shards, given with their first rows, in ascending order."""
        counts = np.array([len(shard.spans) for _, shard in shards], np.int64)
        spans = [shard.spans for _, shard in shards] or [np.zeros((0, 2), np.int64)]
        return cls(
            start=np.array([start for start, _ in shards], np.int64),
            chunk_frames=np.array([shard.chunk_frames for _, shard in shards], np.int64),
            first_chunk=counts.cumsum() - counts,
            spans=np.concatenate(spans),
        )

    def plan(self, rows: NDArray[np.int64]) -> ChunkPlan:
        """Group frames by chunk, given the rows of shards in the table, int64 (N,)."""
        shard = self.start.searchsorted(rows, side="right") - 1
        frame = rows - self.start.take(shard)
        chunk, inside = np.divmod(frame, self.chunk_frames.take(shard))
        # One sort of combined numbers, by chunk and then by place, is much faster than argsort.
        count = len(rows)
        keys = (self.first_chunk.take(shard) + chunk) * count + np.arange(count)
        keys.sort()
        numbers, place = np.divmod(keys, count)
        first = np.flatnonzero(np.diff(numbers, prepend=-1, append=len(self.spans)))
        leads = place.take(first[:-1])
        spans = self.spans.take(numbers.take(first[:-1]), axis=0)
        return ChunkPlan(
            shard=shard.take(leads),
            chunk=chunk.take(leads),
            begin=spans[:, 0].copy(),  # contiguous: the native kernel is compiled for one layout
            size=spans[:, 1] - spans[:, 0],
            first=first,
            inside=inside.take(place),
            place=place,
        )


class ChunkDecoder(Protocol):
    """Decodes many chunks of a batch at once, and skips those that it does not support."""

    def bind(self, shards: Sequence[FrameShard]) -> None:
        """Decode chunks of these shards from now on; plans refer to them by index."""

    def decode(
        self, plan: ChunkPlan, descriptors: NDArray[np.int32], out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Read, verify and decode chunks, and copy their frames into `out`.

        `descriptors` is int32 (G,), the open file of each chunk; `out` is uint8 (frames of the
        batch, C*H*W), contiguous. Return the indexes, int64, of the chunks that were not decoded,
        because they are not supported or are damaged.
        """

    def close(self) -> None:
        """Free its resources; safe to call twice."""
