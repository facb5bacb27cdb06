"""``.staging/``: segments are written there, and one rename publishes them.

A file beside each staging directory names the process that writes it. `clean_staging` uses it to
delete what killed processes left, and nothing that is being written.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from avtd3.store.files import (
    canonical_json,
    create,
    fsync_directory,
    read_json,
    remove_tree,
    share_file,
    storage_errors,
    write_new,
)

_OWNER_SUFFIX = ".owner.json"
_DAY_S = 86_400.0


def publish(
    staging: Path,
    target: Path,
    files: Mapping[str, bytes],
    last: str,
    *,
    shared: Mapping[str, Path] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a directory in staging, fsync all of it, and rename it to its final path.

    Args:
        staging: Directory to write; must not exist. Its parent is created if it is missing.
        target: Final path of the directory; must not exist.
        files: Bytes by path below the directory.
        last: Key of ``files``: the file that is written when all others are on disk.
        shared: Files to link from published segments, by path below the directory; see
            `share_file`.
        check: Called with the complete staging directory; an exception prevents the publication.

    Raises:
        StorageError: The disk is full or not writable. Nothing was published, unless only the last
            fsync failed: then ``target`` exists.
    """
    owner = owner_file(staging)
    with storage_errors(staging):
        try:
            for directory in (staging.parent, target.parent):
                directory.mkdir(exist_ok=True)
            _write_owner(owner)
            directories = _make_directories(staging, (*files, *(shared or ())))
            _write_files(staging, {name: files[name] for name in files if name != last})
            for name, source in (shared or {}).items():
                share_file(source, staging / name)
            write_new(staging / last, files[last])
            for directory in directories:
                fsync_directory(directory)
            if check is not None:
                check(staging)
            os.rename(staging, target)  # noqa: PTH104 - Path.rename, patched alike in the tests
        except BaseException:
            remove_tree(staging)
            raise
        finally:
            owner.unlink(missing_ok=True)
        fsync_directory(target.parent)


def owner_file(staging: Path) -> Path:
    """Return the file beside a staging directory that names the process that writes it."""
    return staging.with_name(staging.name + _OWNER_SUFFIX)


def _write_owner(owner: Path) -> None:
    document = {"host": platform.node(), "pid": os.getpid(), "wall_time": time.time()}
    os.close(create(owner, canonical_json(document)))


def _make_directories(root: Path, files: Iterable[str]) -> list[Path]:
    """Create the directories of files; return them deepest first, in the order of fsyncs."""
    needed = {root}
    for name in files:
        needed.update(root / parent for parent in Path(name).parents)
    ordered = sorted(needed, key=lambda path: len(path.parts))
    for directory in ordered:
        directory.mkdir()
    return ordered[::-1]


def _write_files(root: Path, files: Mapping[str, bytes]) -> None:
    # Write all files before the first fsync: one commit of the file system's journal, not fifty.
    descriptors: list[int] = []
    try:
        for name, data in files.items():
            descriptors.append(create(f"{root}{os.sep}{name}", data))
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def clean_staging(staging: Path, older_than_s: float = _DAY_S) -> list[str]:
    """Delete staging directories whose writer is dead.

    A writer on this host is dead if its process no longer runs. A directory of another host, or
    without an owner file, is deleted when it is older than ``older_than_s``.

    Args:
        staging: The dataset's staging directory.
        older_than_s: Age in seconds.

    Returns:
        Names of the deleted directories.

    Raises:
        StorageError: The directory cannot be written.
    """
    removed: list[str] = []
    if not staging.is_dir():
        return removed
    with storage_errors(staging):
        for path in sorted(staging.iterdir()):
            if path.name.endswith(_OWNER_SUFFIX):
                subject = path.with_name(path.name.removesuffix(_OWNER_SUFFIX))
                if not subject.exists() and _is_dead(path, path, older_than_s):
                    path.unlink(missing_ok=True)
                continue
            owner = owner_file(path)
            if not _is_dead(path, owner, older_than_s):
                continue
            remove_tree(path)
            path.unlink(missing_ok=True) if path.is_file() else None
            owner.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _is_dead(path: Path, owner: Path, older_than_s: float) -> bool:
    try:
        if time.time() - path.stat().st_mtime > older_than_s:
            return True
        document = read_json(owner)
        host, pid = document["host"], int(document["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return host == platform.node() and not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
