"""Growing buffers for what a segment holds before it is sealed: encoded frames and columns."""

import dataclasses
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.codec import FrameCodec, decode_into, known_chain
from avtd3.store.format.codec_choice import MEASURED_FRAMES, choose_codec
from avtd3.store.spec import EpisodeSpec

OBSERVATION_COLUMNS = ("vector", "frame_id", "sim_time")
STEP_COLUMNS = ("action", "reward", "reward_terms", "terminated", "truncated")


class StepColumns:
    """Everything of a segment but the frames, in arrays that grow along their first axis.

    The writer sets rows of the arrays directly: a method call per row and column would cost more
    than all the rest of a step.
    """

    def __init__(self, spec: EpisodeSpec, rows: int) -> None:
        self.rows = 0
        self.vector = np.zeros((0, spec.vector_size), np.float32)
        self.frame_id = np.zeros(0, np.int64)
        self.sim_time = np.zeros(0, np.float64)
        self.action = np.zeros((0, spec.action_size), np.float32)
        self.reward = np.zeros(0, np.float32)
        self.reward_terms = np.zeros((0, len(spec.reward_terms)), np.float32)
        self.terminated = np.zeros(0, np.bool_)
        self.truncated = np.zeros(0, np.bool_)
        self.grow(rows)

    def grow(self, rows: int) -> None:
        """Make room for so many rows, keeping what is there."""
        for name in (*OBSERVATION_COLUMNS, *STEP_COLUMNS):
            values = getattr(self, name)
            grown = np.zeros((rows, *values.shape[1:]), values.dtype)
            grown[: len(values)] = values
            setattr(self, name, grown)
        self.rows = rows

    def drop(self, observations: int, steps: int) -> None:
        """Forget the first rows and move the others to the front."""
        for names, count in ((OBSERVATION_COLUMNS, observations), (STEP_COLUMNS, steps)):
            for name in names:
                values = getattr(self, name)
                values[: self.rows - count] = values[count:].copy()


class FrameBuffer:
    """Frames, compressed chunk by chunk as they arrive, so that sealing has nothing left to do.

    With the codec ``auto`` the first ones stay as they are, until `settled`.
    """

    def __init__(self, codec: FrameCodec, frame_shape: tuple[int, ...]) -> None:
        self._settings = codec
        self._codec = dataclasses.replace(codec, name="raw") if codec.name == "auto" else codec
        self._pending = np.zeros((codec.chunk_frames, *frame_shape), np.uint8)
        self._chunks: list[bytes] = []
        self._count = 0

    @property
    def codec(self) -> FrameCodec:
        """How the chunks are encoded; raw while ``auto`` is not settled."""
        return self._codec

    @property
    def is_due(self) -> bool:
        """Whether enough frames are held to choose a codec."""
        return self._settings.name == "auto" and self._count >= MEASURED_FRAMES

    def settled(self) -> Self:
        """The same frames in the codec that suits them; itself, unless it is to choose one."""
        if self._settings.name != "auto" or not self._count:
            return self
        size = self._codec.chunk_frames
        frames = np.concatenate([self._frames_of_chunk(n) for n in range(-(-self._count // size))])
        frames = frames[: self._count]
        chosen = type(self)(choose_codec(self._settings, frames), frames.shape[1:])
        for frame in frames:
            chosen.append(frame)
        return chosen

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame, uint8 (C, H, W); it is copied."""
        place = self._count % self._codec.chunk_frames
        self._pending[place] = frame
        if place + 1 == self._codec.chunk_frames:
            self._chunks.append(self._codec.encode(self._pending))
        # Counted last, so that an interrupt before leaves a frame too many, which `truncate` drops.
        self._count += 1

    def encoded(self, count: int) -> list[bytes]:
        """The chunks of the first ``count`` frames; the last one is filled up with zeros."""
        whole, rest = divmod(count, self._codec.chunk_frames)
        chunks = self._chunks[:whole]
        if rest:
            last = np.zeros_like(self._pending)
            last[:rest] = self._frames_of_chunk(whole)[:rest]
            chunks.append(self._codec.encode(last))
        return chunks

    def drop(self, count: int) -> None:
        """Forget the first ``count`` frames and encode the others anew."""
        size = self._codec.chunk_frames
        kept = [
            self._frames_of_chunk(n).copy() for n in range(count // size, -(-self._count // size))
        ]
        self._restart(kept, count % size, self._count - count)

    def truncate(self, count: int) -> None:
        """Forget all frames behind the first ``count``."""
        size = self._codec.chunk_frames
        if count % size:
            self._pending[:] = self._frames_of_chunk(count // size)
        del self._chunks[count // size :]
        self._count = count

    def _restart(self, chunks: list[NDArray[np.uint8]], skip: int, count: int) -> None:
        self._chunks = []
        self._count = 0
        if count:
            for frame in np.concatenate(chunks)[skip : skip + count]:
                self.append(frame)

    def _frames_of_chunk(self, number: int) -> NDArray[np.uint8]:
        if number == len(self._chunks):
            return self._pending
        kind = known_chain(self._codec.chain())
        if kind is None:
            raise AssertionError("a chain of our own is always known")
        frames = np.empty_like(self._pending)
        decode_into(kind, self._chunks[number], frames.reshape(-1).data)
        return frames
