"""Audits of numbers of any size, in any place: findings and pages, never a traceback."""

import dataclasses
import datetime
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.audit.checks import CheckLimits, check_values, episode_bounds
from avtd3.store.audit.drift import drift_between
from avtd3.store.audit.segment_data import FrameFeatures, SegmentData
from avtd3.store.audit.statistics import Bins, Distribution, Moments, Summary, near_zero, summarise
from avtd3.store.dataset import Dataset
from avtd3.store.render import plots, text
from avtd3.store.render.audit_view import audit_page, audit_text, choose_episodes, drift_text
from avtd3.store.render.episode_view import (
    Channel,
    Track,
    document_of,
    draw_episode,
    find_episode,
    write_episode_gif,
    write_episode_sheet,
)
from avtd3.store.spec import EpisodeSpec
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.segments import episode_table, feed, make_episode, make_spec, write_dataset

ODD = (
    *(0.0, -0.0, 1.0, 5e-324, 1e-310, 1e16, 3e38, -3e38, 1e300, 1.7e308, -1.7e308),
    *(math.inf, -math.inf, math.nan, 2.0**52, 2.0**53 + 2, 0.1),
)
WHOLE = (0, 1, -1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), -(2**63) + 1)
MADE = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)

doubles = st.one_of(st.sampled_from(ODD), st.floats())
singles = st.one_of(st.sampled_from([3e38, -3e38, 1e-45, np.nan, np.inf, 0.0]), st.floats(width=32))
wholes = st.one_of(st.sampled_from(WHOLE), st.integers(-(2**63), 2**63 - 1))
fuzz = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def column(values, length, dtype=np.float64):
    return st.lists(values, min_size=length, max_size=length).map(lambda v: np.array(v, dtype))


@fuzz
@given(st.lists(doubles, min_size=1, max_size=40), st.lists(doubles, min_size=1, max_size=40))
def test_statistics_and_plots_take_any_number(one, other):
    first, second = (np.array(values) for values in (one, other))
    known = Distribution.of(first, "a").merge(Distribution.of(second, "b"))
    json.dumps(known.document(), allow_nan=False)
    for values in (first, second):
        if (bins := Bins.of(known.sample.values)) is not None:
            assert bins.counts.sum() == known.sample.values.size
            assert (np.diff(bins.edges) > 0).all()
            near_zero(known)
            text.shade_strip(bins.counts, 40)
            drawn = plots.histogram(bins.edges, bins.counts, name="x", marks={"median": other[0]})
            assert "nan" not in drawn.partition("<rect")[2].partition("<title")[0]
        track = Track(title="t", channels=(Channel(name="c", values=values),))
        low, high = track.shown_range
        assert low < high
        assert math.isfinite(high - low)
        plots.sparkline(values, name="c", shown=(low, high))
        assert len(text.sparkline(values, 20)) <= 20
        steps = np.arange(len(values))
        line = plots.Line(label="l", steps=steps, values=values, kind="after")
        plots.curves([line], name="n", axis="a", limits=other)
        for value in values.tolist():
            text.number(value)
            text.percent(value)
            text.duration(value)
            text.file_size(value)


@st.composite
def segments(draw):
    """Data of a segment whose episodes are sound and whose numbers are anything."""
    lengths = np.array(draw(st.lists(st.integers(1, 70), min_size=1, max_size=3)))
    scales = draw(st.lists(st.sampled_from([1.0, 5e-324, 1e300]), min_size=2, max_size=2))
    spec = EpisodeSpec(
        vector_names=("speed_mps", "y"),
        vector_scales=tuple(scales),
        action_names=("a",),
        action_low=(draw(st.sampled_from([-1.0, -1.7e308])),),
        action_high=(draw(st.sampled_from([1.0, 1.7e308])),),
        reward_terms=("r", "s"),
        control_period_s=draw(st.sampled_from([0.05, 5e-324, 1.7e308])),
    )
    steps, count = int(lengths.sum()), len(lengths)
    rows = steps + count
    table = episode_table(
        offset=lengths.cumsum() - lengths,
        length=lengths,
        index=draw(column(wholes, count, np.int64)),
        seed=draw(column(wholes, count, np.int64)),
        scenario=draw(column(wholes, count, np.int64)),
        policy_version=draw(column(wholes, count, np.int64)),
        episode_return=draw(column(doubles, count)),
        wall_time=draw(column(doubles, count)),
        exploration_noise=draw(column(singles, count, np.float32)),
    )
    tile = draw(st.integers(1, 7))

    def repeated(values, size, dtype=np.float32):
        return np.resize(draw(column(values, tile, dtype)), size)

    ends = np.zeros(steps, np.bool_)
    ends[lengths.cumsum() - 1] = True
    data = SegmentData(
        spec=spec,
        vector=repeated(singles, (rows, 2)),
        streams={
            "image": FrameFeatures(
                mean=np.resize(np.array([0.0, 255.0, 128.0], np.float32), rows),
                spread=np.resize(np.array([0, 255, 7], np.uint8), rows),
                repeated=np.resize([False, True, True], rows),
            )
        },
        frame_id=repeated(wholes, rows, np.int64),
        sim_time=repeated(doubles, rows, np.float64),
        action=repeated(singles, (steps, 1)),
        reward=repeated(singles, steps),
        reward_terms=repeated(singles, (steps, 2)),
        terminated=ends,
        truncated=np.zeros(steps, np.bool_),
        episodes=table,
    )
    return data


