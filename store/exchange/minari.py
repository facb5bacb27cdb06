"""Minari datasets with HDF5 storage (https://minari.farama.org), written and read without Minari.

A dataset is a directory with ``data/metadata.json`` and ``data/main_data.hdf5``. The HDF5 file has
a group ``episode_N`` for each episode, with ``observations`` (T + 1 rows), ``actions``,
``rewards``, ``terminations``, ``truncations`` (T rows) and ``infos``.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avtd3.store.episode_table import EpisodeInfo
from avtd3.store.errors import SpecError, abbreviate
from avtd3.store.exchange.hdf5 import (
    H5,
    FileSource,
    import_h5py,
    join_vectors,
    planes_first,
    planes_last,
    put,
    put_extra,
    put_steps,
    reading,
    writing,
)
from avtd3.store.exchange.record import (
    DOCUMENT,
    FACTS,
    LISTED,
    EpisodeRecord,
    ImportConfig,
    Layout,
    check_size,
    choose_observations,
    image_key,
    parse_facts,
    read_document,
    read_object,
    to_float32,
)
from avtd3.store.files import (
    canonical_json,
    fsync_directory,
    parse_json,
    remove_tree,
    write_new,
)
from avtd3.store.spec import EpisodeSpec

VERSION = "0.5.4"
"""Version of Minari whose layout is written."""
_MAX_METADATA = 256 * 1024**2  # the bounds of an image are written out, twice
_DATA, _METADATA = "main_data.hdf5", "metadata.json"
_IDENTIFIER = re.compile(r"[-_\w]+-v\d+")
_LEAST_SIDE = 32
_JPEG_BYTES = 64 * 1024**2


class MinariLayout(Layout):
    """Export to a Minari dataset; images are stored as they are, not as JPEG."""

    kept = (
        f"{LISTED}: in infos",
        "end reason, policy, attributes, events: array avtd3 of each episode, JSON",
        "spec and provenance: avtd3.json",
    )

    def __init__(self, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        import_h5py()

    def write_part(self, path: Path, number: int, record: EpisodeRecord, facts: bytes) -> None:
        """Write an episode into a new file."""
        with writing(path) as file:
            group = file.create_group(f"episode_{number}")
            group.attrs.update(id=number, total_steps=record.length, seed=record.info.seed)
            parts = planes_last(record)
            is_dict = len(parts) > 1 or bool(record.streams)
            for key, values in parts.items():
                put(group, f"observations/{key}" if is_dict else "observations", values)
            terminations, truncations = record.ends
            put_steps(group, record, facts, terminations=terminations, truncations=truncations)
            put_extra(group.create_group("infos"), record)

    def finish(
        self, folder: Path, parts: Sequence[Path], out: Path, document: Mapping[str, Any]
    ) -> Path:
        """Join the episodes' files, and write the metadata."""
        h5py, whole = import_h5py(), folder / "whole"
        remove_tree(whole)
        (whole / "data").mkdir(parents=True)
        steps = 0
        with writing(whole / "data" / _DATA) as file:
            for number, path in enumerate(parts):
                with h5py.File(path, "r") as part:
                    part.copy(f"episode_{number}", file)
                steps += int(file[f"episode_{number}"].attrs["total_steps"])
        size = (whole / "data" / _DATA).stat().st_size
        metadata = {
            "dataset_id": out.name if _IDENTIFIER.fullmatch(out.name) else f"{_plain(out.name)}-v0",
            "minari_version": VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "total_episodes": len(parts),
            "total_steps": steps,
            "dataset_size": round(size / 1e6, 1),
            "observation_space": json.dumps(_observation_space(self.spec)),
            "action_space": json.dumps(
                _box("float32", self.spec.action_low, self.spec.action_high)
            ),
            "description": f"Exported by avtd3 {document['avtd3']} from {document['dataset']}",
        }
        write_new(whole / "data" / _METADATA, json.dumps(metadata).encode())
        write_new(whole / DOCUMENT, canonical_json(document))
        for directory in (whole / "data", whole):
            fsync_directory(directory)
        return whole


def _plain(name: str) -> str:
    return re.sub(r"[^-_\w]", "_", name) or "avtd3"


def _box(dtype: str, low: ArrayLike, high: ArrayLike) -> dict[str, Any]:
    """Return a Box space as Minari writes it."""
    bounds = np.asarray(low, dtype), np.asarray(high, dtype)
    texts = {"low": bounds[0].tolist(), "high": bounds[1].tolist()}
    return {"type": "Box", "dtype": dtype, "shape": list(bounds[0].shape), **texts}


def _observation_space(spec: EpisodeSpec) -> dict[str, Any]:
    spaces = {}
    for name, image in spec.images.items():
        shape = (image.height, image.width, image.channels)
        key = image_key(name) if spec.streams else name
        spaces[key] = _box("uint8", np.zeros(shape), np.full(shape, 255))
    if spec.vector_size:
        bound = np.full(spec.vector_size, np.inf)
        spaces["vector"] = _box("float32", -bound, bound)
    if len(spaces) == 1 and not spec.streams:
        return next(iter(spaces.values()))
    return {"type": "Dict", "subspaces": spaces}


