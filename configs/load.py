"""Load configuration: YAML and ``--set`` overrides become checked dataclasses.

A configuration has one section per command (`SECTIONS`). Each section is a plain dataclass beside
the code that it configures, and checks its own values; pydantic builds it from the file. A
section's module is imported only when that section is loaded: a collector does not import torch,
and a learner does not import carla.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib
import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic
import yaml

from avtd3.store.errors import ConfigError, UnreadableError, abbreviate, escape
from avtd3.store.files import is_passing, read_bytes

SECTIONS: Mapping[str, tuple[str, str]] = {
    "collect": ("avtd3.collect.collector", "CollectConfig"),
    "learn": ("avtd3.learn.config", "LearnConfig"),
    "audit": ("avtd3.store.audit.audit", "AuditConfig"),
    "evaluate": ("avtd3.collect.evaluator", "EvaluateConfig"),
    "demo": ("avtd3.configs.commands.demo", "DemoConfig"),
}
"""Module and name of the dataclass of each section."""

MAX_CONFIG_BYTES = 1 << 20
"""Largest configuration file that is read."""
MAX_VALUES = 100_000
"""Largest configuration, in JSON tokens: YAML aliases can expand a short file without limit."""
MAX_CHARACTERS = 4 * MAX_CONFIG_BYTES
"""Largest configuration, in characters of JSON."""
MAX_INTEGER = 2**63 - 1
"""Largest whole number in a configuration or an option."""
SHOWN_PROBLEMS = 5
"""Number of problems that one error message lists."""

_SYNONYMS: Mapping[str, str] = {
    "alpha": "bc_alpha",
    "batch": "batch_size",
    "buffer_size": "capacity",
    "delay": "policy_delay",
    "discount": "gamma",
    "learning_rate": "lr",
    "nstep": "n_step",
    "polyak": "tau",
    "policy_freq": "policy_delay",
    "policy_noise": "target_policy_noise",
    "noise_clip": "target_noise_clip",
}
"""Names that other programs use for a setting."""
_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping of settings",
}
"""Expected value for each of pydantic's error types, in terms of YAML."""


