"""Other readers of the very same shards, for `replay_bench.py`: tensorstore, zarrs, zarr-python.

Each reads the window of every transition of a batch from a dataset's ``frames`` as one slice,
which all of them do faster than any fancy index; actions and rewards come from memory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import Drawn, Material, Peer

from avtd3.store.dataset import Dataset

Window = tuple[int, int, int]
"""Number of a segment, and the first frame of a window in it and the one behind its last."""
Read = Callable[[Sequence[Window]], list[NDArray[np.uint8]]]
"""Frames of windows, each uint8 (frames, C, H, W)."""


def make_tensorstore(material: Material, _: Path) -> Peer:
    """tensorstore, all reads of a batch in flight at once."""
    import tensorstore

    stores = []
    for path in _arrays(material):
        kvstore = {"driver": "file", "path": f"{path}/"}
        stores.append(tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result())

    def read(windows: Sequence[Window]) -> list[NDArray[np.uint8]]:
        jobs = [stores[number][low:high].read() for number, low, high in windows]
        return [job.result() for job in jobs]

    return _peer(material, read)


def make_zarrs(material: Material, _: Path) -> Peer:
    """zarr-python with the codec pipeline of zarrs."""
    import zarr
    import zarrs  # noqa: F401 - registers its pipeline

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return make_zarr(material, _)


def make_zarr(material: Material, _: Path) -> Peer:
    """zarr-python as it is installed."""
    import zarr

    arrays = [zarr.open_array(path, mode="r", zarr_format=3) for path in _arrays(material)]

    def read(windows: Sequence[Window]) -> list[NDArray[np.uint8]]:
        return [np.asarray(arrays[number][low:high]) for number, low, high in windows]

    return _peer(material, read)


def _arrays(material: Material) -> list[Path]:
    """Directory of each segment's frames, in the order of the material."""
    segments = Dataset.open(material.path).snapshot().segments
    return [segment.path / "frames" for segment in segments]


def _peer(material: Material, read: Read) -> Peer:
    rng = np.random.default_rng(0)
    rows, stack = material.rows(), material.stack
    first = np.repeat(material.first, material.lengths)
    segments = Dataset.open(material.path).snapshot().segments
    ends = np.cumsum([segment.observations for segment in segments])
    starts = ends - [segment.observations for segment in segments]

    def draw() -> Drawn:
        step = rng.integers(0, material.steps, material.batch)
        row = rows[step]
        low = np.maximum(row - stack + 1, first[step])
        number = ends.searchsorted(row, side="right")
        start = starts[number]
        windows = np.stack([number, low - start, row + 2 - start], axis=1).tolist()
        frames = np.empty((material.batch, stack + 1, *material.frames.shape[1:]), np.uint8)
        for place, window in zip(frames, read(windows), strict=True):
            place[-len(window) :] = window
            place[: -len(window)] = window[0]
        shape = (material.batch, -1, *material.frames.shape[2:])
        return Drawn(
            observation=frames[:, :-1].reshape(shape),
            next_observation=frames[:, 1:].reshape(shape),
            action=material.action[step],
            reward=material.reward[step],
        )

    def is_ours(drawn: Any) -> Drawn:  # noqa: ANN401 - a Drawn already
        return drawn

    files = sum((path / "c/0/0/0/0").stat().st_size for path in _arrays(material))
    small = material.action.nbytes + material.reward.nbytes + rows.nbytes + first.nbytes
    return Peer(draw=draw, read=is_ours, memory_bytes=small, disk_bytes=files)
