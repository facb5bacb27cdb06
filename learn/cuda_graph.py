"""`GraphedUpdate`: an update whose kernels are recorded once and replayed (CUDA graphs).

An update is some hundreds of kernels, most of which take less time than their launch. A recorded
one is a single launch; see https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. What
a recording cannot do is branch, take new tensors or new numbers. So

* each kind of update has a recording of its own, with the actor and without, for each weight of the
  imitation (while that fades, each is another, so updates of the actor stay plain);
* a batch is copied to where the recording reads, and what it says is copied from where it writes;
* learning rates are tensors to it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from avtd3.learn.batch import Batch
from avtd3.learn.td3 import TD3Config, TD3State, Update, update

WARM_UP = 3
"""Plain updates of each kind before it is recorded: they make the optimiser's moments and the
libraries' workspaces."""

Replay = Callable[[], None]
_Tree = TypeVar("_Tree")


def record(work: Replay) -> Replay:
    """Record a function's kernels without running them; returns what runs them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def updater(
    state: TD3State, config: TD3Config, autocast: torch.dtype | None, *, graphs: bool
) -> Callable[[Batch, Tensor], Update]:
    """What does the updates of a run: recorded on a GPU if `graphs`, plain anywhere else."""
    if graphs and state.skipped.is_cuda:
        return GraphedUpdate(state, config, autocast)
    return lambda batch, noise: update(state, batch, noise, config, autocast)


class GraphedUpdate:
    """Does what `avtd3.learn.td3.update` does, with learning rates rounded to float32.

    Args:
        state: What is updated, on one device. If a checkpoint is loaded into it afterwards, make
            another of these: the recordings write to the tensors of now.
        config: Settings.
        autocast: Type of the matrix products, float32 if None.
        recorder: Makes a recording; `record`, but for tests on machines without a GPU.
    """

    def __init__(
        self,
        state: TD3State,
        config: TD3Config,
        autocast: torch.dtype | None,
        recorder: Callable[[Replay], Replay] = record,
    ) -> None:
        self._state, self._config, self._autocast = state, config, autocast
        self._recorder = recorder
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._inputs: tuple[Batch, Tensor] | None = None
        groups = state.actor_optimizer.param_groups + state.critic_optimizer.param_groups
        self._groups: list[dict[str, Any]] = groups
        device = state.skipped.device
        self._rates = [torch.tensor(group["lr"], device=device) for group in groups]
        self._known = [group["lr"] for group in groups]

    def __call__(self, batch: Batch, noise: Tensor) -> Update:
        """One update; see `avtd3.learn.td3.update`.

        Args:
            batch: The transitions, always as many.
            noise: (B, A) standard normal, for the target policy smoothing.
        """
        number = self._state.updates + 1
        kind = self._kind(number)
        if kind is None or (kind.replay is None and kind.done < WARM_UP):
            if kind is not None:
                kind.done += 1
            with _aside(batch.reward.device):
                return update(self._state, batch, noise, self._config, self._autocast)
        if self._inputs is None:
            self._inputs = (_map(torch.clone, batch), noise.clone())
        for theirs, ours in zip(_tensors((batch, noise)), _tensors(self._inputs), strict=True):
            ours.copy_(theirs, non_blocking=True)
        if kind.replay is None:
            kind.replay = self._recorder(lambda: self._work(kind))
        self._set_rates()
        kind.replay()
        self._state.updates = number  # recording counts, replaying does not
        return kind.answer()

    def _kind(self, number: int) -> "_Kind | None":
        """Of which kind the update of that number is; None while imitation fades."""
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
            done = update(self._state, batch, noise, self._config, self._autocast)
        kind.written = done
        kind.flat = torch.cat([part.reshape(-1).float() for part in _tensors(done)])

    def _set_rates(self) -> None:
        for i, group in enumerate(self._groups):
            if group["lr"] != self._known[i]:
                self._known[i] = group["lr"]
                self._rates[i].fill_(group["lr"])

    @contextlib.contextmanager
    def _tensor_rates(self) -> Iterator[None]:
        """Let the optimisers read the rates from the device meanwhile."""
        numbers = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number


class _Kind:
    """One kind of update: its recording, and where that writes."""

    def __init__(self) -> None:
        self.done = 0
        self.replay: Replay | None = None
        self.written: Update | None = None
        self.flat: Tensor | None = None

    def answer(self) -> Update:
        """What the recording wrote, in memory of its own: one copy instead of thirty."""
        assert self.written is not None
        assert self.flat is not None
        flat, begin = self.flat.clone(), 0

        def take(part: Tensor) -> Tensor:
            nonlocal begin
            begin += part.numel()
            return flat[begin - part.numel() : begin].view(part.shape).to(part.dtype)

        return _map(take, self.written)


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Run on another stream than usual, as what precedes a recording has to."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not annotate it
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def _map(change: Callable[[Tensor], Tensor], tree: _Tree) -> _Tree:
    """The same nest of dataclasses and tuples, of changed tensors."""
    if isinstance(tree, Tensor):
        return change(tree)  # type: ignore[return-value]  # a tensor again
    if isinstance(tree, tuple):
        return tuple(_map(change, item) for item in tree)  # type: ignore[return-value]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        values = {f.name: _map(change, getattr(tree, f.name)) for f in dataclasses.fields(tree)}
        return type(tree)(**values)
    return tree


def _tensors(tree: object) -> list[Tensor]:
    """The tensors of a nest, in the order of its fields."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(note, tree)
    return found
