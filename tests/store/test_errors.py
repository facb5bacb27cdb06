import copy
import inspect

import pytest

from avtd3.store import errors

BUILTIN_BASES = {
    "ConfigError": ValueError,
    "SpecError": ValueError,
    "FormatVersionError": ValueError,
    "DatasetError": OSError,
    "NoSegmentsError": OSError,
    "UnreadableError": OSError,
    "DatasetUnreadableError": OSError,
    "SegmentUnreadableError": OSError,
    "SegmentNotFoundError": FileNotFoundError,
    "SegmentCorruptError": ValueError,
    "CheckpointError": ValueError,
    "MissingPackageError": ImportError,
    "RoadError": ValueError,
    "RouteError": ValueError,
    "WorldError": RuntimeError,
    "WorldLost": RuntimeError,
    "StorageError": OSError,
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
