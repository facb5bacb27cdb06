"""`Place`: a directory of this machine or a prefix of an object store, which holds files by key.

`open_place` opens one by its path or URL (``s3://``, ``gs://``, ``az://``, ``memory://``).
Endpoint, region and credentials come from the usual environment variables and files of each cloud;
avtd3 neither stores nor prints them. Requests have time limits, and are repeated after random waits
that grow from 20 ms to 10 s.

The requests run in threads of obstore, which do not survive `os.fork`: start processes with spawn.
"""

import configparser
import contextlib
import dataclasses
import datetime
import functools
import importlib
import os
import random
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from avtd3.store.errors import (
    ConfigError,
    UnreachableError,
    abbreviate,
    import_extra,
)
from avtd3.store.files import (
    aside_of,
    create_exclusive,
    fsync_directory,
    open_regular,
    remote_url,
    remove,
    safe_join,
    storage_errors,
    write_aside,
)

CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes that are transferred at a time."""
CONNECT_S = 5.0
"""Longest wait for a connection, in seconds."""
SILENCE_S = 10.0
"""Longest wait for the next bytes of an answer, in seconds. It begins with the request, so it also
limits the upload of a body: a request that takes longer is repeated with twice the limit."""
PATIENCE_S = 60.0
"""Seconds for which a failing request is repeated by default."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEP_S = 0.02, 10.0, 0.1
_LONGEST_SILENCE_S = 3600.0
_SLOWEST_BYTES_PER_S = 32 * 1024
"""Speed of a link on which a large object still arrives, whatever the patience."""
_PARTS, _PART_BYTES = 4, 5 * 1024 * 1024
"""Parts of a large object that are uploaded at the same time, and the size of each."""
_SMALL_BYTES = 64 * 1024 * 1024
"""Largest object that is read at once."""

Result = TypeVar("Result")
_memory: dict[str, Any] = {}
"""The stores of ``memory://`` by URL, which live as long as the process."""


class Limiter:
    """Limits the bytes per second of all transfers together; 0 is no limit.

    Example:
        >>> Limiter(0).spend(10**9)  # returns at once
    """

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        self._rate, self._lock = bytes_per_s, threading.Lock()
        self._free_s = time.monotonic()

    def spend(self, size_bytes: int) -> None:
        """Wait until so many bytes may be transferred."""
        if not self._rate:
            return
        with self._lock:
            start_s = max(self._free_s, time.monotonic())
            self._free_s = start_s + size_bytes / self._rate
        time.sleep(max(start_s - time.monotonic(), 0.0))


class LocalPlace:
    """A directory of this machine that holds files by key."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, str(path)

    def read(self, key: str) -> bytes:
        """Return a small file; raise `FileNotFoundError` if there is none."""
        return b"".join(self.chunks(key))

    def chunks(self, key: str, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file of any size; raise `FileNotFoundError` as `read`."""
        with open_regular(safe_join(self.path, key)) as file:
            while data := file.read(CHUNK_BYTES):
                yield data

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Create or replace a file; readers see the old or the new one."""
        path = self._parent_of(key)
        write_aside(path, data if isinstance(data, bytes) else b"".join(data))

    def create(self, key: str, data: bytes) -> bool:
        """Create a file unless there is one; return whether this call created it."""
        path = self._parent_of(key)
        return create_exclusive(path, data, aside_of(path))

    def _parent_of(self, key: str) -> Path:
        """Make the directory of a file durable; return the path of the file."""
        path = safe_join(self.path, key)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fsync_directory(path.parent.parent)
        return path

    def sizes(self, prefix: str, after: str = "") -> dict[str, int]:
        """Return the sizes of the files below a prefix by key, sorted; only keys after a given."""
        found = {}
        for path in self.path.joinpath(prefix).rglob("*"):
            key = path.relative_to(self.path).as_posix()
            if key > after and not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    if path.is_file():
                        found[key] = path.stat().st_size
        return dict(sorted(found.items()))

    def folders(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix that have files below them, sorted."""
        folder = self.path / prefix
        entries = folder.iterdir() if folder.is_dir() else ()
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files; missing ones are not an error."""
        for key in keys:
            remove(safe_join(self.path, key))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a failing request is repeated."""

    seconds: float = dataclasses.field(default_factory=lambda: PATIENCE_S)
    """Seconds; infinite for what must not be lost."""
    should_stop: Callable[[], bool] = lambda: False
    """Called between two attempts; true gives up."""
    on_wait: Callable[[str], None] = lambda _: None
    """Called with the reason before each wait."""

    def wait(self, seconds: float) -> None:
        """Sleep, until asked to stop."""
        end_s = time.monotonic() + seconds
        while not self.should_stop() and (left_s := end_s - time.monotonic()) > 0.0:
            time.sleep(min(left_s, _STEP_S))


