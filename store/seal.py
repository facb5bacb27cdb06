"""Growing buffers for what a segment holds before it is sealed: encoded frames and columns."""

import dataclasses
import importlib.metadata
import platform
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import (
    OWN_ATTRIBUTES,
    EpisodeInfo,
    array_name,
    attribute_columns,
    attribute_layout,
)
from avtd3.store.errors import SpecError
from avtd3.store.events import Event, EventTable, event_arrays, event_texts, event_values
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.codec import (
    MEASURED_FRAMES,
    FrameCodec,
    chain_kind,
    choose_codec,
    decode_into,
    seal,
)
from avtd3.store.format.layout import (
    FORMAT_VERSION,
    GROUP_FILE,
    MANIFEST_FILE,
    ArrayLayout,
    segment_arrays,
)
from avtd3.store.format.manifest import BINDING, FileEntry, Manifest, binding
from avtd3.store.format.metadata import array_document, document_bytes, group_document
from avtd3.store.format.shard import build_shard, joined_checksums
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
        kind = chain_kind(self._codec.chain())
        frames = np.empty_like(self._pending)
        decode_into(kind, self._chunks[number], frames.reshape(-1).data)
        return frames


MAX_PROVENANCE_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndedEpisode:
    """A whole episode that waits to be published."""

    info: EpisodeInfo
    """What was known at its start."""
    length: int
    """Steps."""
    episode_return: float
    """Sum of its stored rewards."""
    end_reason: str
    """Why it ended."""
    wall_time: float
    """Its start, in seconds since 1970."""
    events: tuple[Event, ...] = ()
    """What happened, in order; nothing where events are not recorded."""


class SegmentNamer:
    """Names that sort by time, are unique across machines, and are safe as directories."""

    def __init__(self, collector: str) -> None:
        self._collector = collector
        self._counter = 0
        self._last_us = 0

    def next(self, now_s: float) -> str:
        """The next name; later than the one before, even if the clock went back."""
        self._last_us = max(self._last_us + 1, round(now_s * 1e6))
        moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._last_us)
        self._counter += 1
        stamp = f"{moment:%Y%m%dT%H%M%S.%f}Z"
        return f"{stamp}-{self._collector}-{self._counter:06d}-{secrets.token_hex(4)}"


def base_provenance(given: Mapping[str, Any], collector: str) -> dict[str, Any]:
    """What is recorded with every segment of a writer.

    Args:
        given: The caller's own JSON; config, simulator build and the like.
        collector: The collector's name.

    Raises:
        SpecError: ``given`` is not JSON, or larger than `MAX_PROVENANCE_BYTES`.
    """
    try:
        size = len(canonical_json(dict(given)))
    except (TypeError, ValueError) as error:
        raise SpecError(f"provenance is not JSON of finite numbers: {error}") from error
    if size > MAX_PROVENANCE_BYTES:
        raise SpecError(f"provenance has {size} bytes, allowed are {MAX_PROVENANCE_BYTES}")
    return {
        **given,
        "avtd3": importlib.metadata.version("avtd3"),
        "python": platform.python_version(),
        "host": platform.node(),
        "collector": collector,
    }