@fuzz
@given(segments(), segments())
def test_checks_and_summaries_take_any_number(one, other):
    summaries = []
    with np.errstate(all="ignore"):
        for name, data in (("a", one), ("b", other)):
            found = list(check_values(data, CheckLimits()))
            assert all(fault.message for fault in found)
            summaries.append(summarise(name, data, gamma=0.99))
    first, second = summaries
    both = Summary(simulated_seconds=1e308).merge(first).merge(second)
    drifts = drift_between(first, second)
    drift_text(drifts, "a", "b")
    report = dataclasses.replace(audit([]), total=both, windows=(first, second))
    json.dumps(report.document(), allow_nan=False)
    json.dumps([drift.document() for drift in drifts], allow_nan=False)
    audit_text(report)
    audit_page(report, (), made=MADE, drifts=drifts, compared=("a", "b"))


def test_an_advance_that_does_not_fit_into_64_bits_has_the_right_sign():
    from avtd3.store.audit.checks import frame_gap, frame_order

    spec = EpisodeSpec(vector_names=("x",), action_names=("a",))
    data = SegmentData(
        spec=spec,
        vector=np.zeros((3, 1), np.float32),
        streams={},
        frame_id=np.array([-(2**63), 2**63 - 1, 5]),
        sim_time=np.arange(3.0),
        action=np.zeros((2, 1), np.float32),
        reward=np.ones(2, np.float32),
        reward_terms=None,
        terminated=np.array([False, True]),
        truncated=np.zeros(2, np.bool_),
        episodes=episode_table(length=np.array([2]), offset=np.array([0])),
    )
    ((_, message),) = frame_order(data, CheckLimits())
    assert message.startswith("frame 5 after 9223372036854775807 at observation 2")
    assert list(frame_gap(data, CheckLimits()))


@pytest.mark.parametrize(
    "length", [[2**62, 2**62, 2**62, 2**62 + 8], [2**63 - 1, 2**63 - 1, 10], [0, 8], [-1, 9]]
)
def test_lengths_whose_sum_overflows_are_found(length):
    lengths = np.array(length)
    with np.errstate(over="ignore"):
        offset = lengths.cumsum() - lengths
        steps = int(lengths.sum())
    assert list(episode_bounds(offset, lengths, steps=steps, observations=steps + len(length)))


@pytest.mark.parametrize("value", [3e38, -3.4e38, 1e-45])
def test_a_dataset_of_odd_rewards_is_audited_shown_and_drawn(tmp_path, value):
    spec = make_spec(height=12, width=12)
    episodes = [make_episode(spec, 12, n, index=2**62 + n, scenario=2**62) for n in range(3)]
    for episode in episodes:
        episode.terms[:] = (value, 0.0)
        episode.reward[:] = np.float32(value)
    path = tmp_path / "data"
    write_dataset(path, spec, episodes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit([path], AuditConfig(scheduler="sync"))
        page = audit_page(report, choose_episodes([path]), made=MADE)
        assert "Returns" in page
        assert "array-unreadable" not in report.log.counts
        audit_text(report)
        episode = find_episode([path], "best", np.random.default_rng(0))
        json.dumps(document_of(episode), allow_nan=False)
        draw_episode(episode, text.Terminal())
        write_episode_sheet(episode, tmp_path / "a.png")
        write_episode_gif(episode, tmp_path / "a.gif")


def test_a_plan_with_an_enormous_index_lists_its_first_gaps(tmp_path):
    spec = make_spec(image=False)
    episodes = [make_episode(spec, 3, n, index=index) for n, index in enumerate([0, 2, 2**63 - 1])]
    dataset = Dataset.create(tmp_path / "data", spec)
    with SegmentWriter(dataset, provenance={"plan_digest": "p"}) as writer:
        for episode in episodes:
            feed(writer, episode)
    report = audit([tmp_path / "data"], AuditConfig(scheduler="sync"))
    (gap,) = [f for f in report.findings if f.check == "index-gap"]
    assert f"lacks {2**63 - 3} episodes below {2**63 - 1}: 1, 3, 4, 5, 6, ..." in gap.message


def test_moments_of_the_largest_numbers_are_none_in_json():
    document = Moments.of(np.array([1.7e308, math.inf])).document()
    assert document == {"count": 0, "mean": None, "std": None, "min": None, "max": None}
