"""Open shards, never more than a few hundred at a time.

A dataset has thousands of shards and a process may open about a thousand files. Those drawn from
last stay open. A shard is read, not mapped: a mapping of a file that someone truncates kills the
process.
"""

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from avtd3.store.errors import StorageError

_MOST_OPEN = 512
_TOO_MANY = frozenset((errno.EMFILE, errno.ENFILE))


def descriptor_budget() -> int:
    """How many shards may be open at once: a quarter of what the process may open, at most 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(_MOST_OPEN, soft // 4 if soft > 0 else _MOST_OPEN))


class ShardFiles:
    """File descriptors of shards, the least recently used closed first."""

    def __init__(self, most: int | None = None) -> None:
        """Start with none open.

        Args:
            most: Most descriptors, at least 1; None for `descriptor_budget`.
        """
        self.most = most or descriptor_budget()
        self._open: OrderedDict[Path, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def descriptor(self, path: Path) -> int:
        """The descriptor of a shard; it stays valid until `most` others were asked for.

        Raises:
            OSError: The file is gone or cannot be opened.
            StorageError: The process has no descriptor left.
        """
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        if len(self._open) >= self.most:
            self._close_oldest()
        self._open[path] = self._open_file(path)
        return self._open[path]

    def keep(self, paths: Iterable[Path]) -> None:
        """Close all but these."""
        for path in self._open.keys() - set(paths):
            os.close(self._open.pop(path))

    def close(self) -> None:
        """Close all; safe to call twice."""
        self.keep(())

    def _open_file(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
            raise StorageError(
                f"{path} cannot be opened: {error.strerror}; {len(self._open)} shards of the "
                "replay are open; raise the limit with `ulimit -n` or use --replay cache"
            ) from error

    def _close_oldest(self) -> None:
        _, descriptor = self._open.popitem(last=False)
        os.close(descriptor)