def seal_files(
    segment_id: str,
    dataset: Dataset,
    columns: StepColumns,
    ended: Sequence[EndedEpisode],
    *,
    chunks: Sequence[bytes] | None,
    codec: FrameCodec,
    provenance: Mapping[str, Any],
) -> dict[str, bytes]:
    """Every file of a segment, the manifest last.

    Args:
        segment_id: The segment's name.
        dataset: The dataset it is for.
        columns: Its first rows are those of ``ended``.
        ended: The whole episodes, at least one.
        chunks: The encoded frames, or None if the spec has no image.
        codec: How they were encoded; recorded, too.
        provenance: JSON to record.

    Returns:
        Bytes by path below the segment's directory.
    """
    steps = sum(episode.length for episode in ended)
    counts = {"episodes": len(ended), "steps": steps, "observations": steps + len(ended)}
    about = {
        "format_version": FORMAT_VERSION,
        "segment_id": segment_id,
        "spec_digest": dataset.spec_digest,
    }
    files = {GROUP_FILE: document_bytes(group_document(about))}
    events = EventTable.of([episode.events for episode in ended])
    values = _step_values(columns, counts) | _episode_numbers(ended) | event_values(events)
    texts = _episode_texts(ended) | event_texts(events)
    layouts = segment_arrays(dataset.spec, **counts) | event_arrays(len(events))
    for name, column in attribute_columns([episode.info for episode in ended]).items():
        array = array_name(name)
        if name not in OWN_ATTRIBUTES:
            layouts[array] = attribute_layout(name, column)
        if isinstance(column, list):
            texts[array] = column
        else:
            values[array] = column
    strings = _coded(texts)
    for layout in layouts.values():
        attributes: dict[str, Any] = {}
        used_codec = None
        if layout.name == "frames" and chunks is not None:
            data, used_codec = build_shard(chunks), codec
        elif layout.name in strings:
            codes, categories = strings[layout.name]
            data, attributes = _plain(layout, codes), {"categories": categories}
        else:
            data = _plain(layout, values[layout.name])
        document = array_document(layout, codec=used_codec, attributes=attributes)
        files[layout.metadata_path] = document_bytes(document)
        files[layout.chunk_path] = data
    entries = {name: FileEntry(len(data), sha256(data)) for name, data in files.items()}
    recorded: dict[str, Any] = {**provenance, "codec": dataclasses.asdict(codec)}
    if chunks is not None:
        shard = entries[layouts["frames"].chunk_path]
        recorded[BINDING] = binding(shard.sha256, joined_checksums(chunks))
    manifest = Manifest(
        segment_id=segment_id,
        spec_digest=dataset.spec_digest,
        files=entries,
        provenance=recorded,
        digest="",
        **counts,
    )
    files[MANIFEST_FILE] = manifest.sealed().to_bytes()
    return files


def _plain(layout: ArrayLayout, values: NDArray[Any]) -> bytes:
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    return seal(np.ascontiguousarray(values, dtype).tobytes())


def _step_values(columns: StepColumns, counts: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    return {
        name: getattr(columns, name)[: counts[axis]]
        for axis, names in (("observations", OBSERVATION_COLUMNS), ("steps", STEP_COLUMNS))
        for name in names
    }


def _episode_numbers(ended: Sequence[EndedEpisode]) -> dict[str, NDArray[Any]]:
    lengths = [episode.length for episode in ended]
    columns: dict[str, Sequence[float]] = {
        "offset": np.cumsum([0, *lengths[:-1]]).tolist(),
        "length": lengths,
        "index": [episode.info.index for episode in ended],
        "seed": [episode.info.seed for episode in ended],
        "return": [episode.episode_return for episode in ended],
        "policy_version": [episode.info.policy_version for episode in ended],
        "exploration_noise": [episode.info.exploration_noise for episode in ended],
        "wall_time": [episode.wall_time for episode in ended],
    }
    return {f"episode_{name}": np.asarray(column) for name, column in columns.items()}


def _episode_texts(ended: Sequence[EndedEpisode]) -> dict[str, Sequence[str]]:
    return {
        "episode_end_reason": [episode.end_reason for episode in ended],
        "episode_policy_digest": [episode.info.policy_digest for episode in ended],
    }


def _coded(
    columns: Mapping[str, Sequence[str]],
) -> dict[str, tuple[NDArray[np.int32], list[str]]]:
    """Codes and categories of columns of texts."""
    found = {}
    for name, texts in columns.items():
        categories = sorted(set(texts))
        code = {text: number for number, text in enumerate(categories)}
        found[name] = np.asarray([code[text] for text in texts], np.int32), categories
    return found
