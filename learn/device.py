"""Choose the device, the precision and the memory allocator; record updates on a GPU."""

import contextlib
import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from avtd3.learn.batch import Batch
from avtd3.learn.ranks import ALONE, Ranks, local_rank
from avtd3.learn.td3 import TD3Config, TD3State, Update, update
from avtd3.store.errors import ConfigError, abbreviate

PRECISIONS = ("auto", "fp32", "bf16")
_NATIVE_BF16 = {"amx_bf16", "avx512_bf16"}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # see malloc.h
_NEVER = 2**31 - 1
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation",
)
"""Texts of torch's errors of type RuntimeError that are about memory."""


def keep_freed_memory() -> bool:
    """Make this process keep large freed blocks of memory; return whether the C library can.

    By default, glibc returns them to the system, which then clears each page again. This takes 12 %
    of an update from images (`bench/learn_bench.py`). Now, the process keeps its peak memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


@contextlib.contextmanager
def memory_errors(asked: str) -> Iterator[None]:
    """Turn every error about memory into a `MemoryError` that says what was asked for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            sign in text for sign in _NO_MEMORY
        ):
            raise
        found = abbreviate(text.partition("\n")[0], 200)
        raise MemoryError(f"not enough memory ({found}) for {asked}") from error


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA if available, else the CPU.

    Under ``torchrun``, each rank of a machine has its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := local_rank()) is not None:
        name = f"cuda:{number}"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"learn.device is {name!r}, expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"learn.device is {name!r}, but this machine has {torch.cuda.device_count()} GPUs; use "
            "auto, and start as many ranks as there are GPUs"
        )
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type of matrix products: bfloat16, or None for float32.

    ``auto`` is bfloat16 if the hardware multiplies it natively. Emulation is slower than float32.
    """
    is_bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))
    return torch.bfloat16 if is_bf16 else None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return bool(_NATIVE_BF16.intersection(flags.split()))


WARM_UP = 3
"""Number of plain updates of each kind before recording. They create the optimiser's moments and
the libraries' workspaces."""

Replay = Callable[[], None]
_Tree = TypeVar("_Tree")


