"""A segment before it is published: its growing buffers, and the files made from them.

Frames are kept by the name of their array, one `FrameBuffer` for each stream.
"""

import dataclasses
import importlib.metadata
import platform
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import (
    OWN_ATTRIBUTES,
    EpisodeInfo,
    array_name,
    attribute_columns,
)
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.events import Event, EventTable, event_columns
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.codec import (
    MEASURED_FRAMES,
    FrameCodec,
    chain_kind,
    choose_codec,
    decode_into,
    pack,
    seal,
)
from avtd3.store.format.layout import (
    GROUP_FILE,
    MANIFEST_FILE,
    ArrayLayout,
    Column,
    column_layout,
    frames_array,
    segment_arrays,
)
from avtd3.store.format.manifest import (
    FRAMES_CHECKSUMS,
    FileEntry,
    Manifest,
    frames_checksums,
    of_array,
)
from avtd3.store.format.metadata import array_document, document_bytes, group_document
from avtd3.store.format.shard import build_shard, joined_checksums
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step_labels import StepLabels, label_columns
from avtd3.store.world_record import WorldRecord, record_columns, record_layout

OBSERVATION_COLUMNS = ("vector", "frame_id", "sim_time")
STEP_COLUMNS = ("action", "reward", "reward_terms", "terminated", "truncated")


class StepColumns:
    """All arrays of a segment except the frames; they grow along their first axis.

    The writer sets rows of the arrays directly, because a method call per row and column would
    take longer than the rest of a step.
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
        """Allocate this many rows and keep the present ones."""
        for name in (*OBSERVATION_COLUMNS, *STEP_COLUMNS):
            values = getattr(self, name)
            grown = np.zeros((rows, *values.shape[1:]), values.dtype)
            grown[: len(values)] = values
            setattr(self, name, grown)
        self.rows = rows

    def drop(self, observations: int, steps: int) -> None:
        """Drop the first rows and move the others to the front."""
        for names, count in ((OBSERVATION_COLUMNS, observations), (STEP_COLUMNS, steps)):
            for name in names:
                values = getattr(self, name)
                values[: self.rows - count] = values[count:].copy()


class EncodedFrames(NamedTuple):
    """The chunks of a stream's frames, and their codec."""

    chunks: Sequence[bytes]
    codec: FrameCodec


def frame_buffers(spec: EpisodeSpec, codecs: Mapping[str, FrameCodec]) -> "dict[str, FrameBuffer]":
    """Return an empty buffer for each stream, by the name of its array, given the codec of each."""
    arrays = {frames_array(spec, stream): image for stream, image in spec.images.items()}
    return {name: FrameBuffer(codecs[name], image.frame_shape) for name, image in arrays.items()}


