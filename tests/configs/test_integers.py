"""Whole numbers of the configuration, given from Python as something else."""

import dataclasses
import typing

import pytest

from avtd3.configs.load import SECTIONS, section_type
from avtd3.store.errors import ConfigError


def configs(kind):
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                yield from configs(inner)


FIELDS = [
    (kind, field.name)
    for kind in dict.fromkeys(kind for name in SECTIONS for kind in configs(section_type(name)))
    for field in dataclasses.fields(kind)
    if int in (field.type, *typing.get_args(field.type))
]


@pytest.mark.parametrize(
    ("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_whole_number_is_no_float_and_no_bool(kind, name):
    hint = next(field.type for field in dataclasses.fields(kind) if field.name == name)
    is_list = typing.get_origin(hint) is tuple
    for value in (1.5, 40.0, float("nan"), True):
        with pytest.raises(ConfigError, match=name):
            kind(**{name: (value,) if is_list else value})


def test_all_sections_have_whole_numbers():
    assert len(FIELDS) > 60
    assert {kind for kind, _ in FIELDS} >= {section_type(name) for name in SECTIONS}
