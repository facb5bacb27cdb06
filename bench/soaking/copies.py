"""Copies as a bad tool makes them, and the process that reads the copies meanwhile."""

import contextlib
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from soaking.ledger import Ledger

from avtd3.store.remote.client import RemotePlace


class Target(Protocol):
    """Where copies go."""

    def begin(self, key: str, data: bytes, size_bytes: int) -> None:
        """Write the first bytes of a file, which gets zeros up to a size."""

    def complete(self, key: str, data: bytes) -> None:
        """Write all of a file."""


class Directory:
    """A directory, in whose files the missing bytes are filled in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        (path / "segments").mkdir(parents=True)

    def begin(self, key: str, data: bytes, size_bytes: int) -> None:
        """Write the first bytes of a file."""
        (self._path / key).parent.mkdir(parents=True, exist_ok=True)
        with (self._path / key).open("wb") as out:
            out.write(data)
            out.truncate(size_bytes)

    def complete(self, key: str, data: bytes) -> None:
        """Write the other bytes in place."""
        if not (self._path / key).exists():
            self.begin(key, b"", 0)
        with (self._path / key).open("r+b") as out:
            out.write(data)


class Prefix:
    """A prefix of a bucket, whose objects are replaced."""

    def __init__(self, place: RemotePlace) -> None:
        self._place = place

    def begin(self, key: str, data: bytes, size_bytes: int) -> None:
        """Put an object that is not whole."""
        self._place.write(key, data.ljust(size_bytes, b"\0"))

    def complete(self, key: str, data: bytes) -> None:
        """Put the whole object."""
        self._place.write(key, data)


class Copier:
    """Copies segments from the ledger in halves and in random order."""

    def __init__(self, ledger: Ledger, target: Target, rng: random.Random) -> None:
        self.ledger, self._target, self._random = ledger, target, rng
        self.names: list[str] = []
        self._todo: list[Iterator[None]] = []

    def add(self, name: str) -> None:
        """Begin to copy a segment."""
        if not self.names:
            self._target.complete("zarr.json", (self.ledger.path / "zarr.json").read_bytes())
        self.names.append(name)
        self._todo.append(self._copy(name))

    def work(self, operations: int) -> bool:
        """Do some operations of copies that are drawn; return whether any are left."""
        for _ in range(operations):
            if not self._todo:
                return False
            at = self._random.randrange(len(self._todo))
            if next(self._todo[at], "done") == "done":
                del self._todo[at]
        return bool(self._todo)

    def _copy(self, name: str) -> Iterator[None]:
        root = self.ledger.path / "segments" / name
        files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        way = self._random.choice(("halves", "halves", "sizes first", "whole"))
        self._random.shuffle(files)
        for file in files if way != "whole" else ():
            data = (root / file).read_bytes()
            half = len(data) // 2
            size_bytes = len(data) if way == "sizes first" else half
            self._target.begin(f"segments/{name}/{file}", data[:half], size_bytes)
            yield
        self._random.shuffle(files)
        for file in files:
            self._target.complete(f"segments/{name}/{file}", (root / file).read_bytes())
            yield


def follow(copies: str, folder: Path) -> None:
    """Follow the copies with a sampler until SIGTERM; write what it has into a file now and then.

    Args:
        copies: Directory or URL; of a URL, a mirror in the folder is followed.
        folder: Where ``reader.json`` is written.
    """
    from avtd3.store.dataset import Dataset
    from avtd3.store.errors import Avtd3Error
    from avtd3.store.files import remote_url
    from avtd3.store.remote import background, log
    from avtd3.store.replay.config import ReplayConfig
    from avtd3.store.replay.sampler import Sampler

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    answer = folder / "reader.json"
    with contextlib.ExitStack() as stack:
        path, mirror = Path(copies), None
        if remote_url(copies) is not None:
            # What a soak of minutes must see: copies have no log, and are damaged for a while.
            log.BACKSTOP_S, background._RETRY_S = 10.0, 10.0
            path = folder / "reader-mirror"
            mirror = background.Mirror(copies, path, max_bytes=1 << 40, steps=1 << 40)
        while not stopped:
            try:
                if mirror is not None:
                    stack.enter_context(mirror)
                    mirror = None
                sampler = Sampler(
                    [Dataset.open(path)], ReplayConfig(batch_size=32, mode="direct"), seed=0
                )
                break
            except Avtd3Error as error:
                print(f"waiting: {error}"[:300], flush=True)
                time.sleep(1.0)
        else:
            return
        stack.enter_context(sampler)
        while not stopped:
            sampler.refresh()
            if sampler.steps:
                batch = sampler.sample()
                assert len(batch.reward) == 32
            document = {"steps": sampler.steps, "refused": [r.reason for r in sampler.refused]}
            aside = answer.with_suffix(".tmp")
            aside.write_text(json.dumps(document))
            aside.rename(answer)
            time.sleep(0.2)
