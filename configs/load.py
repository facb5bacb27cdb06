"""From YAML and ``--set`` overrides to checked dataclasses, and back to plain documents.

A configuration has one section per command (`SECTIONS`); each section is a dataclass that lives
beside the code it steers and checks its own values. A section's module is imported only when that
section is asked for, so that a collector never waits for torch and a learner never needs carla.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from avtd3.store.errors import ConfigError

SECTIONS: Mapping[str, tuple[str, str]] = types.MappingProxyType(
    {
        "collect": ("avtd3.collect.collector", "CollectConfig"),
        "learn": ("avtd3.learn.trainer", "LearnConfig"),
        "audit": ("avtd3.store.audit.audit", "AuditConfig"),
        "evaluate": ("avtd3.collect.evaluate", "EvaluateConfig"),
        "demo": ("avtd3.configs.commands.demo", "DemoConfig"),
    }
)
"""Section name to the module and the dataclass that describe it."""

MAX_CONFIG_BYTES = 1 << 20
"""Largest configuration file that is read."""


def load_section(name: str, source: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """Build one section from defaults, a file or preset, and overrides, in this order.

    Args:
        name: A key of `SECTIONS`.
        source: Path of a YAML file, or the name of a preset that ships with avtd3.
        overrides: ``section.key=value`` each; the value is read as YAML. Those of other sections
            are only checked for the section's name.

    Returns:
        An instance of the section's dataclass.

    Raises:
        ConfigError: An unknown section or key (with the nearest right one), or a bad value.
    """
    document = read_config(source) if source else {}
    for text in overrides:
        _merge(document, _parse_override(text))
    for section in document:
        if section not in SECTIONS:
            raise ConfigError(_unknown("section", str(section), SECTIONS, where=source or "--set"))
    return build(section_type(name), document.get(name) or {}, path=name)


def section_type(name: str) -> type:
    """The dataclass of a section; imports its module."""
    module, attribute = SECTIONS[name]
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


def presets() -> list[str]:
    """Names of the YAML files that ship with avtd3."""
    folder = resources.files("avtd3.configs")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_config(source: str) -> dict[str, Any]:
    """Read a YAML file, or a preset by its name, into a mapping.

    Raises:
        ConfigError: There is no such file or preset, it is too large, or it is not a YAML mapping.
    """
    path = Path(source)
    if not path.is_file() and source in presets():  # a dataset's directory may have the same name
        text = (resources.files("avtd3.configs") / f"{source}.yaml").read_text("utf-8")
    else:
        text = read_text(path, otherwise=f"give a YAML file or a preset ({', '.join(presets())})")
    return parse_mapping(text, source, of=f"sections: {', '.join(SECTIONS)}")


def parse_mapping(text: str, source: str, *, of: str) -> dict[str, Any]:
    """Read a YAML text into a mapping; nothing at all is an empty one.

    Args:
        text: The YAML.
        source: Where it is from, for messages.
        of: What the mapping should hold, for messages.

    Raises:
        ConfigError: It is not YAML, or no mapping.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date may be none
        reason = " ".join(str(error).split())
        raise ConfigError(f"config {source} is not valid YAML: {reason}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"config {source} must be a mapping of {of}")
    return document


def read_text(path: Path, *, otherwise: str) -> str:
    """Read a YAML file that a person named.

    Args:
        path: The file.
        otherwise: What to do if there is none, for the message.

    Raises:
        ConfigError: There is no such file, or it is too large or no UTF-8.
    """
    if not path.is_file():
        raise ConfigError(f"config {path}: no such file; {otherwise}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"config {path} is larger than {MAX_CONFIG_BYTES} bytes; not a config")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read as UTF-8 text: {error}") from error


def build(kind: type, document: object, *, path: str) -> Any:
    """Build a dataclass from a mapping, strictly.

    Args:
        kind: The dataclass.
        document: Keys and values; keys that are absent keep their defaults.
        path: Dotted name of the place, for messages.

    Raises:
        ConfigError: An unknown key, a value of the wrong kind, or one that the dataclass refuses.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} must be a mapping of settings, found {document!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    values = {}
    for key, value in document.items():
        if key not in fields:
            raise ConfigError(_unknown("key", f"{path}.{key}", [f"{path}.{f}" for f in fields]))
        values[key] = _convert(hints[key], value, f"{path}.{key}")
    try:
        return kind(**values)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path) else f"{path}: {text}") from error


def to_document(config: Any) -> dict[str, Any]:
    """The dataclass as plain dictionaries, lists and numbers, ready for JSON or YAML."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return build(hint, {} if value is None else value, path=path)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(hint, value, path)
    if origin is typing.Literal:
        return _convert_literal(hint, value, path)
    if origin is tuple:
        return _convert_tuple(hint, value, path)
    if origin is Mapping:
        return _convert_mapping(hint, value, path)
    return _convert_scalar(hint, value, path)


def _convert_union(hint: Any, value: Any, path: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    remaining = [option for option in options if option is not type(None)]
    return _convert(remaining[0], value, path)


def _convert_literal(hint: Any, value: Any, path: str) -> Any:
    allowed = typing.get_args(hint)
    if value not in allowed:
        raise ConfigError(_unknown("value", str(value), map(str, allowed), where=path))
    return value


def _convert_tuple(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} must be a list, found {value!r}")
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(f"{path} must have {len(arguments)} values, found {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(inner, item, f"{path}[{i}]") for i, (inner, item) in enumerate(pairs))


def _convert_mapping(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} must be a mapping, found {value!r}")
    _, inner = typing.get_args(hint)
    return {str(key): _convert(inner, item, f"{path}.{key}") for key, item in value.items()}


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and isinstance(value, str):
        value, is_number = _number_from_text(value, is_number)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    name = {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a text")
    raise ConfigError(f"{path} must be {name}, found {value!r}")


def _number_from_text(value: str, is_number: bool) -> tuple[Any, bool]:
    # YAML 1.1 reads 1e-4 (no dot) as a text; people mean the number.
    try:
        return float(value), True
    except ValueError:
        return value, is_number


def _parse_override(text: str) -> dict[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key or "" in key.split("."):
        raise ConfigError(f"--set {text!r} must look like section.key=value")
    try:
        document: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML") from error
    for part in reversed(key.split(".")):
        document = {part: document}
    assert isinstance(document, dict)
    return document


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _unknown(what: str, name: str, known: typing.Iterable[str], where: str = "") -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    place = f" in {where}" if where else ""
    return f"unknown {what} {name!r}{place}; {hint}"
