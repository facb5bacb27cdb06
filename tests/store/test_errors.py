import copy
import inspect

import pytest

from avtd3.store import errors

BUILTIN_BASES = {
    "ConfigError": ValueError,
    "InUseError": ValueError,
    "SpecError": ValueError,
    "FormatVersionError": ValueError,
    "DatasetError": OSError,
    "NoSegmentsError": OSError,
    "UnreadableError": OSError,
    "DatasetUnreadableError": OSError,
    "SegmentUnreadableError": OSError,
    "UnreachableError": OSError,
    "SegmentNotFoundError": FileNotFoundError,
    "SegmentCorruptError": ValueError,
    "CheckpointError": ValueError,
    "MissingPackageError": ImportError,
    "RoadError": ValueError,
    "RouteError": ValueError,
    "WorldError": RuntimeError,
    "WorldLost": RuntimeError,
    "StorageError": OSError,
    "RankLostError": ConnectionError,
}


@pytest.mark.parametrize(("name", "builtin"), BUILTIN_BASES.items())
def test_each_error_is_ours_and_a_builtin(name, builtin):
    error = getattr(errors, name)
    assert issubclass(error, errors.Avtd3Error)
    assert issubclass(error, builtin)
    assert name in errors.__doc__


def test_the_tree_is_complete():
    found = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.Avtd3Error)
    }
    assert found == {*BUILTIN_BASES, "Avtd3Error"}


def test_a_missing_dataset_and_an_empty_one_have_different_errors():
    assert issubclass(errors.NoSegmentsError, errors.DatasetError)


def test_an_unreadable_dataset_is_no_damaged_one_but_a_dataset_error():
    assert issubclass(errors.DatasetUnreadableError, errors.DatasetError)
    assert not issubclass(errors.SegmentUnreadableError, errors.SegmentCorruptError)


def test_a_lost_world_says_what_and_why_wherever_it_is_copied_to():
    error = errors.WorldLost("no frame within 5 s", "sensor_stall")
    for copy_of in (error, copy.copy(error), errors.WorldLost(*error.args)):
        assert (str(copy_of), copy_of.reason) == ("no frame within 5 s", "sensor_stall")
    assert errors.WorldLost("gone").reason == "server_lost"


class Counted(list[int]):
    """Counts how many of its items are looked at."""

    def __init__(self, items):
        super().__init__(items)
        self.seen = 0

    def __iter__(self):
        for item in super().__iter__():
            self.seen += 1
            yield item


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
BOMB: list[object] = ["lol"]
for _ in range(40):
    BOMB = [BOMB, BOMB]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "'plain'"),
        (None, "None"),
        (1.5, "1.5"),
        (True, "True"),
        ([1, "a"], "[1, 'a']"),
        ({"a": [1], 2: {}}, "{'a': [1], 2: {}}"),
        ("\x1b[2J\n\0", r"'\x1b[2J\n\x00'"),
        ("a\udcff", r"'a\udcff'"),
        ("ü漢", "'ü漢'"),
        (10**400, "a whole number of 1329 bits"),
        ("x" * 10**7, "'" + "x" * 76 + "..."),
        (b"x" * 10**7, "b'" + "x" * 75 + "..."),
    ],
)
def test_a_value_in_a_message_is_short_and_printable(value, text):
    assert errors.abbreviate(value) == text


@pytest.mark.parametrize("value", [BOMB, CIRCLE, {"a": BOMB}, (BOMB, 10**9999), {1: CIRCLE}])
def test_huge_and_circular_values_are_cut(value):
    assert len(errors.abbreviate(value)) == 80
    assert len(errors.abbreviate(value, 20)) == 20


def test_only_what_is_shown_of_a_value_is_formatted():
    values = Counted(range(10**6))
    assert errors.abbreviate(values).endswith("...")
    assert values.seen < 80


def test_text_from_a_foreign_repr_is_escaped():
    class Odd:
        def __repr__(self):
            return "a\x1b[2J\n" * 99

    text = errors.abbreviate(Odd())
    assert text.isprintable()
    assert len(text) == 80


@pytest.mark.parametrize("name", sorted(BUILTIN_BASES.keys() - {"InUseError", "WorldLost"}))
def test_no_message_is_endless(name):
    kind = getattr(errors, name)
    text = str(kind(f"expected a, found {'x' * 10_000_000!r} in the file"))
    assert len(text) < 2000
    assert text.startswith("expected a, found 'xxx")
    assert text.endswith("xxx' in the file")
    assert str(kind("short")) == "short"