class FrameBuffer:
    """Frames of one stream that are compressed chunk by chunk as they arrive.

    With the codec ``auto``, frames stay uncompressed until `settled`.
    """

    def __init__(self, codec: FrameCodec, frame_shape: tuple[int, ...]) -> None:
        self._settings = codec
        self.codec = dataclasses.replace(codec, name="raw") if codec.name == "auto" else codec
        """Codec of the chunks; raw while ``auto`` is not settled."""
        self._pending = np.zeros((codec.chunk_frames, *frame_shape), np.uint8)
        self._chunks: list[bytes] = []
        self._count = 0

    @property
    def is_due(self) -> bool:
        """Whether there are enough frames to choose a codec."""
        return self._settings.name == "auto" and self._count >= MEASURED_FRAMES

    def settled(self) -> Self:
        """Return the frames in the codec chosen for them, or itself if there is no choice."""
        if self._settings.name != "auto" or not self._count:
            return self
        size = self.codec.chunk_frames
        frames = np.concatenate([self._frames_of_chunk(n) for n in range(-(-self._count // size))])
        frames = frames[: self._count]
        chosen = type(self)(choose_codec(self._settings, frames), frames.shape[1:])
        for frame in frames:
            chosen.append(frame)
        return chosen

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame, uint8 (C, H, W); it is copied."""
        place = self._count % self.codec.chunk_frames
        self._pending[place] = frame
        if place + 1 == self.codec.chunk_frames:
            self._chunks.append(self.codec.encode(self._pending))
        # Count last: an interrupt before leaves one frame too many, which `truncate` drops.
        self._count += 1

    def encoded(self, count: int) -> EncodedFrames:
        """Return the chunks of the first ``count`` frames; the last is padded with zeros."""
        whole, rest = divmod(count, self.codec.chunk_frames)
        chunks = self._chunks[:whole]
        if rest:
            last = np.zeros_like(self._pending)
            last[:rest] = self._frames_of_chunk(whole)[:rest]
            chunks.append(self.codec.encode(last))
        return EncodedFrames(chunks, self.codec)

    def drop(self, count: int) -> None:
        """Drop the first ``count`` frames and encode the others again."""
        size = self.codec.chunk_frames
        numbers = range(count // size, -(-self._count // size))
        kept = [frame for n in numbers for frame in self._frames_of_chunk(n).copy()]
        kept = kept[count % size :][: self._count - count]
        self._chunks, self._count = [], 0
        for frame in kept:
            self.append(frame)

    def truncate(self, count: int) -> None:
        """Drop all frames after the first ``count``."""
        size = self.codec.chunk_frames
        if count % size:
            self._pending[:] = self._frames_of_chunk(count // size)
        del self._chunks[count // size :]
        self._count = count

    def _frames_of_chunk(self, number: int) -> NDArray[np.uint8]:
        if number == len(self._chunks):
            return self._pending
        kind = chain_kind(self.codec.chain())
        frames = np.empty_like(self._pending)
        decode_into(kind, self._chunks[number], frames.reshape(-1).data)
        return frames


MAX_PROVENANCE_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndedEpisode:
    """An episode that has ended and is not published yet."""

    info: EpisodeInfo
    """What was known when it began."""
    length: int
    """Number of steps."""
    episode_return: float
    """Sum of its stored rewards."""
    end_reason: str
    """Why it ended."""
    wall_time: float
    """Its start, in seconds since 1970."""
    events: tuple[Event, ...] = ()
    """What happened, ordered by step; empty if events were not recorded."""
    world: WorldRecord | None = None
    """State of the world in each observation, if it was recorded."""
    labels: StepLabels | None = None
    """What else is known of its steps."""


class SegmentNamer:
    """Makes names of segments that sort by time, are unique, and are valid directory names."""

    def __init__(self, collector: str) -> None:
        self._collector = collector
        self._counter = 0
        self._last_us = 0

    def next(self, now_s: float) -> str:
        """Return the next name; it sorts after the last one, even if the clock went back."""
        self._last_us = max(self._last_us + 1, round(now_s * 1e6))
        moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._last_us)
        self._counter += 1
        stamp = f"{moment:%Y%m%dT%H%M%S.%f}Z"
        return f"{stamp}-{self._collector}-{self._counter:06d}-{secrets.token_hex(4)}"


def base_provenance(given: Mapping[str, Any], collector: str) -> dict[str, Any]:
    """Return the provenance that every segment of a writer has."""
    try:
        size = len(canonical_json(dict(given)))
    except (TypeError, ValueError) as error:
        raise SpecError(f"provenance is not JSON of finite numbers: {error}") from error
    if size > MAX_PROVENANCE_BYTES:
        raise SpecError(f"provenance has {size} bytes, expected at most {MAX_PROVENANCE_BYTES}")
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
    frames: Mapping[str, EncodedFrames],
    codec: FrameCodec,
    provenance: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return all files of a segment, the manifest last.

    ``frames`` are those of each stream, by the name of the array; without any, the provenance names
    ``codec``.
    """
    spec = dataset.spec
    steps = sum(episode.length for episode in ended)
    counts = {"episodes": len(ended), "steps": steps, "observations": steps + len(ended)}
    about = {
        "format_version": spec.format_version,
        "segment_id": segment_id,
        "spec_digest": dataset.spec_digest,
    }
    files = {GROUP_FILE: document_bytes(group_document(about))}
    arrays: dict[str, Column] = _step_columns(columns, counts) | _episode_columns(ended)
    layouts = segment_arrays(spec, **counts)
    for name, column in attribute_columns([episode.info for episode in ended]).items():
        arrays[array_name(name)] = column
        if name not in OWN_ATTRIBUTES:
            layouts[array_name(name)] = column_layout(array_name(name), column, "episode")
    optional = event_columns(EventTable.of([episode.events for episode in ended]))
    layouts |= {name: column_layout(name, column, "event") for name, column in optional.items()}
    records = record_columns([episode.world for episode in ended])
    layouts |= {name: record_layout(name, len(column)) for name, column in records.items()}
    lengths = [episode.length for episode in ended]
    labels = label_columns([episode.labels for episode in ended], lengths, dataset.spec)
    layouts |= {name: layout for name, (layout, _) in labels.items()}
    arrays |= optional | records | {name: column for name, (_, column) in labels.items()}
    about_frames: dict[str, dict[str, Any]] = {}
    for layout in layouts.values():
        if layout.is_sharded:
            shard, about_frames[layout.name] = frame_files(layout, frames[layout.name])
            files |= shard
        else:
            files |= array_files(layout, arrays[layout.name])
    named = frames_provenance(spec, about_frames) or {"codec": dataclasses.asdict(codec)}
    entries = {name: FileEntry(len(data), sha256(data)) for name, data in files.items()}
    manifest = Manifest(
        format_version=spec.format_version,
        segment_id=segment_id,
        spec_digest=dataset.spec_digest,
        files=entries,
        provenance={**provenance, **named},
        digest="",
        **counts,
    )
    files[MANIFEST_FILE] = manifest.sealed().to_bytes()
    return files


def array_files(layout: ArrayLayout, column: Column) -> dict[str, bytes]:
    """Return the two files of an array other than the frames, by path."""
    attributes: dict[str, Any] = {}
    if not isinstance(column, np.ndarray):
        column, attributes["categories"] = _encode_texts(column)
    document = array_document(layout, codec=None, attributes=attributes)
    return {
        layout.metadata_path: document_bytes(document),
        layout.chunk_path: _encode_values(layout, column),
    }


def frame_files(
    layout: ArrayLayout, frames: EncodedFrames
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the two files of a stream's frames by path, and what the provenance says of them."""
    chunks, codec = frames
    document = array_document(layout, codec=codec, attributes={})
    shard = build_shard(chunks)
    files = {layout.metadata_path: document_bytes(document), layout.chunk_path: shard}
    checksums = frames_checksums(sha256(shard), joined_checksums(chunks))
    return files, {"codec": dataclasses.asdict(codec), FRAMES_CHECKSUMS: checksums}


def frames_provenance(spec: EpisodeSpec, about: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the provenance of all frames, given that of each array from `frame_files`.

    Format 1 has one such array, and records it without its name.
    """
    if spec.format_version == 1:
        return next(iter(about.values()), {})
    keys = {key for found in about.values() for key in found}
    return {key: {name: found[key] for name, found in about.items()} for key in sorted(keys)}


def stored_codecs(segment: Segment) -> dict[str, FrameCodec]:
    """Return the codec of each array of frames of a segment; the default where it is not known."""
    names = (frames_array(segment.spec, stream) for stream in segment.spec.images)
    return {name: stored_codec(segment.provenance, name) for name in names}


def stored_codec(provenance: Mapping[str, Any], array: str = "") -> FrameCodec:
    """Return the codec that a provenance names for an array of frames, see `stored_codecs`."""
    settings = of_array(provenance.get("codec"), array)
    known = {field.name for field in dataclasses.fields(FrameCodec)}
    if not isinstance(settings, dict) or not settings.keys() <= known:
        return FrameCodec()
    try:
        return FrameCodec(**settings)
    except ConfigError:
        return FrameCodec()


def _encode_values(layout: ArrayLayout, values: NDArray[Any]) -> bytes:
    """Return the bytes of the chunk of an array other than the frames."""
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    encoded = np.ascontiguousarray(values, dtype)
    return seal(pack(encoded) if layout.is_packed else encoded.tobytes())


def _encode_texts(texts: Sequence[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Return the code of each text, and the categories that the codes stand for."""
    categories = sorted(set(texts))
    code = {text: number for number, text in enumerate(categories)}
    return np.asarray([code[text] for text in texts], np.int32), categories


def _step_columns(columns: StepColumns, counts: Mapping[str, int]) -> dict[str, Column]:
    return {
        name: getattr(columns, name)[: counts[axis]]
        for axis, names in (("observations", OBSERVATION_COLUMNS), ("steps", STEP_COLUMNS))
        for name in names
    }


def _episode_columns(ended: Sequence[EndedEpisode]) -> dict[str, Column]:
    lengths = [episode.length for episode in ended]
    found: dict[str, Column] = {
        "episode_offset": np.cumsum([0, *lengths[:-1]]),
        "episode_length": np.asarray(lengths),
        "episode_return": np.asarray([episode.episode_return for episode in ended]),
        "episode_wall_time": np.asarray([episode.wall_time for episode in ended]),
        "episode_end_reason": [episode.end_reason for episode in ended],
        "episode_policy_digest": [episode.info.policy_digest for episode in ended],
    }
    for name in ("index", "seed", "policy_version", "exploration_noise"):
        found[f"episode_{name}"] = np.asarray([getattr(episode.info, name) for episode in ended])
    return found