class MinariSource(FileSource):
    """Import from a Minari dataset."""

    def __init__(self, path: Path, config: ImportConfig) -> None:
        folder = path / "data" if (path / "data").is_dir() else path
        file = folder / _METADATA
        metadata = read_object(file, "the metadata of a Minari dataset", _MAX_METADATA)
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise SpecError(f"{file}: expected data_format hdf5; convert the dataset with Minari")
        space = _parse_space(metadata, "observation_space")
        bounds = _read_bounds(_parse_space(metadata, "action_space"))
        super().__init__(path, config, folder / _DATA)
        self._is_jpeg = metadata.get("jpeg_encoding", True) is not False
        self._space, self.bounds = space, bounds
        if folder != path:
            self.document = read_document(path)
        with reading(self.file.path):
            self.count = sum(name.startswith("episode_") for name in self.file.root)

    def values(self, number: int, name: str) -> NDArray[Any]:
        """Read an array of an episode."""
        return self.file.values(f"episode_{number}/{name}")

    def read_episode(self, number: int) -> EpisodeRecord | None:
        """Read an episode."""
        episode = f"episode_{number}"
        observed = f"{episode}/observations"
        node = self.file.get(observed)
        if node is None:
            raise SpecError(f"there is no {observed}")
        is_group = self.file.is_group(node)
        arrays = self.file.leaves(observed) if is_group else {"observations": node}
        spaces = {key: self._space_of(key if is_group else "") for key in arrays}
        jpegs = {key: _image_shape(space) for key, space in spaces.items() if self._is_jpeg}
        kinds = {
            key: ((len(node), *shape), np.dtype(np.uint8))
            if (shape := jpegs.get(key))
            else (node.shape, node.dtype)
            for key, node in arrays.items()
        }
        image, streams, vectors = choose_observations(kinds, self)
        numbers = {k: self._observation(number, k, is_group=is_group) for k in vectors}
        actions = self.actions(number)
        terminated = bool(self.values(number, "terminations")[-1:].any())
        truncated = bool(self.values(number, "truncations")[-1:].any())
        if not len(actions):
            return None
        joined, self.vector_names = join_vectors(numbers)

        def frames_of(key: str) -> NDArray[np.uint8]:
            if shape := jpegs.get(key):
                self.notices.add("images are JPEG in the source: what it lost is lost")
                return planes_first(_decode_jpegs(arrays[key], shape), key)
            return planes_first(self._observation(number, key, is_group=is_group), key)

        infos, text = f"{episode}/infos", self.file.text(f"{episode}/{FACTS}")
        facts: dict[str, Any] = {"truncated": truncated or not terminated}
        facts |= parse_facts(text) if text else _seed(self.file.get(episode).attrs.get("seed"))
        return EpisodeRecord(
            frames=None if image is None else frames_of(image),
            streams={name: frames_of(key) for name, key in streams.items()},
            vectors=joined,
            actions=actions,
            rewards=to_float32(self.values(number, "rewards"), "rewards"),
            terminated=terminated,
            **(self.file.extra(infos) if text else {}),
            **facts,
        )

    def _observation(self, number: int, key: str, *, is_group: bool) -> NDArray[Any]:
        return self.values(number, f"observations/{key}" if is_group else "observations")

    def _space_of(self, key: str) -> Any:  # noqa: ANN401 - JSON
        """Return the space of an observation, by its path."""
        space: Any = self._space
        for name in filter(None, key.split("/")):
            space = space.get("subspaces") if isinstance(space, dict) else None
            space = space.get(name) if isinstance(space, dict) else None
        return space


def _seed(value: object) -> dict[str, Any]:
    """Return the field that holds the seed of an episode, if it is one."""
    if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
        return {}
    return {"info": EpisodeInfo(seed=int(value))}


def _parse_space(metadata: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - JSON
    text = metadata.get(name)
    try:
        return parse_json(text.encode(), name) if isinstance(text, str) else None
    except ValueError as error:
        raise SpecError(str(error)) from error


def _read_bounds(space: Any) -> tuple[NDArray[Any], NDArray[Any]] | None:  # noqa: ANN401 - JSON
    """Return the bounds of a Box of actions; None if it is unbounded."""
    if space is None:
        return None
    kind = space.get("type") if isinstance(space, dict) else None
    if kind != "Box":
        raise SpecError(f"actions are {abbreviate(kind)}, expected a Box: TD3 needs numbers")
    try:
        low, high = (np.asarray(space[name], np.float64).ravel() for name in ("low", "high"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"the bounds of the actions cannot be read: {error}") from error
    return (low, high) if np.isfinite([*low, *high]).all() else None


def _image_shape(space: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - JSON
    """Return the shape of a space that Minari stores as JPEG, as its `is_image_space` says."""
    if not isinstance(space, dict) or space.get("dtype") != "uint8":
        return None
    shape = space.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
        return None
    is_image = len(shape) in (2, 3) and min(shape[:2]) >= _LEAST_SIDE
    return tuple(shape) if is_image else None


def _decode_jpegs(node: H5, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode the rows of an array of JPEG files into uint8 (T, *shape)."""
    from PIL import Image

    check_size("observations", (len(node), *shape), 1)
    if math.prod(node.shape[1:]) > _JPEG_BYTES:
        raise SpecError(f"the JPEG files claim {node.shape[1:]} bytes each")
    frames = np.zeros((len(node), *shape), np.uint8)
    mode = "RGB" if shape[2:] == (3,) else "L"
    for row in range(len(node)):
        data = np.asarray(node[row], np.uint8).tobytes()
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
                found = picture.mode, picture.size
                if found != (mode, (shape[1], shape[0])):
                    raise SpecError(f"image {row} is {found}, expected {shape}")
                frames[row] = np.asarray(picture).reshape(shape)
        except Image.DecompressionBombError as error:
            raise SpecError(f"image {row}: {error}") from error
    return frames
