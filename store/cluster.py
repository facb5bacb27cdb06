"""`connect`: a client of a Dask cluster, which runs audits, collections and evaluations."""

import contextlib
from collections.abc import Iterator
from typing import Any

from avtd3.store.errors import ConfigError, MissingPackageError, install_command


@contextlib.contextmanager
def connect(address: str, setting: str) -> Iterator[Any]:
    """Connect to the scheduler of a Dask cluster; errors name the setting that gives its address.

    Raise MissingPackageError without the package ``distributed``, ConfigError if nothing answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"{setting} is {address!r}, which needs Dask's scheduler: {install_command('cluster')}"
        ) from error
    open_client: Any = Client  # only some versions have types
    try:
        client = open_client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} {address!r} does not answer as a Dask scheduler ({error}); expected an "
            "address such as tcp://host:8786, where `dask scheduler` runs"
        ) from error
    with client:
        yield client
