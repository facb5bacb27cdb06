"""Direct replay without native code: chunks of one frame, a batch of them in one call.

Chunks of several frames gain nothing by it: more is decoded than is wanted, and then copied.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.arrays import FrameShard
from avtd3.store.format.codec import ChainKind
from avtd3.store.format.joined import (
    SLACK_BYTES,
    PackedChunks,
    decode_blocks,
    find_blocks,
    room_bytes,
)
from avtd3.store.replay.crew import Crew
from avtd3.store.replay.direct_plan import ChunkPlan

_KINDS: tuple[ChainKind, ...] = ("raw", "blosc")


class JoinedDecoder:
    """A `ChunkDecoder` of chunks of one frame, raw or LZ4; see `avtd3.store.format.joined`.

    They are read under the interpreter's lock, and decoded without it by all threads.
    """

    def __init__(self, frame_bytes: int, threads: int | None = None) -> None:
        """Start with no shards.

        Args:
            frame_bytes: Size of a raw frame.
            threads: See `Crew`.
        """
        self._frame_bytes = frame_bytes
        self._crew = Crew(threads)
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
        """Put the frames of verified chunks into place; see `ChunkDecoder`."""
        is_small = plan.size <= self._frame_bytes + SLACK_BYTES
        kinds = np.where(is_small, self._kinds.take(plan.shard), -1)
        mine = np.flatnonzero(kinds >= 0)
        offset, size, files = plan.begin.take(mine), plan.size.take(mine), descriptors.take(mine)
        # A table for each thread, before all chunks.
        room = room_bytes(len(out))
        packed, begin = self._packed.read(files, offset, size, room * self._crew.threads)
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
        except ValueError:  # one of them: the way chunk by chunk finds it
            starts[:] = 0
        return np.flatnonzero(starts == 0)

    def _decode(
        self,
        packed: NDArray[np.uint8],
        table: NDArray[np.int64],
        room: int,
        out: NDArray[np.uint8],
    ) -> None:
        """Decode blocks, each thread its share."""

        def work(thread: int, low: int, high: int) -> None:
            if low < high:
                shift = room * thread
                blocks = table[low:high] - shift
                decode_blocks(packed[shift:], blocks, self._frame_bytes, out[low:high])

        self._crew.share(len(out), work)

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._crew.close()
