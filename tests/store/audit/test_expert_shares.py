"""The audit says who drove, and how far other drivers were from the expert."""

import datetime

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.render.audit_view import audit_page, audit_text
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.step_labels import StepLabels
from avtd3.store.writer import SegmentWriter

SPEC = EpisodeSpec(
    vector_names=("x",), action_names=("steer", "gas"), action_low=(-1.0, 0.0), action_high=(1.0, 4)
)


def write(path, drives):
    """Write episodes: for each step, the action, the expert's action, and whether it drove."""
    dataset = Dataset.create(path, SPEC)
    at = Observation(vector=np.zeros(1, np.float32))
    for drive in drives:  # a segment each
        with SegmentWriter(dataset) as writer:
            writer.begin(at)
            for n, (action, _, _) in enumerate(drive):
                writer.step(np.array(action, np.float32), 0.5, at, terminated=n + 1 == len(drive))
            labels = None
            if drive[0][1] is not None:
                labels = StepLabels(
                    expert_action=np.array([label for _, label, _ in drive], np.float32),
                    expert_drove=np.array([drove for _, _, drove in drive]),
                )
            writer.end(labels=labels)
    return dataset.path


UNKNOWN = (np.nan, np.nan)
MADE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DRIVES = [
    [
        ((0.0, 2.0), (0.1, 2.0), False),
        ((0.0, 2.0), (0.0, 3.0), False),  # gas differs by half of its half range
        ((0.5, 1.0), (0.5, 1.0), True),
        ((0.5, 1.0), UNKNOWN, False),
        ((0.4, 1.0), (0.0, 1.0), False),
        ((0.4, 1.0), (0.4, 1.0), True),
    ],
    [((0.2, 2.0), (0.2, 2.0), True), ((0.2, 2.0), (0.2, 2.0), True)],
    [((0.9, 2.0), None, False)],  # nothing is known
]


def test_shares_are_as_counted_by_hand(tmp_path):
    report = audit([write(tmp_path / "data", DRIVES)])
    shares = report.document()["expert"]
    assert shares == pytest.approx(
        {
            "steps": 8,
            "drove": 4 / 8,
            "takeovers": 2,
            "compared": 3,
            "differing": 2 / 3,
            "distance steer": (0.1 + 0.0 + 0.4) / 3,
            "distance gas": (0.0 + 0.5 + 0.0) / 3,
        }
    )
    text = audit_text(report)
    assert "expert, known in 8 steps" in text
    assert "drove in 50%, took over 2 times" in text
    assert "67" in text.split("other drivers")[1]
    assert max(map(len, text.splitlines())) <= 80
    page = audit_page(report, (), made=MADE)
    assert "the expert drove" in page


def test_without_labels_nothing_is_said(tmp_path):
    report = audit([write(tmp_path / "data", DRIVES[2:])])
    assert report.document()["expert"] == {}
    assert "expert" not in audit_text(report)
    assert "the expert drove" not in audit_page(report, (), made=MADE)


def test_drives_of_the_expert_alone_compare_with_nobody(tmp_path):
    report = audit([write(tmp_path / "data", DRIVES[1:2])])
    shares = report.document()["expert"]
    assert shares == {"steps": 2.0, "takeovers": 0.0, "compared": 0.0, "drove": 1.0}
    assert "other drivers" not in audit_text(report)
