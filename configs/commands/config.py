"""`avtd3 config`: show, list, check and compare settings, and describe all of them."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from avtd3.configs.commands.console import print_answer
from avtd3.configs.commands.options import (
    SCENARIOS,
    ConfigOption,
    SetOption,
    answer,
    argument,
    complete_presets,
    complete_sections,
    describe_lines,
    describe_presets,
    group,
)

app = group("Show, list, check and compare settings.")

SectionArgument = Annotated[
    str | None,
    argument(
        "SECTION",
        "collect, learn, audit, evaluate or demo. Default: all sections.",
        show_default=False,
        autocompletion=complete_sections,
    ),
]
DEFAULTS = "defaults"
"""Name by which `avtd3 config diff` knows the defaults."""


@app.command()
def show(
    section: SectionArgument = None, config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Print the resolved settings as YAML.

    The output contains every setting, with defaults, and can be used as a --config file. A comment
    after each setting that is not a default says whether it comes from a preset, a file or --set.
    """
    from avtd3.configs.load import dump_sections

    print_answer(dump_sections(section, config, set_ or ()))


@app.command("list")
def list_() -> None:
    """List the presets and the built-in scenarios."""
    from avtd3.store.render.text import WIDTH, join_lines

    scenarios = {str(number): f"{text.capitalize()}." for number, text in enumerate(SCENARIOS)}
    presets = ["Presets, for --config:", *describe_lines(describe_presets(), WIDTH), ""]
    print_answer(
        join_lines([*presets, "Scenarios, for --scenario:", *describe_lines(scenarios, WIDTH)])
    )


@app.command()
def check(
    files: Annotated[
        list[str], argument("FILE", "YAML files or presets.", autocompletion=complete_presets)
    ],
) -> None:
    """Check configuration files: sections, keys, types and values.

    Exits with 2 at the first invalid file, and lists its problems.
    """
    from avtd3.configs.load import check_config
    from avtd3.store.render.text import join_lines

    sections = {file: check_config(file) for file in files}
    lines = (f"{file}: ok ({', '.join(found) or 'empty'})" for file, found in sections.items())
    print_answer(join_lines(lines))


@app.command()
def diff(
    first: Annotated[
        str,
        argument(
            "A",
            "A YAML file, a preset, the directory of a run, or the word defaults.",
            autocompletion=complete_presets,
        ),
    ],
    second: Annotated[str, argument("B", "As A.", autocompletion=complete_presets)] = DEFAULTS,
) -> None:
    """List the settings that differ between two configurations.

    A setting that one of them does not name has its default. A run has the settings of learn only.
    """
    from avtd3.store.render.text import columns, join_lines, shorten

    ours, theirs = _resolve(first), _resolve(second)
    rows = [
        (key, shorten(_yaml(ours[key])), shorten(_yaml(theirs[key])))
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]
    heads = ("setting", first, second)
    print_answer(join_lines(columns([heads, *rows], "<<<") if rows else ["no differences"]))


def _resolve(source: str) -> dict[str, Any]:
    """Return every setting of a configuration, or those of a run, by its dotted key."""
    from avtd3.configs.load import SECTIONS, flat, load_section, plain
    from avtd3.configs.load import presets as list_presets

    if source != DEFAULTS and source not in list_presets() and Path(source).is_dir():
        from avtd3.learn.run_settings import read_settings

        stored = read_settings(Path(source))["learn"]
        document = {"learn": plain(load_section("learn", stored=stored))}
    else:
        given = None if source == DEFAULTS else source
        document = {name: plain(load_section(name, given)) for name in SECTIONS}
    return dict(flat(document))


def _yaml(value: object) -> str:
    """Return a value in one line, as YAML reads it."""
    return json.dumps(value, ensure_ascii=False)


@app.command()
def schema(section: SectionArgument = None) -> None:
    """Print the JSON Schema of configuration files.

    Editors that read it complete and check configuration files as you type.
    """
    from avtd3.configs.load import json_schema

    answer(json_schema(section), True, "")


@app.command()
def presets() -> None:
    """List the names of the presets that --config accepts."""
    from avtd3.configs.load import presets as list_presets

    print_answer("\n".join(list_presets()))


@app.command()
def reference() -> None:
    """Print a page of all settings as Markdown: docs/config.md."""
    print_answer(reference_page())


