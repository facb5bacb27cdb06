"""Folders of npz files, one per episode, as the replay buffer of DrQ-v2 writes them.

Its arrays have T + 1 rows: ``observation``, ``action``, ``reward`` and ``discount``. Row t holds
the action that led to observation t; row 0 holds no action. The name of a file is
``<time>_<number>_<length>.npz`` (facebookresearch/drqv2, replay_buffer.py).
"""

import contextlib
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode import Episode
from avtd3.store.errors import SpecError, abbreviate, advice
from avtd3.store.exchange.record import (
    DOCUMENT,
    EXTRA,
    FACTS,
    LISTED,
    EpisodeRecord,
    ImportConfig,
    Layout,
    Source,
    cannot_read,
    check_ratio,
    check_size,
    image_key,
    parse_facts,
    read_document,
    text_of,
    to_float32,
    to_vectors,
)
from avtd3.store.files import (
    canonical_json,
    fsync_directory,
    list_directory,
    open_regular,
    sha256,
    sha256_of_file,
    write_new,
)

_NAME = re.compile(r"\d{8}T\d{6}_(\d{1,18})_(\d{1,18})\.npz")
_MAX_MEMBERS = 100
_MAX_HEADER = 10_000
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error)
_LAST_S = 253_402_300_799  # the last second of the year 9999


