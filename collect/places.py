"""`CollectPlaces`: the directories of this machine that stand for the URLs of a collection."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from avtd3.collect.plan import claimed_units, held_episodes
from avtd3.store.cluster import check_shared
from avtd3.store.dataset import Dataset
from avtd3.store.files import remote_url, show_path
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.remote.background import Background, PolicyPull, Spool, SpoolSize, spool_path
from avtd3.store.remote.client import LocalPlace, check_reachable, open_place
from avtd3.store.remote.commit import Unit
from avtd3.store.remote.transfer import create_dataset
from avtd3.store.render.text import plural
from avtd3.store.spec import EpisodeSpec


class CollectPlaces:
    """The directories of this machine that stand for the URLs of a collection.

    Use it as a context manager. Segments for a URL are written to a spool and uploaded by a thread;
    another thread copies new policies from theirs.
    """

    def __init__(
        self,
        dataset: Path | str,
        policies: Path | str | None,
        *,
        spool: str = "",
        spool_bytes: int | None = None,
        unit: Unit | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._should_stop = should_stop
        self.text = show_path(dataset)
        """The dataset, for messages."""
        self.policies_text = None if policies is None else show_path(policies)
        """The policies, for messages and for a resume."""
        self.dataset = collection_path(dataset, spool)
        """Directory that segments are written to."""
        self.policies = None if policies is None else Path(policies)
        """Directory that policies are read from."""
        url, policies_url = remote_url(dataset), remote_url(policies)
        self._stack = contextlib.ExitStack()
        self._spool = None if url is None else Spool(url, self.dataset, unit=unit)
        self.spool_bytes = None if url is None else spool_bytes
        """Largest size of the spool; None for a dataset on this machine."""
        self._size: SpoolSize | None = None
        self._pull: PolicyPull | None = None
        if policies_url is not None:
            temporary = tempfile.TemporaryDirectory(prefix="avtd3-policies-")
            self.policies = Path(self._stack.enter_context(temporary))
            self._pull = PolicyPull(policies_url, self.policies)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.stop()  # all at once, before waiting for each
        self._stack.close()

    @property
    def is_remote(self) -> bool:
        """Whether the dataset is at a URL."""
        return self._spool is not None

    def check(self, *, is_cluster: bool) -> None:
        """Raise if a URL cannot be reached, or not be used on a cluster."""
        for thread in self._threads:
            if is_cluster:
                check_shared(thread.url)
            check_reachable(thread.place)

    def start(self, *, pulls: bool = True) -> None:
        """Start the threads, after the dataset was created; raise if a URL cannot be used.

        Args:
            pulls: Whether to copy policies here.
        """
        if self._spool is not None:
            self._spool.check_spec(self._should_stop)
            self._stack.enter_context(self._spool)
        if self._pull is not None and pulls:
            self._stack.enter_context(self._pull)

    def start_unit(self) -> None:
        """Start the threads for a unit of work, which wait for URLs that cannot be reached."""
        for thread in self._threads:
            self._stack.callback(thread.close)
            thread.start(waits=True)

    def create(self, spec: EpisodeSpec) -> Dataset:
        """Create the dataset at its URL, and the spool; or check that they have this spec."""
        dataset = Dataset.create(self.dataset, spec)
        if self._spool is not None:
            local = LocalPlace(self.dataset)
            create_dataset(local, open_place(self._spool.url), local.read(GROUP_FILE))
        return dataset

    def open_created(self) -> Dataset:
        """Open the dataset that another process has created."""
        if self._spool is None:
            return Dataset.open(self.dataset)
        return Dataset.create(self.dataset, self._spool.read_spec(self._should_stop))

    def held(self, plan_digest: str) -> tuple[set[int], dict[int, int]]:
        """Return the claimed units of a plan, and the steps of its episodes there are, by index.

        First publish what workers that died have claimed.
        """
        units = claimed_units(self.dataset, plan_digest)
        here = held_episodes(Dataset.open(self.dataset), plan_digest)
        if self._spool is not None:
            more, there = self._spool.held(plan_digest, self._should_stop)
            units, here = units | more, there | here
        return units, here

    @property
    def spool_used(self) -> int | None:
        """Bytes that wait to be uploaded; None for a dataset on this machine."""
        if self._spool is None:
            return None
        if not self._spool.is_dataset:  # a worker of a cluster creates the dataset
            return 0
        self._size = self._size or SpoolSize(self.dataset)
        return self._size.measure()

    @property
    def has_failed(self) -> bool:
        """Whether a thread has ended with an error, which `finish` raises."""
        return any(thread.has_failed for thread in self._threads)

    @property
    def waiting(self) -> str:
        """What the threads wait for, if anything."""
        return "; ".join(thread.waiting for thread in self._threads if thread.waiting)

    @property
    def _threads(self) -> list[Background]:
        return [thread for thread in (self._spool, self._pull) if thread is not None]

    def finish(self, on_wait: Callable[[str], None]) -> str:
        """Wait until all segments are uploaded; return which are not, if stopped before."""
        for thread in self._threads:
            thread.check()
        spool = self._spool
        if spool is None:
            return ""

        def show(reason: str) -> None:
            left = plural(spool.left, "segment")
            on_wait("; ".join(filter(None, (f"uploading {left} to {spool.url}", reason))))

        if spool.finish(self._should_stop, show):
            return ""
        return (
            f"{plural(spool.left, 'segment')} not uploaded to {spool.url}: {spool.waiting}; they "
            f"wait in {spool.path}: run the same command with --resume, or avtd3 push {spool.path} "
            f"{spool.url}"
        )


def collection_path(dataset: Path | str, spool: str) -> Path:
    """Return the directory that a collection writes to: the dataset's, or the spool of its URL."""
    url = remote_url(dataset)
    return Path(dataset) if url is None else spool_path(url, spool)