class _Place(NamedTuple):
    """Where a dataclass of settings is used."""

    key: str
    """Dotted key of the mapping, such as ``learn.td3``."""
    default: Any
    """Its default: an instance, or the class where the mapping is an item of a list."""


def reference_page() -> str:
    """Return a Markdown page with the meaning, type and default of every setting."""
    from avtd3.configs.load import SECTIONS, json_schema, section_type
    from avtd3.store.render.text import markdown_table

    places: dict[type, list[_Place]] = {}
    for section in SECTIONS:
        _find_places(section_type(section), section, section_type(section)(), places)
    definitions = json_schema()["$defs"]
    lines = [*_INTRODUCTION.splitlines(), ""]
    lines += markdown_table(("preset", "for"), "<<", list(describe_presets().items()))
    for kind, found in places.items():
        properties = definitions[kind.__name__]["properties"]
        rows = [
            (f"`{name}`", _type_text(hint), default, properties[name]["description"])
            for name, hint, default in _settings(kind, found)
        ]
        lines += ["", f"## {', '.join(f'`{place.key}`' for place in found)}", ""]
        lines += [" ".join((kind.__doc__ or "").partition("\n\n")[0].split()), ""]
        lines += markdown_table(("key", "type", "default", "meaning"), "<<<<", rows)
    return "\n".join(lines)


_INTRODUCTION = """\
# Configuration

Every setting, its type, its default and its meaning. This page is written from the docstrings of
the code by `avtd3 config reference > docs/config.md`.

A configuration file is YAML with a section for each command. It names only what differs from the
defaults:

```yaml
learn:
  updates: 20000
  td3: {tau: 0.01}
```

The defaults, `--config FILE_OR_PRESET`, `--set learn.td3.tau=0.01` and the other options of a
command apply in this order; the last one counts. An unknown key is an error that names the most
similar valid key. None is `null` in YAML.

| command | purpose |
| --- | --- |
| `avtd3 config show [SECTION]` | Print all settings as YAML, and which preset or file set each. |
| `avtd3 config list` | List the presets and the built-in scenarios. |
| `avtd3 config check FILE...` | Check files and presets without running anything. |
| `avtd3 config diff A [B]` | List the differences between files, presets, runs or the defaults. |
| `avtd3 config schema` | Print a JSON Schema. |

For completion and checks in an editor, write the schema to a file
(`avtd3 config schema > avtd3.schema.json`) and begin your configuration file with
`# yaml-language-server: $schema=avtd3.schema.json`."""


def _find_places(hint: Any, key: str, default: Any, into: dict[type, list[_Place]]) -> None:  # noqa: ANN401 - a type
    """Find the dataclasses in the type of a setting, the outer ones first."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        into.setdefault(hint, []).append(_Place(key, default))
        for name, inner in typing.get_type_hints(hint).items():
            _find_places(inner, f"{key}.{name}", getattr(default, name, None), into)
    for inner in typing.get_args(hint):
        is_item = typing.get_origin(hint) is tuple
        _find_places(inner, f"{key}[]" if is_item else key, hint if is_item else default, into)


def _settings(kind: type, places: list[_Place]) -> Iterator[tuple[str, Any, str]]:
    """Yield name, type and default of each setting of a dataclass that has no table of its own."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            continue
        values: dict[str, list[str]] = {}
        for place in places:
            is_made = isinstance(place.default, kind)
            value = getattr(place.default, field.name) if is_made else field
            values.setdefault(_default_text(value), []).append(place.key)
        (text, _), *others = values.items()
        if others:
            text = "; ".join(f"{value} ({', '.join(keys)})" for value, keys in values.items())
        yield field.name, hint, text


def _default_text(value: Any) -> str:  # noqa: ANN401 - any setting
    from avtd3.configs.load import plain

    if isinstance(value, dataclasses.Field):
        factory = value.default_factory
        value = factory() if callable(factory) else value.default
        if value is dataclasses.MISSING:
            return "required"
    return f"`{_yaml(plain(value))}`"


_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "any value",
}


def _type_text(hint: Any) -> str:  # noqa: ANN401 - a type
    """Describe the type of a setting."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_text, inner))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: {', '.join(map(_type_text, inner))}"
    if origin in (tuple, list):
        return f"list of: {_type_text(inner[0])}"
    if origin is not None:
        return f"mapping of names to: {_type_text(inner[1])}"
    return _NAMES.get(hint) or "mapping, see below"
