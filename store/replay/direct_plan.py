"""Which chunks a batch needs, and where their frames go: rows in, one entry per chunk out.

A window of five frames spans two chunks of four, and the stacks of an n-step transition overlap:
so the frames of a batch are grouped by chunk, and each chunk is read, verified and decoded once.
Chunks are visited in the order in which they lie on the disk.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.arrays import FrameShard


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlan:
    """The G chunks that hold the N frames of a batch."""

    shard: NDArray[np.int64]
    """int64 (G,), number of the shard; rising."""
    chunk: NDArray[np.int64]
    """int64 (G,), number of the chunk in its shard."""
    begin: NDArray[np.int64]
    """int64 (G,), offset of the chunk in its file."""
    size: NDArray[np.int64]
    """int64 (G,), bytes of the chunk in its file."""
    first: NDArray[np.int64]
    """int64 (G + 1,): frames ``first[g]:first[g + 1]`` of the two arrays below are of chunk g."""
    inside: NDArray[np.int64]
    """int64 (N,), number of the frame in its chunk; rising within a run of `place`."""
    place: NDArray[np.int64]
    """int64 (N,), which frame of the batch it is; rising within a chunk."""

    def is_run(self) -> NDArray[np.bool_]:
        """Whether each chunk's frames are wanted in one run, side by side: bool (G,)."""
        breaks = (np.diff(self.inside) != 1) | (np.diff(self.place) != 1)
        before = np.concatenate([[0], breaks.cumsum()])
        run: NDArray[np.bool_] = before[self.first[1:] - 1] == before[self.first[:-1]]
        return run

    def parts(self, most: int) -> Iterator[Self]:
        """The same chunks in parts of at most so many shards; nearly always one."""
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
    """Where each row of the cache lies: the indices of all shards, one behind the other.

    16 bytes per chunk: 4 MB for a million frames in chunks of four.
    """

    start: NDArray[np.int64]
    """int64 (S,), first row of each shard; rising."""
    chunk_frames: NDArray[np.int64]
    """int64 (S,), frames per chunk."""
    first_chunk: NDArray[np.int64]
    """int64 (S,), where each shard's chunks begin in `spans`."""
    spans: NDArray[np.int64]
    """int64 (chunks of all shards, 2): begin and end in the file."""

    @classmethod
    def of(cls, shards: Sequence[tuple[int, FrameShard]]) -> Self:
        """Lay out the table of shards, each with its first row; rows rising."""
        counts = np.array([len(shard.spans) for _, shard in shards], np.int64)
        spans = [shard.spans for _, shard in shards] or [np.zeros((0, 2), np.int64)]
        return cls(
            start=np.array([start for start, _ in shards], np.int64),
            chunk_frames=np.array([shard.chunk_frames for _, shard in shards], np.int64),
            first_chunk=counts.cumsum() - counts,
            spans=np.concatenate(spans),
        )

    def plan(self, rows: NDArray[np.int64]) -> ChunkPlan:
        """Group frames by chunk.

        Args:
            rows: int64 (N,), each a row of a shard of the table.
        """
        shard = self.start.searchsorted(rows, side="right") - 1
        frame = rows - self.start.take(shard)
        chunk, inside = np.divmod(frame, self.chunk_frames.take(shard))
        # One sort of single numbers, by chunk and then by place, is far faster than an argsort.
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
            begin=spans[:, 0].copy(),  # contiguous: machine code is made for one layout
            size=spans[:, 1] - spans[:, 0],
            first=first,
            inside=inside.take(place),
            place=place,
        )
