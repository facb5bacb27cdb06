"""HDF5 files: the layout of robomimic, import from that of D4RL, and guarded reading for both.

robomimic: a group ``data/demo_N`` for each episode, with ``obs/KEY`` and ``next_obs/KEY`` (T rows,
images as (T, H, W, C)), ``actions``, ``rewards`` and ``dones``
(https://robomimic.github.io/docs/datasets/overview.html). D4RL: ``observations``, ``actions``,
``rewards``, ``terminals`` and ``timeouts`` of all episodes, one after the other, and perhaps
``next_observations`` (https://github.com/Farama-Foundation/D4RL).
"""

import abc
import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import MissingPackageError, SpecError, abbreviate, import_extra
from avtd3.store.exchange.record import (
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
    choose_observations,
    parse_facts,
    text_of,
    to_float32,
    to_vectors,
)
from avtd3.store.files import canonical_json, open_regular, parse_json, sha256_of_file
from avtd3.store.spec import EpisodeSpec

H5: TypeAlias = Any
"""A file, group or array of h5py, which has no types."""
_FILTERS = (1, 2, 3, 32_000)  # deflate, shuffle, fletcher32, lzf: no plugin is loaded
_MAX_NODES = 1_000
_CHUNK_BYTES = 1 << 16


def import_h5py() -> H5:
    """Import h5py, or say how to install it."""
    return import_extra("h5py", "exchange", "the HDF5 format")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """Create an HDF5 file and fsync it at the end."""
    with import_h5py().File(path, "x") as file:
        yield file
    with path.open("rb") as written:
        os.fsync(written.fileno())


