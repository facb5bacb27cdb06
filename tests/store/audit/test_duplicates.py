"""Episodes that repeat another one are reported; different drives are not."""

import dataclasses

import numpy as np

from avtd3.store.audit.audit import audit
from avtd3.store.audit.duplicates import DuplicateFinder, perceptual_hashes
from avtd3.store.audit.segment_data import SegmentData
from avtd3.tests.store.audit.test_audit import SYNC, rewrite, write
from avtd3.tests.store.audit.test_audit_planted import SPEC, drive
from avtd3.tests.store.audit.test_checks import make_table


def faults_of(*segments):
    finder = DuplicateFinder()
    for number, (dataset, digests, hashes) in enumerate(segments):
        name = f"s{number}"
        finder.add(dataset, name, np.array(digests, np.uint64), np.array(hashes, np.uint64))
    return [((*place, fault.episode), fault.check) for place, fault in finder.faults()]


def test_equal_digests_are_copies_of_the_first():
    found = faults_of(("a", [1, 2], [0, 0]), ("a", [3, 1], [0, 0]), ("b", [1], [0]))
    assert found == [(("a", "s1", 1), "episode-copy"), (("b", "s2", 0), "episode-copy")]


def test_hashes_that_differ_in_two_bits_are_alike_wherever_the_bits_are():
    known = 0x0F0F_3333_5555_AAAA
    for first in range(0, 64, 7):
        for second in range(first + 1, 64, 11):
            near = known ^ (1 << first) ^ (1 << second)
            found = faults_of(("a", [1], [known]), ("a", [2], [near]))
            assert found == [(("a", "s1", 0), "episode-alike")]
    assert faults_of(("a", [1], [known]), ("a", [2], [known ^ 0b111])) == []


def test_a_copy_is_reported_once_and_nothing_is_alike_to_no_hash():
    assert faults_of(("a", [1, 1, 2], [9, 9, 0]), ("a", [3], [0])) == [
        (("a", "s0", 1), "episode-copy")
    ]
    assert faults_of() == faults_of(("a", [], [])) == []


def test_a_dataset_written_twice_has_each_episode_reported(tmp_path):
    write(tmp_path / "one", collector="one")
    write(tmp_path / "two", collector="two")
    report = audit([tmp_path / "one", tmp_path / "two"], SYNC)
    assert report.log.counts == {"episode-copy": 3}
    assert {finding.dataset for finding in report.findings} == {str(tmp_path / "two")}


def nudge(values):
    values += np.random.default_rng(0).normal(0.0, 1e-3, values.shape).astype(values.dtype)


def test_the_same_drive_with_a_little_noise_is_alike(tmp_path):
    spec = dataclasses.replace(SPEC, image=None, reward_terms=())
    one, two = (drive(tmp_path / name, spec, lengths=(90, 120)) for name in ("one", "two"))
    for name in ("vector", "action", "reward"):
        rewrite(two, name, nudge)
    counts = audit([one.path, two.path], SYNC).log.counts
    assert counts["episode-alike"] == 2
    assert "episode-copy" not in counts


def test_different_drives_are_not_alike(tmp_path):
    drive(tmp_path / "one", lengths=(90, 120, 90))
    assert "episode-alike" not in audit([tmp_path / "one"], SYNC).log.counts


def test_a_course_that_hardly_changes_has_no_hash():
    rng = np.random.default_rng(0)
    vector = np.concatenate([np.zeros((101, 2)), rng.normal(size=(101, 2)), np.zeros((11, 2))])
    nothing, flags = np.zeros(210), np.zeros(210, np.bool_)
    data = SegmentData(
        spec=SPEC,
        vector=vector.astype(np.float32),
        streams={},
        frame_id=np.arange(213),
        sim_time=np.arange(213.0),
        action=np.zeros((210, 2), np.float32),
        reward=nothing.astype(np.float32),
        reward_terms=None,
        terminated=flags,
        truncated=flags,
        episodes=make_table((100, 100, 10)),
    )
    hashes = perceptual_hashes(data)
    assert hashes[0] == hashes[2] == 0
    assert hashes[1] != 0