class RemotePlace:
    """A prefix of an object store; safe to use from several threads.

    A failing request is repeated as `patience` says, and then raises `UnreachableError`. What
    repeating does not help raises `ConfigError`: a missing bucket, missing or refused credentials.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.text, self._patience = url, patience or Patience()
        self._stores: dict[float, Any] = {}
        self._store(SILENCE_S)

    def _store(self, silence_s: float) -> Any:  # noqa: ANN401 - a store of obstore
        """Return a client with a limit of `SILENCE_S` or longer."""
        if silence_s not in self._stores:
            self._stores[silence_s] = _open_store(self.text, silence_s)
        return self._stores[silence_s]

    def patient(self, patience: Patience) -> "RemotePlace":
        """Return the same place with another patience."""
        other = object.__new__(RemotePlace)
        other.__dict__.update(self.__dict__, _patience=patience)
        return other

    def read(self, key: str) -> bytes:
        """Return a small object."""
        return self._call(key, self._read)

    def _read(self, store: object, key: str) -> bytes:
        answer = _obstore().get(store, key)
        if (size := answer.meta["size"]) > _SMALL_BYTES:
            raise ConfigError(
                f"{self.text}/{key} has {size} bytes, expected {_SMALL_BYTES} at most"
            )
        return self._whole(key, bytes(answer.bytes()), size)

    def _whole(self, key: str, data: bytes, size: int) -> bytes:
        if len(data) != size:
            raise _Cut(f"{key} was cut after {len(data)} of {size} bytes")
        return data

    def read_changed(self, key: str, etag: str | None) -> tuple[bytes, str | None] | None:
        """Return an object and its ETag; None if it still has the given one."""

        def read(store: object, key: str) -> tuple[bytes, str | None] | None:
            options = {} if etag is None else {"if_none_match": etag}
            try:
                answer = _obstore().get(store, key, options=options)
                data = bytes(answer.bytes())
            except _errors().NotModifiedError:
                return None
            return self._whole(key, data, answer.meta["size"]), answer.meta["e_tag"]

        return self._call(key, read)

    def chunks(self, key: str, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of an object; after a failure, continue from where it stopped.

        Args:
            key: Its key.
            size: The size that it should have, if known, so that a large one is not requested whole
                first.
        """
        done, total, piece = 0, 1, self._first if (size or 0) <= CHUNK_BYTES else self._piece
        while done < total:
            # One request for each piece: a slow or limited transfer outlasts no connection.
            data, total = self._call(key, functools.partial(piece, start=done))
            done, piece = done + len(data), self._piece
            if data:
                yield data

    def _first(self, store: object, key: str, start: int) -> tuple[bytes, int]:
        """Return all of a small object, which some servers refuse as a range; else a piece."""
        answer = _obstore().get(store, key)
        if (size := answer.meta["size"]) <= CHUNK_BYTES:
            return self._whole(key, bytes(answer.bytes()), size), size
        del answer  # the rest of the body is not read
        return self._piece(store, key, start)

    def _piece(self, store: object, key: str, start: int) -> tuple[bytes, int]:
        """Return a piece of a large object, and the size of the object."""
        options = {"range": (start, start + CHUNK_BYTES)}
        try:
            answer = _obstore().get(store, key, options=options)
            data, size = bytes(answer.bytes()), answer.meta["size"]
        except _errors().BaseError as error:
            is_range = "range" in str(error).lower()
            if not is_range or self._size(store, key) > (start or CHUNK_BYTES):
                raise
            # It is smaller than its manifest says, or was replaced by a smaller one.
            return (b"", start) if start else self._first(store, key, start)
        return self._whole(key, data, min(CHUNK_BYTES, size - start)), size

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Create or replace an object; `data` may be iterated again after a failure."""

        def put(store: object, key: str) -> None:
            content = data if isinstance(data, bytes) else iter(data)
            _obstore().put(store, key, content, chunk_size=_PART_BYTES, max_concurrency=_PARTS)

        size_bytes = len(data) if isinstance(data, bytes) else _PARTS * _PART_BYTES
        self._call(key, put, body_bytes=size_bytes)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless there is one; return whether this call created it.

        The answer to a request may be lost: False says that there is an object, which may be this
        one; `avtd3.store.remote.commit.create_or_read` compares. Where `honours_conditions` is
        False, an object that is there is replaced.
        """
        if not self.honours_conditions:
            self.write(key, data)
            return True
        create = functools.partial(self._create, data=data)
        return self._call(key, create, body_bytes=len(data))

    def _create(self, store: object, key: str, data: bytes) -> bool:
        try:
            _obstore().put(store, key, data, mode="create")
        except (_errors().AlreadyExistsError, _errors().PreconditionError):
            return False
        return True

    @functools.cached_property
    def honours_conditions(self) -> bool:
        """Whether the store creates an object only if there is none, as a probe shows."""
        key = f"probe/{secrets.token_hex(8)}"
        try:
            # A lost answer to the first request does not matter, one to the second would.
            self._call(key, functools.partial(self._create, data=b"1"))
            return not self._call(key, functools.partial(self._create, data=b"2"))
        except _errors().NotSupportedError:
            return False
        finally:
            with contextlib.suppress(ConfigError, UnreachableError):
                self.delete([key])

    def sizes(self, prefix: str, after: str = "") -> dict[str, int]:
        """Return the sizes of the objects below a prefix by key, sorted."""

        def entries(store: object, prefix: str) -> dict[str, int]:
            pages = _obstore().list(store, prefix or None, offset=after or None)
            # Azure's listings start at the beginning; the client drops what is before.
            entries = (meta for page in pages for meta in page)
            return {m["path"]: m["size"] for m in entries if m["path"] > after}

        return dict(sorted(self._call(prefix, entries).items()))

    def times(self, prefix: str) -> dict[str, float]:
        """Return when the objects below a prefix were put, in seconds of the store's clock."""

        def entries(store: object, prefix: str) -> dict[str, float]:
            pages = _obstore().list(store, prefix)
            return {m["path"]: m["last_modified"].timestamp() for page in pages for m in page}

        return self._call(prefix, entries)

    def size(self, key: str) -> int:
        """Return the size of an object, also of one that listings do not show yet."""
        return self._call(key, self._size)

    def put_time(self, key: str) -> float:
        """Return when an object was put, in seconds of the store's clock."""
        head = self._call(key, _obstore().head)
        return float(head["last_modified"].timestamp())

    def _size(self, store: object, key: str) -> int:
        return int(_obstore().head(store, key)["size"])

    def folders(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, sorted."""
        listed = self._call(prefix, _obstore().list_with_delimiter)
        return sorted(folder.rsplit("/", 1)[-1] for folder in listed["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._call(key, _obstore().delete)

    def _call(
        self, key: str, operation: Callable[[Any, str], Result], *, body_bytes: int = 0
    ) -> Result:
        """Do one request; repeat it after random waits while it fails for a passing reason."""
        patience, wait_s, silence_s = self._patience, _FIRST_WAIT_S, SILENCE_S
        patience_s = patience.seconds + body_bytes / _SLOWEST_BYTES_PER_S
        end_s = float("inf")
        where = f"{self.text}/{key}".rstrip("/")
        while True:
            asked_s = time.monotonic()
            try:
                return operation(self._store(silence_s), key)
            except FileNotFoundError as error:
                if any(name in str(error) for name in _NO_BUCKET):
                    raise _no_bucket(self.text) from None
                raise FileNotFoundError(f"{where} does not exist") from None
            except (_errors().BaseError, _Cut) as error:
                problem = _explain(self.text, where, error)
            now_s = time.monotonic()
            end_s = min(end_s, now_s + patience_s)  # it begins with the first failure
            if now_s >= end_s or not isinstance(problem, UnreachableError):
                raise problem  # without its cause, which may name a user of the endpoint
            if now_s - asked_s >= silence_s:
                silence_s = min(2.0 * silence_s, _LONGEST_SILENCE_S)
            patience.on_wait(str(problem).removesuffix(_ADVICE))
            patience.wait(random.uniform(0.0, wait_s))
            if patience.should_stop():
                raise problem
            wait_s = min(2.0 * wait_s, _LONGEST_WAIT_S)


class _Cut(Exception):  # noqa: N818 - internal
    """An answer that is shorter than it says."""


Place: TypeAlias = LocalPlace | RemotePlace
"""A directory or a URL."""


def open_place(path: Path | str, patience: Patience | None = None) -> Place:
    """Open a directory or a URL.

    Raises:
        ConfigError: The URL is malformed or contains a password, or there are no credentials.
        MissingPackageError: The extra ``cloud`` is not installed.
    """
    url = remote_url(path)
    return LocalPlace(Path(path)) if url is None else RemotePlace(url, patience)


def check_reachable(place: Place) -> None:
    """Raise what is wrong with a URL before work begins, after one attempt or two."""
    if isinstance(place, RemotePlace):
        # One request, however many segments there are.
        place.patient(Patience(seconds=0.5)).sizes("zarr.json")


def _no_bucket(url: str) -> ConfigError:
    bucket = urllib.parse.urlsplit(url).netloc
    return ConfigError(
        f"{url}: there is no bucket {abbreviate(bucket)} at this endpoint; create it, or check "
        f"the name and {_ENDPOINTS[url.partition(':')[0]][0]}"
    )


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""What answers say about a missing bucket."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL",),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Environment variables of the endpoint, by scheme; obstore reads those of gs and az itself."""


_CREDENTIALS = (
    "set the usual environment variables (S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE; Google: GOOGLE_APPLICATION_CREDENTIALS; Azure: AZURE_STORAGE_ACCOUNT_NAME and "
    "AZURE_STORAGE_ACCOUNT_KEY)"
)
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "metadata/")
"""Where clients look for credentials last, in machines of a cloud."""


