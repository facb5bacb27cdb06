"""`ReplayDataset`: batches of transitions or sequences for a PyTorch `DataLoader`."""

import dataclasses
import difflib
import itertools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.gather import SequenceBatch, StreamBatch, Transitions
from avtd3.store.replay.sampler import Sampler


class ReplayBatch(NamedTuple):
    """A batch of B transitions as tensors that stay valid; see `avtd3.store.Transitions`."""

    observation_frames: Tensor | None
    """uint8 (B, K*C, H, W), oldest frame first; None without an image. It may share memory with
    `next_observation_frames`, so do not modify it in place."""
    observation_vector: Tensor | None
    """float32 (B, V); None without a vector."""
    action: Tensor
    """float32 (B, A)."""
    reward: Tensor
    """float32 (B,), n-step reward."""
    discount: Tensor
    """float32 (B,), weight of the next observation's value: ``gamma**m``, or 0 if terminated."""
    next_observation_frames: Tensor | None
    """uint8 (B, K*C, H, W); None without an image."""
    next_observation_vector: Tensor | None
    """float32 (B, V); None without a vector."""
    bc_mask: Tensor | None
    """float32 (B,), 1 where the action is marked for imitation, else 0; None if all are."""
    bc_action: Tensor | None
    """float32 (B, A), the action to imitate; None unless ``imitate_expert`` is set."""
    streams: Mapping[str, tuple[Tensor, Tensor]] | None = None
    """Frames before and after, as the two above, of each of several streams by name. With several
    streams, the two above are None; with one, this is."""


class ReplaySequences(NamedTuple):
    """A batch of S sequences of L consecutive steps as tensors that stay valid."""

    frames: Tensor | None
    """uint8 (S, K + L, C, H, W), single frames; the stack before step i is ``frames[:, i:i + K]``.
    None without an image. With a stride, K is ``(K - 1) * stride + 1``."""
    vector: Tensor | None
    """float32 (S, L + 1, V); None without a vector."""
    action: Tensor
    """float32 (S, L, A)."""
    reward: Tensor
    """float32 (S, L)."""
    terminated: Tensor
    """bool (S, L)."""
    truncated: Tensor
    """bool (S, L)."""
    bc_mask: Tensor | None
    """float32 (S,), 1 where the actions are marked for imitation, else 0; None if all are."""
    streams: Mapping[str, Tensor] | None = None
    """Single frames, as `frames`, of each of several streams by name. With several streams,
    `frames` is None; with one, this is."""