class NpzLayout(Layout):
    """Export to a folder of npz files."""

    suffix = ".npz"
    kept = (
        "vector beside an image: array vector",
        "named streams: arrays NAME_image, single frames",
        f"{LISTED}: arrays of these names",
        "seed, end reason, policy, attributes, events: array avtd3, JSON",
        "spec and provenance: avtd3.json",
    )

    def part_name(self, number: int, episode: Episode) -> str:
        """Return the name of an episode's file, as DrQ-v2 gives it."""
        start_s = min(max(0.0, episode.started_at), _LAST_S)  # of NaN, max returns the first
        stamp = datetime.fromtimestamp(start_s, UTC).strftime("%Y%m%dT%H%M%S")
        return f"{stamp}_{number}_{episode.length}.npz"

    def write_part(self, path: Path, number: int, record: EpisodeRecord, facts: bytes) -> None:
        """Write an episode into a new file."""
        rows = record.length + 1
        arrays: dict[str, Any] = {}
        if record.frames is not None and self.spec.image is not None:
            arrays["observation"] = _stacked(record.frames, self.spec.image.stack)
        arrays |= {image_key(name): frames for name, frames in record.streams.items()}
        if record.vectors is not None:
            arrays["vector" if arrays else "observation"] = record.vectors
        discount = np.ones((rows, 1), np.float32)
        discount[-1] = not record.terminated
        arrays["action"] = np.concatenate([np.zeros_like(record.actions[:1]), record.actions])
        arrays["reward"] = np.concatenate([np.zeros(1, np.float32), record.rewards])[:, None]
        arrays["discount"] = discount
        arrays |= record.extra | {FACTS: np.frombuffer(facts, np.uint8)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_new(path, buffer.getvalue())

    def finish(
        self, folder: Path, parts: Sequence[Path], out: Path, document: Mapping[str, Any]
    ) -> Path:
        """Put the document beside the episodes: their folder is the export."""
        whole = parts[0].parent if parts else folder / "episodes"
        (whole / DOCUMENT).unlink(missing_ok=True)
        write_new(whole / DOCUMENT, canonical_json(document))
        fsync_directory(whole)
        return whole


def _stacked(frames: NDArray[np.uint8], stack: int) -> NDArray[np.uint8]:
    """Return stacks (T + 1, K * C, H, W) of frames, clamped to the first one."""
    rows = np.arange(len(frames))[:, None] + np.arange(1 - stack, 1)
    stacks: NDArray[np.uint8] = frames[np.maximum(rows, 0)]
    return stacks.reshape(len(frames), -1, *frames.shape[2:])


def _is_stack(stacks: NDArray[np.uint8], stack: int) -> bool:
    """Return whether planes (T + 1, P, H, W) are stacks of so many frames."""
    size = stacks.shape[1] // stack
    return stack * size == stacks.shape[1] and np.array_equal(
        _stacked(stacks[:, -size:], stack), stacks
    )


class NpzSource(Source):
    """Import from a folder of npz files."""

    def __init__(self, path: Path, config: ImportConfig) -> None:
        super().__init__(path, config)
        names = [name for name in _list(path) if name.endswith(".npz")]
        matches = {name: _NAME.fullmatch(name) for name in names}
        order = {name: int(match[1]) if match else -1 for name, match in matches.items()}
        self._files = [path / name for name in sorted(names, key=lambda name: (order[name], name))]
        if not self._files:
            raise SpecError(f"{path} has no npz files; expected those of a replay buffer")
        self.count = len(self._files)
        self.document = read_document(path)
        self.stack = _stated_stack(self.document) or config.stack

    def digest(self) -> str:
        """Return a SHA-256 over the names and bytes of the files."""
        lines = (f"{file.name} {sha256_of_file(file)}\n" for file in self._files)
        return sha256("".join(lines).encode())

    def actions(self, number: int) -> NDArray[np.float32]:
        """Return the actions of an episode, float32 (T, A)."""
        with _members(self._files[number]) as members:
            return to_vectors(_take(members, "action"), "action")[1:]

    def read(self, number: int) -> EpisodeRecord:
        """Read an episode."""
        with _members(self._files[number]) as members:
            streams = {
                name: _pictures(_take(members, image_key(name)), name)
                for name in self.stated_streams() or self._streams_in(members)
            }
            frames = None
            if streams:
                vectors = self._vectors(members)
            else:
                frames, vectors = self._observations(members)
            actions = to_vectors(_take(members, "action"), "action")
            rewards = to_float32(_take(members, "reward"), "reward").reshape(-1)
            discount = to_float32(_take(members, "discount"), "discount").reshape(-1)
            extra: dict[str, Any] = {
                key: members.read(name) for name, key in EXTRA.items() if name in members
            }
            facts = text_of(members.read(FACTS)) if FACTS in members else b""
        parts = (frames, *streams.values(), vectors, actions, rewards, discount)
        rows = {len(part) for part in parts if part is not None}
        if len(rows) != 1 or min(rows) < 2:
            raise SpecError(f"the arrays have {sorted(rows)} rows, expected one number, 2 or more")
        if not (np.isin(discount[-1], (0.0, 1.0)) and (discount[1:-1] == 1.0).all()):
            raise SpecError("discount is not 1 up to the last row, and 0 or 1 there")
        terminated = bool(discount[-1] == 0.0)
        fields = parse_facts(facts) if facts else {"truncated": not terminated}
        return EpisodeRecord(
            frames=frames,
            streams=streams,
            vectors=vectors,
            actions=actions[1:],
            rewards=rewards[1:],
            terminated=terminated,
            **extra,
            **fields,
        )

    def _streams_in(self, members: "_Members") -> list[str]:
        """Return the names of the streams of a file that avtd3 did not write: arrays NAME_image."""
        if self.config.image or "observation" in members:
            return []
        suffix = image_key("")
        return sorted(name.removesuffix(suffix) for name in members if name.endswith(suffix))

    def _observations(
        self, members: "_Members"
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None]:
        key = self.config.image or "observation"
        main = _take(members, key)
        if main.ndim != 4 or main.dtype != np.uint8:
            self.vector_names = tuple(f"{key}_{n}" for n in range(main[0].size))
            return None, to_vectors(main, key)
        if self.stack is None:
            planes = main.shape[1]
            self.stack = next(k for k in range(planes, 0, -1) if _is_stack(main, k))
            self.notices.add(
                f"an observation has {self.stack} frames of {planes // self.stack} planes"
            )
        if not _is_stack(main, self.stack):
            raise SpecError(
                f"{key} has {main.shape[1]} planes that are not a stack of {self.stack} frames, "
                "clamped to the first; give the number of frames with --stack"
            )
        return main[:, -(main.shape[1] // self.stack) :], self._vectors(members)

    def _vectors(self, members: "_Members") -> NDArray[np.float32] | None:
        """Read the vector beside images."""
        if "vector" not in members:
            return None
        vectors = to_vectors(_take(members, "vector"), "vector")
        self.vector_names = tuple(f"vector_{n}" for n in range(vectors.shape[1]))
        return vectors


def _pictures(frames: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise SpecError(f"stream {name} is {frames.dtype} {frames.shape}, expected uint8 frames")
    return frames


def _stated_stack(document: Mapping[str, Any]) -> int | None:
    image = document["spec"].get("image") if isinstance(document.get("spec"), dict) else None
    stack = image.get("stack") if isinstance(image, dict) else None
    return stack if type(stack) is int and stack > 0 else None


def _list(path: Path) -> list[str]:
    try:
        return list_directory(path)[1]
    except OSError as error:
        raise cannot_read(path, error, advice(error, reads=True)) from error


class _Members:
    """The arrays of an npz file; each is checked before memory is allocated for it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        infos = archive.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise SpecError(f"it has {len(infos)} arrays, expected at most {_MAX_MEMBERS}")
        self._archive = archive
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str) -> NDArray[Any]:
        """Read an array of numbers."""
        info = self._infos[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SpecError(
                f"{name} is compressed by method {info.compress_type}, expected deflate"
            )
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                raise SpecError(f"{name} has npy version {version}, expected (1, 0) or (2, 0)")
            shape, _, dtype = readers[version](file, max_header_size=_MAX_HEADER)
        if dtype.kind not in "iufb" or any(size < 0 for size in shape):
            raise SpecError(f"{name} is {dtype} {shape}, expected numbers")
        check_size(name, shape, dtype.itemsize)
        check_ratio(name, math.prod(shape) * dtype.itemsize, info.compress_size)
        with self._archive.open(info) as file:
            values: NDArray[Any] = np.lib.format.read_array(
                file, allow_pickle=False, max_header_size=_MAX_HEADER
            )
        return values


def _take(members: _Members, name: str) -> NDArray[Any]:
    if name not in members:
        raise SpecError(
            f"it has no array {abbreviate(name)}, only {abbreviate(list(members))}; expected the "
            "layout of DrQ-v2's replay buffer"
        )
    values = members.read(name)
    if values.ndim == 0 or not values.size:
        raise SpecError(f"{name} has shape {values.shape}, expected rows of numbers")
    return values


@contextlib.contextmanager
def _members(path: Path) -> Iterator[_Members]:
    try:
        with io.BufferedReader(open_regular(path)) as raw, zipfile.ZipFile(raw) as archive:
            yield _Members(archive)
    except SpecError as error:
        raise SpecError(f"{path.name}: {error}") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, EOFError, RuntimeError, NotImplementedError, *_ZIP_ERRORS) as error:
        raise SpecError(f"{path} is no npz file of numbers: {abbreviate(str(error))}") from error