def _explain(url: str, where: str, error: Exception) -> ConfigError | UnreachableError:
    """Return the error to raise for one of obstore's; no text of it contains a secret."""
    text, kinds = str(error), _errors()
    if any(name in text for name in _NO_BUCKET):
        return _no_bucket(url)
    if any(host in text for host in _METADATA_HOSTS):
        return ConfigError(f"{url}: found no credentials; {_CREDENTIALS}")
    if "RequestTimeTooSkewed" in text:
        return ConfigError(
            f"{where}: the store refuses requests of a machine whose clock is wrong; set this "
            "machine's clock, for example with NTP"
        )
    if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
        return ConfigError(
            f"{where}: the store refuses these credentials; check their rights to read and write "
            f"there, or {_CREDENTIALS}"
        )
    if isinstance(error, kinds.NotSupportedError | kinds.InvalidPathError):
        return ConfigError(f"{where}: the store does not support this request")
    return UnreachableError(
        f"{where} cannot be reached now{_host_in(text)}: {abbreviate(_cause_in(text))[1:-1]}"
        f"{_ADVICE}"
    )


def _host_in(text: str) -> str:
    """Return the host that an error of obstore names, without what may be secret in its URL."""
    if (found := _REQUEST.search(text)) is None:
        return ""
    parts = urllib.parse.urlsplit(found[1])
    return f" at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _cause_in(text: str) -> str:
    """Return the cause at the bottom of an error of obstore, or else its first line."""
    if found := _CAUSE.search(text):
        return found[1]
    if "TimedOut" in text:
        return "no answer in time"
    return text.partition("\n")[0].rpartition(" - ")[2]