def load_section(
    name: str,
    source: str | None = None,
    overrides: Sequence[str] = (),
    *,
    used: Collection[str] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Any:
    """Build one section from defaults, stored settings, a file or preset, and overrides, in order.

    Args:
        name: A key of `SECTIONS`.
        source: Path of a YAML file, or the name of a preset that ships with avtd3. It may have
            any section.
        overrides: Texts of the form ``section.key=value``, with the value in YAML.
        used: Sections that have an effect, None for all; an override of another one is refused.
        stored: Settings of the section that the others change.

    Returns:
        An instance of the section's dataclass.

    Raises:
        ConfigError: If a section or key is unknown (the message suggests the closest one), or a
            value is invalid.
        UnreadableError: If the file cannot be read now.
    """
    document: dict[str, Any] = {} if stored is None else {name: copy.deepcopy(dict(stored))}
    given = read_config(source) if source else {}
    for section in given:
        _check_section(section, where=source or "")
    _merge(document, given)
    for text in overrides:
        override = _parse_override(text)
        (section,) = override
        _check_section(section, where="--set")
        if used is not None and section not in used:
            raise ConfigError(
                f"--set {abbreviate(text)} has no effect: this command uses the settings of "
                f"{' and '.join(used)}; remove it"
            )
        _merge(document, override)
    return build(section_type(name), document.get(name) or {}, path=name)


def dump_sections(
    section: str | None = None, source: str | None = None, overrides: Sequence[str] = ()
) -> str:
    """Return the resolved settings of one section, or of all, as YAML for `load_section`.

    A comment after each setting that is not a default says where it comes from.
    """
    names = _chosen_sections(section)
    document = {name: plain(load_section(name, source, overrides, used=names)) for name in names}
    text = _to_yaml(document, allow_unicode=True)
    # YAML escapes fewer characters than a terminal needs, unless it escapes all but ASCII.
    is_safe = text.replace("\n", "").isprintable()
    text = text if is_safe else _to_yaml(document, allow_unicode=False)
    return _annotated(text, find_origins(source, overrides))


def find_origins(source: str | None, overrides: Sequence[str]) -> dict[str, str]:
    """Return where each setting that is given comes from, by its dotted key."""
    given = {} if source is None else dict(flat(read_config(source)))
    where = escape(f"preset {source}" if source in presets() else f"file {source}")
    origins = dict.fromkeys(given, where)
    for text in overrides:
        origins |= dict.fromkeys(dict(flat(_parse_override(text))), "--set")
    return origins


def flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a document with its dotted key; a list is one setting."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _annotated(text: str, origins: Mapping[str, str]) -> str:
    """Append a comment to each line of a YAML document that starts a setting with an origin."""
    lines = text.splitlines()

    def visit(node: yaml.Node | None, path: str) -> None:
        assert isinstance(node, yaml.MappingNode)
        for key, value in node.value:
            name, line = f"{path}{key.value}", key.start_mark.line
            if name in origins and not (
                isinstance(value, yaml.ScalarNode) and value.end_mark.line > line
            ):
                lines[line] += f"  # {origins[name]}"
            elif isinstance(value, yaml.MappingNode):
                visit(value, f"{name}.")

    visit(yaml.compose(text, yaml.SafeLoader), "")
    return "\n".join(lines)


def _to_yaml(document: object, *, allow_unicode: bool) -> str:
    return yaml.dump(document, sort_keys=False, allow_unicode=allow_unicode, width=100).rstrip()


def plain(value: Any) -> Any:
    """Return a setting as the values that YAML writes without tags."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def json_schema(section: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a section, or of a configuration file with all sections."""
    names = _chosen_sections(section)
    schema = _described_schema([section_type(name) for name in names])
    for definition in schema["$defs"].values():  # pydantic before 2.14 omits it
        definition.setdefault("additionalProperties", False)
    references = dict(zip(names, schema["prefixItems"][: len(names)], strict=True))
    described = {"type": "object", "properties": references, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **(described if section is None else references[section]),
        "$defs": schema["$defs"],
    }


def _described_schema(kinds: Sequence[type]) -> dict[str, Any]:
    """Return the JSON Schema of a tuple of dataclasses, with the docstrings of all fields.

    Pydantic reads the docstrings of a class's own fields only; those of inherited fields are copied
    from the schemas of the base classes.
    """
    found = dict.fromkeys(hint for kind in kinds for _, hint in _walk(kind, ""))
    used = [kind for kind in found if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    bases = {kind: [b for b in kind.__mro__[1:] if dataclasses.is_dataclass(b)] for kind in used}
    extra = {base for inherited in bases.values() for base in inherited} - bases.keys()
    schema = _adapter(*kinds, *extra, described=True).json_schema()
    definitions = schema["$defs"]
    for kind, inherited in bases.items():
        for base in inherited:
            for name, field in definitions[base.__name__]["properties"].items():
                own = definitions[kind.__name__]["properties"][name]
                own.setdefault("description", field.get("description", ""))
    for base in extra:
        del definitions[base.__name__]
    return schema


def _walk(hint: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield a type and all types in it, each with its dotted name, without list indices."""
    yield path, hint
    if dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint).items():
            yield from _walk(inner, f"{path}.{name}")
    for inner in typing.get_args(hint):
        yield from _walk(inner, path)


def section_type(name: str) -> type:
    """Import the module of a section and return its dataclass."""
    module, attribute = SECTIONS[name]
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


def presets(kind: str = "") -> list[str]:
    """Return the names of the YAML files that ship with avtd3; a kind is a folder of them."""
    folder = resources.files("avtd3.configs") / kind
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def check_config(source: str) -> list[str]:
    """Check all sections of a YAML file or preset; return their names.

    Raises:
        ConfigError: With the problems of all sections.
    """
    problems, given = [], read_config(source)
    for section in given:
        _check_section(section, where=source)
    for section, document in given.items():
        try:
            build(section_type(section), document or {}, path=section)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return list(given)


def read_config(source: str) -> dict[str, Any]:
    """Read a YAML file, or a preset by name, into a mapping."""
    text = read_preset(source, otherwise="give a YAML file")
    return parse_mapping(text, source, of=f"sections: {', '.join(SECTIONS)}")


def read_preset(source: str, kind: str = "", *, otherwise: str) -> str:
    """Read a YAML file, or a preset by name; ``otherwise`` says what to do if neither is there."""
    path, known = Path(source), presets(kind)
    if not path.is_file() and source in known:  # a directory may have the same name
        return (resources.files("avtd3.configs") / kind / f"{source}.yaml").read_text("utf-8")
    return read_text(path, otherwise=f"{otherwise} or a preset ({', '.join(known)})")


def parse_mapping(text: str, source: str, *, of: str) -> dict[str, Any]:
    """Parse YAML into a mapping of ``of``; an empty text is an empty mapping."""
    document = _parse_yaml(text, f"config {source}")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"config {source} must be a mapping of {of}")
    return document


def read_text(path: Path, *, otherwise: str) -> str:
    """Read a YAML file; ``otherwise`` says how to fix a missing one.

    Raises:
        ConfigError: If there is no such file, it is too large, or it is not UTF-8.
        UnreadableError: If it cannot be read now.
    """
    try:
        return read_bytes(path, MAX_CONFIG_BYTES).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"config {path}: no such file; {otherwise}") from error
    except OSError as error:
        message = f"config {path} cannot be read: {error.strerror}"
        if is_passing(error):
            raise UnreadableError(error.errno, message) from error
        raise ConfigError(message) from error
    except ValueError as error:
        how = " as UTF-8 text" if isinstance(error, UnicodeDecodeError) else ""
        raise ConfigError(f"config {path} cannot be read{how}: {error}") from error


def _chosen_sections(section: str | None) -> list[str]:
    """Return one section, or all of them for None."""
    if section is None:
        return list(SECTIONS)
    _check_section(section, where="the configuration")
    return [section]


def _check_section(section: object, *, where: str) -> None:
    if section not in SECTIONS:
        close = _closest(str(section), SECTIONS, cutoff=0.5)
        hint = f"did you mean {close}?" if close else f"known: {', '.join(SECTIONS)}"
        raise ConfigError(f"unknown section {abbreviate(section)} in {where}; {hint}")


def build(kind: type, document: object, *, path: str) -> Any:
    """Build a dataclass from a mapping, strictly; ``path`` is the mapping's dotted name.

    Only whole numbers become int, and only true and false become bool. Lists become tuples.

    Raises:
        ConfigError: With the first problems and their dotted names, if a key is unknown, or a value
            has the wrong type or is rejected by the dataclass.
    """
    try:
        (config,) = _adapter(kind).validate_json(f"[{_to_json(document, path)}]")
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        shown = [_describe(problem, kind, path) for problem in problems[:SHOWN_PROBLEMS]]
        if problems[SHOWN_PROBLEMS:]:
            shown.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
        raise ConfigError("; ".join(shown)) from error
    return config


@functools.cache
def _adapter(*kinds: type, described: bool = False) -> pydantic.TypeAdapter[Any]:
    """Create a validator of JSON for a tuple of dataclasses, with their docstrings (slow) or not.

    Pydantic does not accept a config for a dataclass, but passes that of a tuple on to its items.
    In strict mode, it builds tuples from lists and dataclasses from mappings only for JSON input.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=described)
    hint: Any = types.GenericAlias(tuple, kinds)
    return pydantic.TypeAdapter(hint, config=config)


def _to_json(document: object, path: str) -> str:
    tokens, size = [], 0
    try:
        for token in json.JSONEncoder(default=str).iterencode(document):  # dates become strings
            tokens.append(token)
            size += len(token)
            if len(tokens) > MAX_VALUES or size > MAX_CHARACTERS:
                break
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deep") from error
    except (TypeError, ValueError) as error:  # keys such as a date; cycles
        raise ConfigError(f"{path} is not a plain document: {error}") from error
    if len(tokens) > MAX_VALUES or size > MAX_CHARACTERS:
        raise ConfigError(
            f"{path} has more than {MAX_VALUES:,} values or {MAX_CHARACTERS:,} characters, "
            "expected a configuration"
        )
    return "".join(tokens)


def _describe(problem: Any, config: type, path: str) -> str:
    """Describe where a value is wrong, what was expected and what was found."""
    location = problem["loc"][1:]  # without the index in the tuple of `_adapter`
    place = path + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location)
    kind, context, found = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind == "unexpected_keyword_argument":
        return f"unknown key {abbreviate(place)}; {_nearest(place, config, path)}"
    if kind == "value_error":
        text = str(context["error"])
        return text if text.startswith(place) else f"{place}: {text}"
    if kind == "missing":
        return f"{place} is missing"
    if kind == "too_long":
        most, count = context["max_length"], context["actual_length"]
        return f"{place} must have {most} values, found {count}"
    if kind == "json_invalid":  # only a lone surrogate gets this far
        return f"{place} has text that is not Unicode"
    if kind.startswith("int_") and isinstance(found, float) and abs(found) > MAX_INTEGER:
        return f"{place} is {found}, expected at most {MAX_INTEGER}"
    expected = context["expected"] if kind == "literal_error" else _EXPECTED.get(kind)
    reason = problem["msg"] if expected is None else f"must be {expected}"
    return f"{place} {reason}, found {abbreviate(found)}"


def _settings(hint: Any, path: str) -> list[str]:
    """Return the dotted name of every setting below a type, without list indices."""
    return [name for name in dict(_walk(hint, path)) if name != path]


def _nearest(place: str, config: type, path: str) -> str:
    """Suggest what an unknown key may mean.

    The most likely first: a similar name at the same level, the same name or one that contains its
    words (``lr``) elsewhere in the section, a less similar name, the same in other sections.
    """
    parent, _, name = place.rpartition(".")
    plain_parent = re.sub(r"\[\d+\]", "", parent)
    own = _settings(config, path)
    beside = {
        leaf: f"{parent}.{leaf}"
        for above, _, leaf in (setting.rpartition(".") for setting in own)
        if above == plain_parent
    }
    close = _closest(name, beside, cutoff=0.8)
    found = [beside[close]] if close else _named(name, own, plain_parent)
    if not found and (close := _closest(name, beside, cutoff=0.5)):
        found = [beside[close]]
    found = found or _named(name, _other_settings(path), plain_parent)
    return f"did you mean {' or '.join(found)}?" if found else f"known: {', '.join(sorted(beside))}"


def _named(name: str, settings: Iterable[str], parent: str) -> list[str]:
    """Return the settings of a name, or which contain its words, or of a similar name.

    Settings below ``parent`` come before others; at most four are returned.
    """
    wanted = _SYNONYMS.get(name, name)
    words = set(wanted.split("_"))
    leaves: dict[str, list[str]] = {}
    for setting in sorted(settings, key=lambda setting: not setting.startswith(f"{parent}.")):
        leaves.setdefault(setting.rpartition(".")[2], []).append(setting)
    names = [wanted] if wanted in leaves else [n for n in leaves if words <= set(n.split("_"))]
    if not names and (close := _closest(wanted, leaves, cutoff=0.8)):
        names = [close]
    return [setting for name in names for setting in leaves[name]][:4]


def _other_settings(path: str) -> Iterator[str]:
    """Yield the settings of the other sections whose packages are installed."""
    for section in [name for name in SECTIONS if path in SECTIONS and name != path]:
        with contextlib.suppress(ImportError):
            yield from _settings(section_type(section), section)


def _closest(name: str, known: Iterable[str], *, cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


class _Loader(yaml.SafeLoader):
    """Safe loader that reads 1e-4 and 1e6 as numbers, and ignores keys without a value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        node.value = [pair for pair in node.value if not _is_empty(pair[1])]
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:  # "<<" of aliases doubles at each level
            raise ValueError(f"a mapping has more than {MAX_VALUES:,} keys")

    def construct_number(self, node: yaml.ScalarNode) -> float:
        value: float = self.construct_yaml_float(node)
        return int(value) if value.is_integer() and abs(value) <= MAX_INTEGER else value

    def construct_integer(self, node: yaml.ScalarNode) -> float:
        value: int = self.construct_yaml_int(node)
        return value if abs(value) <= MAX_INTEGER else float(value)


# YAML 1.1 requires a dot in the mantissa and a sign in the exponent; YAML 1.2 does not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and node.value == ""


_YAML_ERRORS = (
    *(yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


def _parse_yaml(text: str, place: str) -> Any:
    """Parse YAML; ``place`` says in messages what is parsed.

    PyYAML lets errors of many kinds through: ``0x_``, ``2020-13-45``, ``!!bool x``, ``[[[[``.
    """
    try:
        return yaml.load(text, _Loader)  # which is a SafeLoader
    except RecursionError as error:
        raise ConfigError(f"{place} is nested too deep") from error
    except _YAML_ERRORS as error:
        raise ConfigError(f"{place} is not valid YAML: {' '.join(str(error).split())}") from error


def _parse_override(text: str) -> dict[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key or "" in key.split("."):
        raise ConfigError(f"found --set {abbreviate(text)}, expected section.key=value")
    document: Any = _parse_yaml(value, f"the value of --set {abbreviate(text)}")
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