class ReplayDataset(IterableDataset[ReplayBatch | ReplaySequences]):
    """Yields complete batches from one or several avtd3 datasets.

    Use it with ``DataLoader(dataset, batch_size=None, num_workers=...)``. Each worker process opens
    its own sampler and samples its own batches. Workers share the decoded frames on disk. Iterating
    over the dataset itself works, too.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from torch.utils.data import DataLoader
        >>> from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create(tempfile.mkdtemp(), spec)
        >>> with SegmentWriter(dataset) as writer:
        ...     writer.begin(Observation(vector=np.zeros(1, np.float32)))
        ...     after = Observation(vector=np.ones(1, np.float32))
        ...     writer.step(np.zeros(1, np.float32), 1.0, after, terminated=True)
        >>> replay = ReplayDataset(dataset.path, batch_size=4, n_step=3, batches=2)
        >>> for batch in DataLoader(replay, batch_size=None):
        ...     print(batch.reward.tolist())
        [1.0, 1.0, 1.0, 1.0]
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        seed: int | None = None,
        batches: int | None = None,
        refresh_s: float | None = None,
        **replay: Any,  # noqa: ANN401 - the fields of ReplayConfig, checked there
    ) -> None:
        """Open the datasets; no frames are read before the first batch.

        Args:
            paths: Directory of a dataset, or several directories.
            seed: Worker w samples with ``seed + w``, the same batches in each pass. None: each pass
                draws a new seed from torch's generator of the process, which `torch.manual_seed`
                makes reproducible.
            batches: Number of batches in one pass, divided among the workers; None
                for endless passes.
            refresh_s: Minimum seconds between two checks for new segments; None for none.
            **replay: Fields of `ReplayConfig`, such as ``batch_size=256``, ``n_step=3``,
                ``filter=("end=goal",)`` or ``sequence_length=8``. With ``sequence_length``,
                batches are `ReplaySequences`, and else `ReplayBatch`.

        Raises:
            ConfigError: An argument does not exist or has an invalid value.
            DatasetError: A path is not a dataset.
        """
        names = [field.name for field in dataclasses.fields(ReplayConfig)]
        for name in replay.keys() - set(names):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
            raise ConfigError(f"ReplayDataset has no argument {name!r}; {hint}")
        self.config = ReplayConfig(**replay)
        if self.config.prioritised:
            raise ConfigError(
                "ReplayDataset cannot sample by priority, because workers do not see TD errors; "
                "use avtd3.store.Sampler"
            )
        if batches is not None and batches < 0:
            raise ConfigError(f"batches is {batches}, expected a number >= 0, or None")
        if refresh_s is not None and not refresh_s >= 0.0:
            raise ConfigError(f"refresh_s is {refresh_s}, expected seconds >= 0, or None")
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise ConfigError("ReplayDataset needs at least one path, found none")
        self._datasets = [Dataset.open(path) for path in listed]
        self._seed, self._batches, self._refresh_s = seed, batches, refresh_s
        self.spec = self.config.view(self._datasets[0].spec)

    def __iter__(self) -> Iterator[ReplayBatch | ReplaySequences]:
        """Yield the batches of this worker; in the main process, yield all batches.

        Raises:
            NoSegmentsError: The datasets have no transitions that can be sampled.
        """
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if self._seed is None:  # torch's default generator differs in each worker and pass
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
        else:
            seed = self._seed + number
        own = None if self._batches is None else len(range(number, self._batches, workers))
        grows = self._refresh_s is not None
        with Sampler(self._datasets, self.config, seed=seed, buffers=1, grows=grows) as sampler:
            refreshed_s = time.monotonic()
            for _ in itertools.count() if own is None else range(own):
                now_s = time.monotonic()
                if self._refresh_s is not None and now_s - refreshed_s >= self._refresh_s:
                    sampler.refresh()
                    refreshed_s = now_s
                if self.config.sequence_length:
                    yield _to_sequences(sampler.sample_sequences())
                else:
                    yield _to_batch(sampler.sample())

    def __repr__(self) -> str:
        paths = ", ".join(str(dataset.path) for dataset in self._datasets)
        return f"ReplayDataset({paths}, batch_size={self.config.batch_size})"


def _to_batch(batch: Transitions) -> ReplayBatch:
    stacks: dict[str, Any] = {"observation_frames": None, "next_observation_frames": None}
    several = {name: _stacks(stream) for name, stream in batch.streams.items()}
    if len(several) == 1:
        stacks = dict(zip(stacks, several.popitem()[1], strict=True))
    stacks["streams"] = several or None
    return ReplayBatch(**stacks, **_copies(batch, ReplayBatch._fields, without=stacks))


def _stacks(stream: StreamBatch) -> tuple[Tensor, Tensor]:
    assert stream.frames is not None
    assert stream.observation is not None
    planes = stream.observation.shape[1]
    frames = _copy(stream.frames).flatten(1, 2)  # (B, W*C, H, W)
    return frames[:, :planes], frames[:, -planes:]


def _to_sequences(sequences: SequenceBatch) -> ReplaySequences:
    several = {name: _copy(frames) for name, frames in sequences.streams.items()}
    copied = _copies(sequences, ReplaySequences._fields, without=("streams",))
    return ReplaySequences(**copied, streams=several if len(several) > 1 else None)


def _copies(batch: object, names: Iterable[str], without: Collection[str] = ()) -> dict[str, Any]:
    """Return copies of the arrays of a batch as tensors, by name; None stays None."""
    arrays = {name: getattr(batch, name) for name in names if name not in without}
    return {name: None if a is None else _copy(a) for name, a in arrays.items()}


def _copy(array: NDArray[Any]) -> Tensor:
    """Return a contiguous copy: the sampler reuses its buffers, and arrays may be views."""
    return torch.from_numpy(np.array(array, order="C"))