def record(work: Replay) -> Replay:
    """Record the kernels of a function without running them; return a function that runs them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def make_updater(
    state: TD3State,
    config: TD3Config,
    autocast: torch.dtype | None,
    *,
    algorithm: str = "td3",
    graphs: bool,
    ranks: Ranks = ALONE,
) -> Callable[[Batch, Tensor], Update]:
    """Return the update function of a run: recorded if `graphs` is set and there is a GPU.

    Messages between ranks cannot be recorded.
    """
    if graphs and state.skipped.is_cuda and ranks.size == 1:
        return GraphedUpdate(state, config, autocast, algorithm=algorithm)
    return lambda batch, noise: update(state, batch, noise, config, autocast, algorithm, ranks)


def gather(ranks: Ranks, batch: Batch, done: Update) -> tuple[Batch, Update]:
    """Return an update as one rank with the whole batch has it, and a batch with its discounts.

    The observations and actions of the batch stay those of this rank.
    """
    if ranks.size == 1:
        return batch, done
    own = (done.critic, done.actor, done.reward, batch.discount)
    found = iter(ranks.whole(_tensors(own)))
    critic, actor, reward, discount = map_tensors(lambda _: next(found), own)
    done = dataclasses.replace(done, critic=critic, actor=actor, reward=reward)
    return dataclasses.replace(batch, discount=discount), done


class GraphedUpdate:
    """Do the same as `avtd3.learn.td3.update`, with learning rates rounded to float32.

    An update launches hundreds of kernels, most of which take less time than their launch.
    Replaying a recording (a CUDA graph) is a single launch. It cannot branch, and cannot take new
    tensors or numbers. Therefore there is one recording for each kind of update: with and without
    the actor, and for each weight of the imitation term. While that weight changes, actor updates
    are not recorded. Batches and results are copied, and learning rates are tensors.

    After loading a checkpoint into the state, create a new `GraphedUpdate`: recordings write to the
    tensors that existed when they were made. Tests without a GPU replace the recorder.
    """

    def __init__(
        self,
        state: TD3State,
        config: TD3Config,
        autocast: torch.dtype | None,
        recorder: Callable[[Replay], Replay] = record,
        algorithm: str = "td3",
    ) -> None:
        self._state, self._config = state, config
        self._autocast, self._algorithm = autocast, algorithm
        self._recorder = recorder
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._inputs: tuple[Batch, Tensor] | None = None
        groups = state.actor_optimizer.param_groups + state.critic_optimizer.param_groups
        self._groups: list[dict[str, Any]] = groups
        device = state.skipped.device
        self._rates = [torch.tensor(group["lr"], device=device) for group in groups]
        self._known = [group["lr"] for group in groups]

    def __call__(self, batch: Batch, noise: Tensor) -> Update:
        """Do one update; see `avtd3.learn.td3.update`. Every batch has the same size."""
        number = self._state.updates + 1
        kind = self._kind(number)
        if kind is None or (kind.replay is None and kind.done < WARM_UP):
            if kind is not None:
                kind.done += 1
            with _side_stream(batch.reward.device):
                return self._plain(batch, noise)
        if self._inputs is None:
            self._inputs = (map_tensors(torch.clone, batch), noise.clone())
        for source, target in zip(_tensors((batch, noise)), _tensors(self._inputs), strict=True):
            target.copy_(source, non_blocking=True)
        if kind.replay is None:
            kind.replay = self._recorder(lambda: self._work(kind))
        self._set_rates()
        kind.replay()
        self._state.updates = number  # recording increments it, replaying does not
        return kind.result()

    def _plain(self, batch: Batch, noise: Tensor) -> Update:
        return update(self._state, batch, noise, self._config, self._autocast, self._algorithm)

    def _kind(self, number: int) -> "_Kind | None":
        """Return the kind of an update; None for actor updates while imitation fades."""
        config = self._config
        has_actor = number % config.policy_delay == 0
        sets_range = bool(config.target_clip_every) and number % config.target_clip_every == 0
        if has_actor and config.bc_fade_from < number < config.bc_fade_until:
            return None
        weight = config.bc_weight_at(number) if has_actor else None
        return self._kinds.setdefault((has_actor, sets_range, weight), _Kind())

    def _work(self, kind: "_Kind") -> None:
        assert self._inputs is not None
        batch, noise = self._inputs
        with self._tensor_rates():
            done = self._plain(batch, noise)
        kind.written = done
        kind.flat = torch.cat([part.reshape(-1).float() for part in _tensors(done)])

    def _set_rates(self) -> None:
        for i, group in enumerate(self._groups):
            if group["lr"] != self._known[i]:
                self._known[i] = group["lr"]
                self._rates[i].fill_(group["lr"])

    @contextlib.contextmanager
    def _tensor_rates(self) -> Iterator[None]:
        """Give the optimisers learning rates on the device within a ``with`` block."""
        numbers = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number


@dataclasses.dataclass(slots=True)
class _Kind:
    """One kind of update: its recording, and the tensors to which it writes."""

    done: int = 0
    replay: Replay | None = None
    written: Update | None = None
    flat: Tensor | None = None

    def result(self) -> Update:
        """Return a copy of what the recording wrote, made by one kernel instead of thirty."""
        assert self.written is not None
        assert self.flat is not None
        flat, begin = self.flat.clone(), 0

        def take(part: Tensor) -> Tensor:
            nonlocal begin
            begin += part.numel()
            return flat[begin - part.numel() : begin].view(part.shape).to(part.dtype)

        return map_tensors(take, self.written)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Run on a side stream, as required before recording."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not annotate it
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def map_tensors(change: Callable[[Tensor], Tensor], tree: _Tree) -> _Tree:
    """Apply a function to every tensor of a nest of dataclasses, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return change(tree)  # type: ignore[return-value]  # a tensor again
    if isinstance(tree, tuple):
        return tuple(map_tensors(change, item) for item in tree)  # type: ignore[return-value]
    if isinstance(tree, dict):
        return {k: map_tensors(change, v) for k, v in tree.items()}  # type: ignore[return-value]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        values = {
            f.name: map_tensors(change, getattr(tree, f.name)) for f in dataclasses.fields(tree)
        }
        return type(tree)(**values)
    return tree


def _tensors(tree: object) -> list[Tensor]:
    """Return the tensors of a nest, in the order of its fields."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, tree)
    return found
