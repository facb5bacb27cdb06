"""`Ranks`: the processes that train one run together, as ``torchrun`` starts them.

Each rank samples its own part of every batch and averages its gradients with those of the others,
so that W ranks with batches of B do what one rank with batches of W * B does. Rank 0 decides what
happens next; it alone publishes policies and writes the files of the run. A single process is a
`Ranks` of size 1, whose methods return what they are given.
"""

import contextlib
import datetime
import enum
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avtd3.store.errors import RankLostError, abbreviate

TIMEOUT_S = 60.0
"""Seconds within an update after which a rank that does not answer is lost."""
PATIENCE_S = 600.0
"""The same between two updates, where rank 0 saves, publishes and evaluates."""
START_S = 86_400.0
"""The same at the start, while the ranks read the datasets."""
CHECK_EVERY = 100
"""Updates between two comparisons of the weights of all ranks."""
_GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of ``torchrun``."""


class Order(enum.IntEnum):
    """What all ranks do next. If they ask for different things, the largest number wins."""

    UPDATE = 0
    WAIT = 1
    REFRESH = 2
    """Look for new segments, and let all ranks sample from the same ones."""
    LOAD = 3
    """Take over the networks of rank 0."""
    END = 4


class Ranks:
    """This process and the others that train the same run.

    Example:
        >>> ranks = Ranks()
        >>> ranks.is_first, ranks.agree(Order.WAIT, 5)
        (True, (<Order.WAIT: 1>, [True]))
    """

    def __init__(self, rank: int = 0, size: int = 1, between: Any = None) -> None:  # noqa: ANN401
        self.rank, self.size = rank, size
        self._between = between  # a process group of torch, on CPUs

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, publishes and writes."""
        return self.rank == 0

    def own(self, whole: Tensor) -> Tensor:
        """Return the part of this rank of a tensor (W * B, ...): (B, ...)."""
        count = len(whole) // self.size
        return whole[self.rank * count : (self.rank + 1) * count]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all ranks of a tensor of any shape, without a gradient."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        with self._answers():
            dist.all_reduce(total)
        return total.div_(self.size)

    def smallest(self, value: Tensor) -> Tensor:
        """Return the minimum over all ranks, element by element."""
        if self.size == 1:
            return value
        least = value.clone()
        with self._answers():
            dist.all_reduce(least, dist.ReduceOp.MIN)
        return least

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over all ranks, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([each.reshape(-1) for each in gradients]))
        parts = torch.split(flat, [each.numel() for each in gradients])
        averaged = [part.view(each.shape) for part, each in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, averaged)

    def whole(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors (B, ...) of all ranks as (W * B, ...), and the means of scalars."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([each.detach().reshape(-1) for each in tensors])
        gathered = flat.new_empty(self.size * flat.numel())
        with self._answers():
            dist.all_gather(list(gathered.view(self.size, -1)), flat)
        columns = torch.split(gathered.view(self.size, -1), [t.numel() for t in tensors], dim=1)
        return [
            column.mean().to(own.dtype)
            if own.ndim == 0
            else column.reshape(-1, *own.shape[1:]).to(own.dtype)
            for own, column in zip(tensors, columns, strict=True)
        ]

    def agree(self, order: Order, *checks: int) -> tuple[Order, list[bool]]:
        """Return the largest order of all ranks, and whether all give the same for each check."""
        if self.size == 1:
            return order, [True for _ in checks]
        numbers = torch.tensor([order, *checks, *(-check for check in checks)])
        with self._answers():
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._between)
        largest, *bounds = numbers.tolist()
        highest, lowest = bounds[: len(checks)], bounds[len(checks) :]
        return Order(largest), [high == -low for high, low in zip(highest, lowest, strict=True)]

    def share(self, document: Any, *, source: int = 0) -> Any:  # noqa: ANN401 - JSON
        """Return what one rank gives: JSON values."""
        if self.size == 1:
            return document
        return json.loads(self.share_bytes(json.dumps(document).encode(), source=source))

    def share_bytes(self, data: bytes, *, source: int = 0) -> bytes:
        """Return the bytes that one rank gives; those of the others are ignored."""
        if self.size == 1:
            return data
        count = torch.tensor([len(data)])
        with self._answers():
            dist.broadcast(count, source, group=self._between)
            buffer = torch.empty(int(count), dtype=torch.uint8)
            if source == self.rank:
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            dist.broadcast(buffer, source, group=self._between)
        return buffer.numpy().tobytes()

    def gather(self, document: Any) -> list[Any]:  # noqa: ANN401 - JSON
        """Return what each rank gives: JSON values."""
        return [self.share(document, source=rank) for rank in range(self.size)]

    def meet(self) -> None:
        """Wait until all ranks are here, for as long as it takes to read the datasets."""
        if self.size > 1:
            with self._answers():
                patience = datetime.timedelta(seconds=START_S)
                dist.monitored_barrier(self._between, timeout=patience)

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn torch's errors of a rank that is gone into a `RankLostError`."""
        try:
            yield
        except RuntimeError as error:
            found = abbreviate(str(error).partition("\n")[0], 200)
            raise RankLostError(
                f"rank {self.rank} of {self.size}: another rank has ended or does not answer "
                f"({found}); see its own message"
            ) from error


ALONE = Ranks()
"""A run in a single process."""


@contextlib.contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Yield the ranks that ``torchrun`` started, those of the process group, or `ALONE`."""
    if dist.is_initialized():
        yield _join()
        return
    if not all(name in os.environ for name in _GIVEN) or int(os.environ["WORLD_SIZE"]) < 2:
        yield ALONE
        return
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_nccl else "gloo", timeout=timeout)
    yield _join()
    dist.destroy_process_group()  # not after an error: other ranks may wait for this one's end


def _join() -> Ranks:
    if dist.get_world_size() == 1:
        return ALONE
    patience = datetime.timedelta(seconds=PATIENCE_S)
    between = dist.new_group(backend="gloo", timeout=patience)
    return Ranks(dist.get_rank(), dist.get_world_size(), between)


def local_rank() -> int | None:
    """Return the number of this rank on its machine; None outside ``torchrun``."""
    text = os.environ.get("LOCAL_RANK", "")
    return int(text) if text.isdecimal() and dist.is_initialized() else None


def digest(tensors: Iterable[Tensor]) -> int:
    """Return a number, 0 or above, that differs if a bit of the tensors differs."""
    found = hashlib.blake2b(digest_size=7)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest())


def hash_of(document: Any) -> int:  # noqa: ANN401 - JSON
    """Return a number, 0 or above, that differs if JSON values differ."""
    text = json.dumps(document, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
