"""``DATASET/zarr.json``: what the data of a dataset mean, and what else may lie at its path."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from avtd3.store.errors import DatasetError, FormatVersionError, SpecError
from avtd3.store.files import read_json, storage_errors
from avtd3.store.format.layout import FORMAT_VERSION, GROUP_FILE, MANIFEST_FILE
from avtd3.store.spec import EpisodeSpec


def check_free(path: Path, own_names: Container[str]) -> None:
    """Make sure that a new dataset hides nothing.

    Args:
        path: Where it shall be.
        own_names: What may lie there already, because a dataset consists of it.

    Raises:
        DatasetError: There is a file, or a directory with something else in it.
        StorageError: The directory cannot be listed.
    """
    if path.exists() and not path.is_dir():
        raise DatasetError(f"dataset {path} is a file, expected a directory or nothing")
    with storage_errors(path):
        found = {entry.name for entry in path.iterdir()} if path.exists() else set()
    foreign = sorted(name for name in found if name not in own_names)
    if foreign:
        raise DatasetError(
            f"{path} is not empty and is no dataset (it holds {foreign[0]!r}); "
            "choose an empty or a new directory"
        )


def read_spec(path: Path) -> EpisodeSpec:
    """The spec of the dataset in a directory.

    Raises:
        DatasetError: Missing, a file, something else, or its spec was edited.
        FormatVersionError: Of a format that this version cannot read.
    """
    group = path / GROUP_FILE
    try:
        document = read_json(group)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(_what_else(path)) from error
    except OSError as error:
        raise DatasetError(f"{group} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is no dataset: {error}") from error
    return _parse_spec(group, document)


def _what_else(path: Path) -> str:
    if not path.exists():
        return f"dataset {path} does not exist; avtd3 collect {path} makes one"
    if not path.is_dir():
        return f"dataset {path} is a file, expected a directory"
    if (path / ".zgroup").exists() or (path / ".zarray").exists():
        return f"{path} is a Zarr v2 store, expected an avtd3 dataset (Zarr v3)"
    if (path / MANIFEST_FILE).exists():
        return f"{path} is a single segment; name the dataset two levels above it"
    return f"{path} is no dataset: it has no {GROUP_FILE}; avtd3 collect makes one"


def _parse_spec(group: Path, document: Any) -> EpisodeSpec:  # noqa: ANN401 - any JSON value
    attributes = document.get("attributes") if isinstance(document, dict) else None
    ours = attributes.get("avtd3") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict) or document.get("node_type") != "group":
        raise DatasetError(f"{group.parent} is no dataset: {group.name} has no avtd3 attributes")
    version = ours.get("format_version")
    if type(version) is not int or version < 1:
        raise DatasetError(f"{group}: format_version is {version!r}, expected a whole number")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{group.parent} is of format {version}, this version of avtd3 reads up to "
            f"{FORMAT_VERSION}: install a newer avtd3"
        )
    if "spec" not in ours:
        raise DatasetError(f"{group.parent} is a part of a dataset, not a dataset: it has no spec")
    try:
        spec = EpisodeSpec.from_json(ours["spec"])
    except SpecError as error:
        raise DatasetError(f"{group}: {error}") from error
    if spec.digest != ours.get("spec_digest"):
        raise DatasetError(
            f"{group}: the spec was edited (its digest is {spec.digest:.12}, the file says "
            f"{ours.get('spec_digest')!s:.12}); restore it, the segments carry the old one"
        )
    return spec
