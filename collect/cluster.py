"""Worlds on the workers of a Dask cluster, which stay open between units of work.

Units that drive need the resource ``collector``, of which each worker should have one.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from avtd3.collect.environment import Environment
from avtd3.collect.plan import digest
from avtd3.collect.worlds import EnvironmentConfig, WorldFactory, open_environment
from avtd3.store.cluster import Cluster, connect
from avtd3.store.errors import WorldError

RESOURCE = "collector"
_PLUGIN = "avtd3-worlds"
_REGISTRATIONS, _WAIT_S = 5, 2.0
"""Attempts to prepare the workers, and seconds between them."""


class WarmWorlds:
    """The plugin of a Dask worker that keeps its environment open between units."""

    name = _PLUGIN
    idempotent = True
    """The plugin of an earlier client stays: a unit may be using its world."""

    def __init__(self) -> None:
        self._key = ""
        self._stack = contextlib.ExitStack()
        self._environment: Environment | None = None

    @contextlib.contextmanager
    def open(self, config: EnvironmentConfig, factory: WorldFactory) -> Iterator[Environment]:
        """Yield the environment of a configuration; close it if the work in it fails."""
        key = f"{factory.__module__}.{factory.__qualname__} {digest(dataclasses.asdict(config))}"
        if self._environment is None or key != self._key:
            self._close()
            opened = open_environment(config, factory)
            self._environment, self._key = self._stack.enter_context(opened), key
        try:
            yield self._environment
        except BaseException:
            self._close()
            raise

    def teardown(self, worker: object) -> None:
        """Close the environment; Dask calls this when the worker ends."""
        self._close()

    def _close(self) -> None:
        self._environment = None
        self._stack.close()


@contextlib.contextmanager
def open_cluster(address: str) -> Iterator[Cluster]:
    """Connect to a Dask cluster, and let its workers keep their worlds open."""
    with connect(address, "--scheduler") as client:
        from distributed.diagnostics.plugin import WorkerPlugin

        # The plugin must be a subclass of one of Dask, which is imported only here.
        kind: Any = type("AvtdWorlds", (WarmWorlds, WorkerPlugin), {})
        for attempt in range(_REGISTRATIONS):
            try:
                client.register_plugin(kind(), name=_PLUGIN)
            except OSError as error:  # a worker was lost meanwhile
                if attempt == _REGISTRATIONS - 1:
                    raise WorldError(f"the workers of {address} do not answer: {error}") from error
                time.sleep(_WAIT_S)
            else:
                break
        yield Cluster(client, address, resource=RESOURCE)


def warm_environment(
    config: EnvironmentConfig, factory: WorldFactory
) -> contextlib.AbstractContextManager[Environment]:
    """Open the environment of the Dask worker that this unit of work runs in."""
    from distributed import get_worker

    worker: Any = get_worker()
    worlds: WarmWorlds = worker.plugins[_PLUGIN]
    return worlds.open(config, factory)
