"""LeRobot datasets, version 3.0 (https://huggingface.co/docs/lerobot), written without LeRobot.

``data/chunk-CCC/file-FFF.parquet`` holds one row per step, here one file per episode, with images
as PNG files; ``meta/`` holds the features, statistics, tasks and episodes.
"""

import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError, import_extra
from avtd3.store.exchange.record import DOCUMENT, FACTS, EpisodeRecord, Layout
from avtd3.store.files import canonical_json, fsync_directory, remove_tree, write_new
from avtd3.store.spec import EpisodeSpec

VERSION = "v3.0"
"""Version of LeRobot's layout that is written."""
_FILES = 1_000  # in a chunk
_IMAGES, _STATE = "observation.images.", "observation.state"
_IMAGE = f"{_IMAGES}front"
_MODES = {1: "L", 3: "RGB"}
_TASK = "drive"
_STATISTICS = "avtd3_statistics"
Arrow: TypeAlias = Any
"""A table or schema of pyarrow, which has no types."""


class LeRobotLayout(Layout):
    """Export to a LeRobot dataset; images are stored as PNG, without loss."""

    suffix = ".parquet"
    kept: ClassVar[tuple[str, ...]] = (
        "next.terminated and next.truncated (next.done is either)",
        "reward_terms: column of this name",
        "seed, end reason, policy, attributes, events: column avtd3 of meta/episodes, JSON",
        "spec and provenance: avtd3.json",
    )
    lost: ClassVar[tuple[str, ...]] = (
        "the observation after the last step of each episode",
        "frame_id and sim_time: time is counted from the start of an episode",
        "labels of steps: the expert's actions, who drove, and delays",
        *Layout.lost,
    )

    def __init__(self, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        for name, image in spec.images.items():
            if image.channels not in _MODES:
                raise ConfigError(
                    f"images have {image.channels} planes, expected 1 or 3 for the LeRobot layout; "
                    f"export other streams than {name} (--stream)"
                )
        self._arrow = import_extra("pyarrow", "exchange", "the LeRobot layout")
        self._parquet = importlib.import_module("pyarrow.parquet")

    def write_part(self, path: Path, number: int, record: EpisodeRecord, facts: bytes) -> None:
        """Write an episode into a new file; its rows are numbered when the whole is made."""
        columns, numbers, types = {}, self._numbers(record), self._types()
        images = {f"{_IMAGES}{name}": frames for name, frames in record.streams.items()}
        if record.frames is not None:
            images[_IMAGE] = record.frames
        for name, frames in images.items():
            pictures = [{"bytes": _png(frame), "path": None} for frame in frames[:-1]]
            columns[name] = self._arrow.array(pictures, types[name])
        for name, values in numbers.items():
            columns[name] = self._column(values, types[name])
        schema = self._arrow.schema([(name, column.type) for name, column in columns.items()])
        statistics = {name: _moments(values) for name, values in numbers.items()}
        statistics |= {name: _image_moments(frames[:-1]) for name, frames in images.items()}
        metadata = {FACTS: facts, _STATISTICS: json.dumps(statistics).encode()}
        self._write(path, self._arrow.table(columns, schema=schema.with_metadata(metadata)))

    def _numbers(self, record: EpisodeRecord) -> dict[str, NDArray[Any]]:
        steps, ends = np.arange(record.length), record.ends
        found: dict[str, Any] = {
            _STATE: None if record.vectors is None else record.vectors[:-1],
            "action": record.actions,
            "next.reward": record.rewards,
            "next.done": ends.any(axis=0),
            "next.terminated": ends[0],
            "next.truncated": ends[1],
            "reward_terms": record.reward_terms,
            "timestamp": (steps * self.spec.control_period_s).astype(np.float32),
            "frame_index": steps,
        }
        return {name: values for name, values in found.items() if values is not None}

    def _column(self, values: NDArray[Any], kind: Arrow) -> Arrow:
        if values.ndim == 1 or values.shape[1] == 1:
            return self._arrow.array(values.reshape(-1), kind)
        flat = self._arrow.array(values.reshape(-1))
        return self._arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])

    def _features(self) -> dict[str, dict[str, Any]]:
        """Return the features as ``meta/info.json`` lists them."""
        spec = self.spec
        found: dict[str, dict[str, Any]] = {}
        for stream, image in spec.images.items():
            shape = [image.height, image.width, image.channels]
            names = ["height", "width", "channels"]
            key = f"{_IMAGES}{stream}" if spec.streams else _IMAGE
            found[key] = {"dtype": "image", "shape": shape, "names": names}
        vectors = {_STATE: spec.vector_names, "action": spec.action_names}
        for name, parts in (vectors | {"reward_terms": spec.reward_terms}).items():
            if parts:
                found[name] = {"dtype": "float32", "shape": [len(parts)], "names": list(parts)}
        scalars = {"next.reward": "float32", "timestamp": "float32"}
        scalars |= dict.fromkeys(("next.done", "next.terminated", "next.truncated"), "bool")
        scalars |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
        return found | {
            name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()
        }

    def _types(self) -> dict[str, Arrow]:
        arrow = self._arrow
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        kinds = {"float32": arrow.float32(), "bool": arrow.bool_(), "int64": arrow.int64()}
        return {
            name: image if feature["dtype"] == "image" else kinds[feature["dtype"]]
            for name, feature in self._features().items()
        }

    def finish(
        self, folder: Path, parts: Sequence[Path], out: Path, document: Mapping[str, Any]
    ) -> Path:
        """Number the rows of the episodes' files, and write the metadata."""
        whole, rows, statistics = folder / "whole", [], []
        remove_tree(whole)
        (whole / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        start = 0
        for number, part in enumerate(parts):
            chunk, file = divmod(number, _FILES)
            place = whole / "data" / f"chunk-{chunk:03d}"
            place.mkdir(parents=True, exist_ok=True)
            table = self._parquet.read_table(part)
            metadata, length = table.schema.metadata, len(table)
            statistics.append(json.loads(metadata[_STATISTICS.encode()]))
            ranges = {
                "episode_index": np.full(length, number),
                "index": np.arange(start, start + length),
                "task_index": np.zeros(length, np.int64),
            }
            for name, values in ranges.items():
                table = table.append_column(name, self._arrow.array(values))
            self._write(place / f"file-{file:03d}.parquet", table.replace_schema_metadata())
            rows.append(
                {
                    "episode_index": number,
                    "tasks": [_TASK],
                    "length": length,
                    "dataset_from_index": start,
                    "dataset_to_index": start + length,
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                    FACTS: metadata[FACTS.encode()].decode(),
                }
            )
            start += length
        meta = whole / "meta"
        if not rows:
            raise ConfigError("no episode is selected, expected one or more for the LeRobot layout")
        table = self._arrow.Table.from_pylist(rows)
        self._write(meta / "episodes" / "chunk-000" / "file-000.parquet", table)
        self._write(meta / "tasks.parquet", self._tasks())
        write_new(meta / "stats.json", json.dumps(_joined(statistics)).encode())
        write_new(meta / "info.json", json.dumps(self._info(len(parts), start), indent=2).encode())
        write_new(whole / DOCUMENT, canonical_json(document))
        for directory in (*whole.rglob("*/"), whole):
            if directory.is_dir():
                fsync_directory(directory)
        return whole

    def _write(self, path: Path, table: Arrow) -> None:
        sink = io.BytesIO()
        self._parquet.write_table(table, sink)
        write_new(path, sink.getvalue())

    def _tasks(self) -> Arrow:
        """Return the table of tasks, whose index pandas finds in the metadata."""
        index = "__index_level_0__"
        kinds = {
            "task_index": {"pandas_type": "int64", "numpy_type": "int64"},
            index: {"pandas_type": "unicode", "numpy_type": "object"},
        }
        entries = [
            {"name": None if name == index else name, "field_name": name, "metadata": None, **kind}
            for name, kind in kinds.items()
        ]
        pandas = {"index_columns": [index], "column_indexes": [], "columns": entries}
        table = self._arrow.table({"task_index": [0], index: [_TASK]})
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _info(self, episodes: int, steps: int) -> dict[str, Any]:
        rate = 1.0 / self.spec.control_period_s
        return {
            "codebase_version": VERSION,
            "robot_type": "avtd3",
            "total_episodes": episodes,
            "total_frames": steps,
            "total_tasks": 1,
            "chunks_size": _FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": round(rate) if abs(rate - round(rate)) < 1e-6 else rate,
            "splits": {"train": f"0:{episodes}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "features": self._features(),
        }


def _png(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    pixels = np.ascontiguousarray(frame[0] if len(frame) == 1 else np.moveaxis(frame, 0, -1))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _moments(values: NDArray[Any]) -> dict[str, Any]:
    """Return count, extremes and sums of numbers (N,) or (N, D), for statistics over episodes."""
    table = values.reshape(len(values), -1).astype(np.float64)
    return {
        "count": len(table),
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
        "sum": table.sum(axis=0).tolist(),
        "squares": (table**2).sum(axis=0).tolist(),
    }


def _image_moments(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the same of the pixels of each plane, as shares of 255."""
    planes = np.moveaxis(frames, 1, 0).reshape(frames.shape[1], -1)
    counts = [np.bincount(plane, minlength=256) for plane in planes]
    levels = np.arange(256) / 255.0
    return {
        "count": planes.shape[1],
        "min": (planes.min(axis=1) / 255.0).tolist(),
        "max": (planes.max(axis=1) / 255.0).tolist(),
        "sum": [float(count @ levels) for count in counts],
        "squares": [float(count @ levels**2) for count in counts],
    }


def _joined(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the statistics of all episodes, as ``meta/stats.json`` has them."""
    found = {}
    for name in parts[0] if parts else ():
        columns = {key: np.array([part[name][key] for part in parts]) for key in parts[0][name]}
        count = int(columns["count"].sum())
        mean = columns["sum"].sum(axis=0) / count
        variance = np.maximum(columns["squares"].sum(axis=0) / count - mean**2, 0.0)
        shape = (-1, 1, 1) if name.startswith(_IMAGES) else (-1,)
        values = {
            "min": columns["min"].min(axis=0),
            "max": columns["max"].max(axis=0),
            "mean": mean,
            "std": np.sqrt(variance),
        }
        found[name] = {key: value.reshape(shape).tolist() for key, value in values.items()}
        found[name]["count"] = [count]
    return found