_ADVICE = "; check the network and the endpoint, then run the same command again"
_REQUEST = re.compile(r"Error performing [A-Z]+ (\S+) in ")
_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"')


@functools.cache
def _obstore() -> Any:  # noqa: ANN401 - an optional module
    return import_extra("obstore", "cloud", "the URL of an object store")


@functools.cache
def _errors() -> Any:  # noqa: ANN401 - as above
    _obstore()
    return importlib.import_module("obstore.exceptions")


def _open_store(url: str, silence_s: float) -> Any:  # noqa: ANN401 - a store of obstore
    """Open the store of a checked URL."""
    _obstore()
    stores = importlib.import_module("obstore.store")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "memory":
        return _memory.setdefault(url, stores.MemoryStore())
    config = _s3_settings() if parts.scheme == "s3" else {}
    endpoints = (os.environ.get(name, "") for name in _ENDPOINTS[parts.scheme])
    endpoint = config.get("endpoint_url") or "".join(endpoints)
    if "@" in urllib.parse.urlsplit(endpoint).netloc:
        raise ConfigError(
            f"the endpoint ({_ENDPOINTS[parts.scheme][0]}) contains a user name or a password, "
            f"expected only a host and a port; {_CREDENTIALS}"
        )
    options = {
        "connect_timeout": datetime.timedelta(seconds=CONNECT_S),
        "read_timeout": datetime.timedelta(seconds=silence_s),
        "timeout": datetime.timedelta(hours=1),  # of a whole request, however slow
        "allow_http": endpoint.startswith("http://"),
    }
    # `RemotePlace` repeats requests itself, so that it can say what it waits for.
    retries = {"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=1)}
    try:
        return stores.from_url(url, config=config, client_options=options, retry_config=retries)
    except (ValueError, _errors().BaseError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{url} cannot be opened: {reason}; {_CREDENTIALS}") from None


def _s3_settings() -> dict[str, str]:
    """Return what the environment and the files of the AWS command line say."""
    found = _s3_files()
    if "AWS_ACCESS_KEY_ID" in os.environ:
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            found.pop(name, None)
    for name, variable in _S3_VARIABLES:
        if value := os.environ.get(variable):
            found[name] = value
    return found


_S3_VARIABLES = (
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ("aws_session_token", "AWS_SESSION_TOKEN"),
    ("region", "AWS_DEFAULT_REGION"),
    ("region", "AWS_REGION"),
    ("endpoint_url", "AWS_ENDPOINT_URL"),
    ("endpoint_url", "AWS_ENDPOINT_URL_S3"),
)
"""Settings of S3, and their environment variables; the last one counts."""


def _s3_files() -> dict[str, str]:
    """Return the settings of the chosen profile in ~/.aws/credentials and ~/.aws/config."""
    profile = os.environ.get("AWS_PROFILE") or "default"
    section = profile if profile == "default" else f"profile {profile}"
    found: dict[str, str] = {}
    for variable, name, header in (
        ("AWS_CONFIG_FILE", "config", section),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        path = Path(os.environ.get(variable) or Path.home() / ".aws" / name).expanduser()
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{path} cannot be read; correct the file, or set {variable}"
            ) from None
        if parser.has_section(header):
            found |= {k: v for k, v in parser.items(header) if k in dict(_S3_VARIABLES)}
    return found
