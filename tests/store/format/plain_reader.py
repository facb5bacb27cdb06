"""A reader of datasets, written from docs/format.md alone, with zarr and numpy."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

NAMES = (
    "index seed scenario return policy_version exploration_noise wall_time "
    "world town weather driver end_reason policy_digest"
)
COLUMNS = NAMES.split()


def canonical_digest(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_segment(path: Path, spec_digest: str) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    digest = manifest.pop("digest")
    assert manifest["format_version"] in (1, 2)
    assert digest == canonical_digest(manifest)
    assert manifest["segment_id"] == path.name
    assert manifest["spec_digest"] == spec_digest
    for entry in manifest["files"]:
        data = (path / entry["path"]).read_bytes()
        assert len(data) == entry["size"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def read_segment(path: Path) -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MANIFEST.json is no part of a Zarr hierarchy
        group = zarr.open_group(path, mode="r")
        arrays: dict[str, Any] = {name: array[...] for name, array in group.arrays()}
    for name in COLUMNS:
        categories: Any = group[f"episode_{name}"].attrs.get("categories")
        if categories is not None:
            arrays[f"episode_{name}"] = [categories[code] for code in arrays[f"episode_{name}"]]
    steps = ("action", "reward", "reward_terms", "terminated", "truncated")
    observations = ("vector", "sim_time", *(name for name in arrays if name.startswith("frame")))
    for i, length in enumerate(arrays["episode_length"]):
        offset = arrays["episode_offset"][i]
        episode = {name: arrays[f"episode_{name}"][i] for name in COLUMNS}
        for names, start, rows in ((steps, offset, length), (observations, offset + i, length + 1)):
            episode |= {n: arrays[n][start : start + rows] for n in names if n in arrays}
        yield episode


def read_dataset(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The spec and all episodes, in order."""
    ours = json.loads((path / "zarr.json").read_text())["attributes"]["avtd3"]
    assert ours["format_version"] == (2 if "streams" in ours["spec"] else 1)
    assert ours["spec_digest"] == canonical_digest(ours["spec"])
    found: list[dict[str, Any]] = []
    for segment in sorted((path / "segments").iterdir()):
        if not segment.name.startswith(".") and (segment / "MANIFEST.json").exists():
            check_segment(segment, ours["spec_digest"])
            found += read_segment(segment)
    return ours["spec"], found


def stacks(frames: Any, count: int, stride: int = 1) -> Any:
    """uint8 (T + 1, K, C, H, W): each observation's frames, clamped to the episode's first."""
    rows = np.arange(len(frames))[:, None] + stride * np.arange(1 - count, 1)
    return frames[np.maximum(rows, 0)]