def put(group: H5, name: str, values: NDArray[Any]) -> None:
    """Write an array, compressed if it is large."""
    options: dict[str, Any] = {}
    if values.nbytes > _CHUNK_BYTES:
        rows = max(1, _CHUNK_BYTES // (values[0].nbytes or 1))
        options = {"compression": "gzip", "chunks": (min(len(values), rows), *values.shape[1:])}
    group.create_dataset(name, data=values, **options)


def put_steps(group: H5, record: EpisodeRecord, facts: bytes, **more: NDArray[Any]) -> None:
    """Write actions, rewards, more arrays, and the facts of an episode."""
    arrays = {"actions": record.actions, "rewards": record.rewards, **more}
    for name, values in (arrays | {FACTS: np.frombuffer(facts, np.uint8)}).items():
        put(group, name, values)


def put_extra(group: H5, record: EpisodeRecord) -> None:
    """Write the arrays that only avtd3 reads."""
    for name, values in record.extra.items():
        put(group, name, values)


def planes_last(record: EpisodeRecord) -> dict[str, NDArray[Any]]:
    """Return the observations by name: images uint8 (T + 1, H, W, C), vector (T + 1, V)."""
    found: dict[str, NDArray[Any]] = {
        key: np.ascontiguousarray(np.moveaxis(frames, 1, -1))
        for key, frames in record.images.items()
    }
    return found if record.vectors is None else {**found, "vector": record.vectors}


class RobomimicLayout(Layout):
    """Export to one HDF5 file in the layout of robomimic."""

    kept = (
        "terminated and truncated: arrays terminals and timeouts (dones is terminals)",
        f"{LISTED}: arrays of these names",
        "seed, end reason, policy, attributes, events: array avtd3 of each demo, JSON",
        "spec and provenance: array avtd3 of the file, JSON",
    )

    def __init__(self, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        import_h5py()

    def write_part(self, path: Path, number: int, record: EpisodeRecord, facts: bytes) -> None:
        """Write an episode into a new file."""
        with writing(path) as file:
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = record.length
            for key, values in planes_last(record).items():
                put(demo, f"obs/{key}", values[:-1])
                put(demo, f"next_obs/{key}", values[1:])
            terminals, timeouts = record.ends.astype(np.uint8)
            ends = {"dones": terminals, "terminals": terminals, "timeouts": timeouts}
            put_steps(demo, record, facts, **ends)
            put_extra(demo, record)

    def finish(
        self, folder: Path, parts: Sequence[Path], out: Path, document: Mapping[str, Any]
    ) -> Path:
        """Join the episodes' files; compressed chunks are copied as they are."""
        h5py, whole = import_h5py(), folder / "whole.hdf5"
        whole.unlink(missing_ok=True)
        with writing(whole) as file:
            data, total = file.create_group("data"), 0
            for number, path in enumerate(parts):
                with h5py.File(path, "r") as part:
                    part.copy(f"data/demo_{number}", data)
                total += int(data[f"demo_{number}"].attrs["num_samples"])
            data.attrs["total"] = total
            env = {"env_name": str(document["dataset"]), "type": 2, "env_kwargs": {}}
            data.attrs["env_args"] = canonical_json(env).decode()
            put(file, FACTS, np.frombuffer(canonical_json(document), np.uint8))
        return whole


class Hdf5File:
    """An HDF5 file from anywhere: arrays are checked before memory is allocated for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            open_regular(path).close()  # a pipe would block
            self._h5py = import_h5py()
            self.root = self._h5py.File(path, "r", locking="best-effort")

    def close(self) -> None:
        """Close the file."""
        self.root.close()

    def get(self, name: str) -> H5:
        """Return a group or array by path, or None; links out of the file are refused."""
        found = self.root
        for part in name.split("/"):
            if not isinstance(found, self._h5py.Group) or part not in found:
                return None
            if type(found.get(part, getlink=True)) is not self._h5py.HardLink:
                raise SpecError(f"{name} is a link, expected data; copy the file with h5repack")
            found = found[part]
        return found

    def is_group(self, node: object) -> bool:
        """Return whether a node is a group."""
        return isinstance(node, self._h5py.Group)

    def array(self, name: str) -> H5:
        """Return an array of numbers that can be read safely; `values` reads it."""
        node = self.get(name)
        if not isinstance(node, self._h5py.Dataset):
            raise SpecError(f"there is no array {abbreviate(name)}")
        plan = node.id.get_create_plist()
        filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
        if node.is_virtual or node.external or any(code not in _FILTERS for code in filters):
            raise SpecError(
                f"{name} is in another file, or compressed by other than gzip and lzf; copy the "
                "file with h5repack"
            )
        return node

    def values(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read an array of numbers, or some of its rows."""
        node = self.array(name)
        shape, dtype = node.shape, node.dtype
        if not shape or dtype.kind not in "iufb":
            raise SpecError(f"{name} is {dtype} {shape}, expected rows of numbers")
        taken = len(range(*rows.indices(shape[0])))
        check_size(name, (taken, *shape[1:]), dtype.itemsize)
        check_ratio(name, node.nbytes, node.id.get_storage_size())
        found: NDArray[Any] = node[rows]
        return found

    def leaves(self, group: str) -> dict[str, H5]:
        """Return the arrays below a group by their paths in it."""
        found: dict[str, H5] = {}
        waiting = [group]
        for _ in range(_MAX_NODES):
            if not waiting:
                return found
            path = waiting.pop()
            if self.is_group(node := self.get(path)):
                waiting += [f"{path}/{name}" for name in reversed(list(node)[:_MAX_NODES])]
            else:
                found[path[len(group) + 1 :]] = self.array(path)
        raise SpecError(f"it has more than {_MAX_NODES} groups and arrays")

    def text(self, name: str) -> bytes:
        """Return the JSON text in an array of avtd3; empty if there is none."""
        return b"" if self.get(name) is None else text_of(self.values(name))

    def extra(self, group: str) -> dict[str, Any]:
        """Return the fields of an `EpisodeRecord` from avtd3's own arrays."""
        return {
            field: self.values(f"{group}/{name}")
            for name, field in EXTRA.items()
            if self.get(f"{group}/{name}") is not None
        }


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into one clear error."""
    try:
        yield
    except (SpecError, MissingPackageError):
        raise
    except OSError as error:
        raise cannot_read(path, error, abbreviate(str(error), 300)) from error
    except (ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        raise SpecError(
            f"{path} is damaged, or not of the layout: {abbreviate(str(error), 300)}"
        ) from error


class FileSource(Source):
    """A source whose episodes are in one HDF5 file."""

    def __init__(self, path: Path, config: ImportConfig, file: Path) -> None:
        super().__init__(path, config)
        self.file = Hdf5File(file)

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of_file(self.file.path)

    def actions(self, number: int) -> NDArray[np.float32]:
        """Return the actions of an episode, float32 (T, A)."""
        with reading(self.file.path):
            return to_vectors(self.values(number, "actions"), "actions")

    def read(self, number: int) -> EpisodeRecord | None:
        """Read an episode."""
        with reading(self.file.path):
            return self.read_episode(number)

    @abc.abstractmethod
    def values(self, number: int, name: str) -> NDArray[Any]:
        """Read an array of an episode; like `read_episode`, it may raise what h5py raises."""

    @abc.abstractmethod
    def read_episode(self, number: int) -> EpisodeRecord | None:
        """Do what `read` does."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Hdf5Source(FileSource):
    """Import from one HDF5 file, in the layout of robomimic or of D4RL."""

    def __init__(self, path: Path, config: ImportConfig) -> None:
        super().__init__(path, config, path)
        with reading(path):
            if text := self.file.text(FACTS):
                document = parse_json(text, path)
                self.document = document if isinstance(document, dict) else {}
            data = self.file.get("data")
            if self.file.is_group(data):
                self._episodes: _Demos | _Flat = _Demos(self.file, data)
            elif self.file.get("observations") is not None:
                self._episodes = _Flat(self.file)
            else:
                names = abbreviate(list(self.file.root))
                raise SpecError(
                    f"{path} contains {names}; expected data/demo_N (robomimic) or observations, "
                    "actions, rewards and terminals (D4RL)"
                )
        self.count = self._episodes.count

    def values(self, number: int, name: str) -> NDArray[Any]:
        """Read an array of an episode."""
        return self._episodes.values(number, name)

    def read_episode(self, number: int) -> EpisodeRecord | None:
        """Read an episode."""
        episodes = self._episodes
        arrays = {key: (node.shape, node.dtype) for key, node in episodes.keys(number).items()}
        image, streams, vectors = choose_observations(arrays, self)
        chosen = [*([image] if image else []), *streams.values(), *vectors]
        observed = {key: episodes.values(number, f"obs/{key}") for key in chosen}
        actions = self.actions(number)
        rewards = to_float32(episodes.values(number, "rewards"), "rewards").reshape(-1)
        terminated = episodes.is_terminated(number)
        lengths = {len(values) for values in (*observed.values(), actions, rewards)}
        if len(lengths) != 1 or not min(lengths):
            raise SpecError(f"the arrays have {sorted(lengths)} rows, expected one number above 0")
        last = episodes.last_observation(number, chosen)
        is_cut = last is None and not terminated
        if is_cut:
            self.notices.add(
                "the last step of a cut episode is dropped: what followed is not stored"
            )
            actions, rewards = actions[:-1], rewards[:-1]
        elif last is None:
            self.notices.add("the observation after a terminal step repeats the one before it")
        if last is None:
            last = {key: values[-1:] for key, values in observed.items()}
        if not is_cut:
            observed = {k: np.concatenate([v, last[k]]) for k, v in observed.items()}
        if not len(actions):
            return None
        joined, self.vector_names = join_vectors({key: observed[key] for key in vectors})
        return EpisodeRecord(
            frames=None if image is None else planes_first(observed[image], image),
            streams={name: planes_first(observed[key], key) for name, key in streams.items()},
            vectors=joined,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            **episodes.extra(number),
            **({"truncated": not terminated} | episodes.facts(number)),
        )


def planes_first(frames: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return frames (T, H, W, C) or (T, H, W) as (T, C, H, W)."""
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4):
        raise SpecError(f"{name} is {frames.dtype} {frames.shape}, expected uint8 (T, H, W, C)")
    planes = frames[:, None] if frames.ndim == 3 else np.moveaxis(frames, -1, 1)
    return np.ascontiguousarray(planes)


def join_vectors(
    parts: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """Join arrays (T + 1, V) to one, and name its numbers; None without any."""
    found = {key: to_vectors(values, key) for key, values in parts.items()}
    names = tuple(f"{key}_{n}" for key, values in found.items() for n in range(values.shape[1]))
    return (np.concatenate(list(found.values()), axis=1) if found else None), names


class _Demos:
    """The episodes of robomimic's layout."""

    def __init__(self, file: Hdf5File, data: H5) -> None:
        self._file = file
        names = [name for name in data if re.fullmatch(r"demo_[0-9]{1,18}", name)]
        self._demos = [f"data/{name}" for name in sorted(names, key=lambda name: int(name[5:]))]
        self.count = len(self._demos)

    def values(self, number: int, name: str) -> NDArray[Any]:
        return self._file.values(f"{self._demos[number]}/{name}")

    def keys(self, number: int) -> dict[str, Any]:
        group = f"{self._demos[number]}/obs"
        if not self._file.is_group(self._file.get(group)):
            raise SpecError(f"{self._demos[number]} has no group obs; export its observations")
        return self._file.leaves(group)

    def is_terminated(self, number: int) -> bool:
        ours = f"{self._demos[number]}/terminals"  # dones may mark every end, also a time limit
        name = "dones" if self._file.get(ours) is None else "terminals"
        return bool(self.values(number, name)[-1:].any())

    def last_observation(self, number: int, keys: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        group = f"{self._demos[number]}/next_obs"
        if self._file.get(group) is None:
            return None
        return {key: self._file.values(f"{group}/{key}", slice(-1, None)) for key in keys}

    def extra(self, number: int) -> dict[str, Any]:
        return self._file.extra(self._demos[number])

    def facts(self, number: int) -> dict[str, Any]:
        text = self._file.text(f"{self._demos[number]}/{FACTS}")
        return parse_facts(text) if text else {}


class _Flat:
    """The episodes of D4RL's layout, which end where ``terminals`` or ``timeouts`` is set."""

    def __init__(self, file: Hdf5File) -> None:
        self._file = file
        self._terminals = file.values("terminals").reshape(-1).astype(np.bool_)
        ends = self._terminals.copy()
        if file.get("timeouts") is not None:
            timeouts = file.values("timeouts").reshape(-1)
            if timeouts.shape != ends.shape:
                raise SpecError("terminals and timeouts have different lengths")
            ends |= timeouts.astype(np.bool_)
        ends[-1:] = True
        stops = (np.flatnonzero(ends) + 1).tolist()
        self._rows = list(itertools.pairwise([0, *stops]))
        self.count = len(self._rows)

    def values(self, number: int, name: str) -> NDArray[Any]:
        plain = "observations" if name == "obs/observations" else name
        return self._file.values(plain, slice(*self._rows[number]))

    def keys(self, number: int) -> dict[str, Any]:
        return {"observations": self._file.array("observations")}

    def is_terminated(self, number: int) -> bool:
        return bool(self._terminals[self._rows[number][1] - 1])

    def last_observation(self, number: int, keys: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        if self._file.get("next_observations") is None:
            return None
        stop = self._rows[number][1]
        rows = self._file.values("next_observations", slice(stop - 1, stop))
        return dict.fromkeys(keys, rows)

    def extra(self, number: int) -> dict[str, Any]:
        return {}

    def facts(self, number: int) -> dict[str, Any]:
        return {}
