import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store.errors import SpecError
from avtd3.store.spec import MAX_AXIS, EpisodeSpec, ImageSpec
from avtd3.tests.store.segments import make_spec

names = st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True)


@given(vector=names, terms=names, channels=st.integers(1, 4), image=st.booleans())
def test_json_round_trip_keeps_the_digest(vector, terms, channels, image):
    spec = EpisodeSpec(
        image=ImageSpec(channels=channels) if image or not vector else None,
        vector_names=tuple(vector),
        vector_scales=tuple(1.5 + n for n in range(len(vector))),
        action_names=("steer",),
        action_low=(-1,),
        action_high=(1,),
        reward_terms=tuple(terms),
        control_period_s=0.05,
    )
    again = EpisodeSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    # Whole numbers given for decimals must not make another digest after a trip through a file.
    assert again.digest == EpisodeSpec.from_json(again.to_json()).digest


def test_whole_numbers_and_decimals_make_the_same_digest():
    whole = dataclasses.replace(make_spec(), action_low=(-1, -1), action_high=(1, 1))
    decimal = dataclasses.replace(make_spec(), action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    assert whole == decimal
    assert whole.digest == decimal.digest


def test_shapes():
    image = ImageSpec(channels=3, height=10, width=20, stack=4)
    assert image.frame_shape == (3, 10, 20)
    assert image.observation_shape == (12, 10, 20)
    assert image.frame_bytes == 600
    assert make_spec(vector=0).vector_size == 0


@pytest.mark.parametrize(
    "change",
    [
        {"image": None, "vector_names": (), "vector_scales": ()},
        {"vector_scales": (1.0,)},
        {"vector_scales": (1.0, 0.0, 1.0)},
        {"vector_scales": (1.0, float("nan"), 1.0)},
        {"vector_names": ("a", "a", "b")},
        {"vector_names": ("a", "", "b")},
        {"action_names": (), "action_low": (), "action_high": ()},
        {"action_low": (1.0, 0.0)},
        {"action_high": (float("inf"), 1.0)},
        {"control_period_s": 0.0},
        {"control_period_s": float("nan")},
    ],
)
def test_impossible_specs_are_refused(change):
    with pytest.raises(SpecError):
        dataclasses.replace(make_spec(), **change)


@pytest.mark.parametrize("side", [0, -1, MAX_AXIS + 1, 1.0, True, "84"])
def test_impossible_images_are_refused(side):
    with pytest.raises(SpecError, match=r"image\.width"):
        ImageSpec(width=side)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {**make_spec().to_json(), "extra": 1},
        {**make_spec().to_json(), "image": {"colour": 1}},
        {**make_spec().to_json(), "image": 3},
        {**make_spec().to_json(), "vector_scales": None},
        {**make_spec().to_json(), "action_low": ["a", "b"]},
        {**make_spec().to_json(), "control_period_s": None},
    ],
)
def test_invalid_documents_are_refused(document):
    with pytest.raises(SpecError):
        EpisodeSpec.from_json(document)


ANYTHING: list[object] = [
    *(None, True, 1, -1, 10**400, 1e400, float("nan"), "steer", "x" * 10**6, "\x1b[2J", "\udcff"),
    *([], {}, [None], [1, None], ["a", "a"], [""], [[]], {"a": 1}, [10**400], ["x" * 10**6]),
    *([0.0] * 10**5, [True], {"channels": "x" * 10**6}, {"height": 10**400}, {"\x1b": 1}),
]


@pytest.mark.parametrize("key", make_spec().to_json())
def test_any_json_in_a_spec_is_refused_in_one_short_line(key):
    for value in ANYTHING:
        document = {**make_spec().to_json(), key: value}
        try:
            spec = EpisodeSpec.from_json(document)
        except SpecError as error:
            text = str(error)
            assert len(text) < 300
            assert text.isprintable()
        else:
            assert EpisodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_names_must_be_texts():
    for names in ("steer", [1, 2], [None], 3, {"a": 1}):
        with pytest.raises(SpecError, match="action_names"):
            EpisodeSpec.from_json({**make_spec().to_json(), "action_names": names})


def test_difference_names_what_differs():
    one = make_spec()
    other = dataclasses.replace(one, control_period_s=0.1)
    assert one.difference(one) == ""
    assert one.difference(other) == "control_period_s: 0.05 against 0.1"
