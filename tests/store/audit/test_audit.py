"""The whole audit: clean data is found clean, and every planted fault is found by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import dask.base
import numpy as np
import pytest

from avtd3.cli import main
from avtd3.store.audit.audit import (
    AuditConfig,
    AuditProgress,
    audit,
    quarantine_damaged,
    sample_segments,
)
from avtd3.store.audit.checks import CheckLimits
from avtd3.store.audit.findings import CHECKS
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    FormatVersionError,
)
from avtd3.store.files import sha256
from avtd3.store.format.codec import FrameCodec, seal
from avtd3.store.format.manifest import FileEntry, read_manifest
from avtd3.store.format.shard import build_shard
from avtd3.store.render.audit_view import audit_text
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

SPEC = EpisodeSpec(
    image=ImageSpec(height=8, width=6, stack=2),
    vector_names=("speed_mps", "lateral_m"),
    vector_scales=(10.0, 2.0),
    action_names=("steer", "throttle"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    reward_terms=("progress", "comfort"),
    control_period_s=0.05,
)
VECTOR_SPEC = dataclasses.replace(SPEC, image=None, reward_terms=())
LENGTHS = (5, 9, 7)
SYNC = AuditConfig(scheduler="sync", limits=CheckLimits(frozen_frames=5))


def write(path, spec=SPEC, *, segments=1, lengths=LENGTHS, plan="", seed=0, collector="test"):
    """Write a dataset of segments that each hold episodes of these lengths."""
    rng = np.random.default_rng(seed)
    dataset = Dataset.create(path, spec)

    def observation():
        frame = None
        if spec.image is not None:
            frame = rng.integers(0, 256, spec.image.frame_shape, np.uint8)
        return Observation(image=frame, vector=rng.uniform(0.2, 1.0, 2).astype(np.float32))

    provenance = {"plan_digest": plan} if plan else {}
    index = 0
    with SegmentWriter(
        dataset, collector=collector, provenance=provenance, clock=lambda: 1.0
    ) as writer:
        for _ in range(segments):
            for length in lengths:
                writer.begin(
                    observation(),
                    index=index,
                    seed=index,
                    scenario=index % 2,
                    world="road",
                    town=f"loop-{index:06d}",
                    weather="clear",
                    driver="expert",
                )
                for step in range(1, length + 1):
                    terms = rng.normal(size=2).astype(np.float32)
                    writer.step(
                        rng.uniform(-1.0, 1.0, 2).astype(np.float32),
                        None if spec.reward_terms else 0.5,
                        observation(),
                        terminated=step == length,
                        reward_terms=terms if spec.reward_terms else None,
                    )
                writer.end("goal")
                index += 1
            writer.flush()
    return dataset


def only_segment(dataset):
    (name,) = dataset.segment_ids()
    return dataset.segments_path / name


def reseal(segment, **changes):
    """Write files anew and a manifest that stands by them: a fault that no checksum shows."""
    manifest = read_manifest(segment)
    files = dict(manifest.files)
    for name, data in changes.pop("data", {}).items():
        (segment / name).write_bytes(data)
        files[name] = FileEntry(size=len(data), sha256=sha256(data))
    for name in changes.pop("forget", ()):
        del files[name]
    sealed = dataclasses.replace(manifest, files=files, **changes).sealed()
    (segment / "MANIFEST.json").write_bytes(sealed.to_bytes())


def rewrite(dataset, name, change):
    """Change an array's values in place, all checksums kept right."""
    segment = only_segment(dataset)
    values = dataset.open_segment(segment.name).read(name)
    change(values)
    chunk = f"{name}/c/" + "/".join("0" for _ in values.shape)
    if name == "frames":
        codec = FrameCodec()
        padded = np.concatenate([values, np.zeros((-len(values) % 4, *values.shape[1:]), np.uint8)])
        data = build_shard(
            [codec.encode(padded[row : row + 4]) for row in range(0, len(padded), 4)]
        )
    else:
        data = seal(values.tobytes())
    reseal(segment, data={chunk: data})


def checks_of(report):
    return set(report.log.counts)


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data")


@pytest.mark.parametrize("spec", [SPEC, VECTOR_SPEC], ids=["image", "vector"])
@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_clean_data_has_no_findings(tmp_path, spec, scheduler):
    write(tmp_path / "data", spec, segments=3)
    report = audit([tmp_path / "data"], AuditConfig(scheduler=scheduler))
    assert report.findings == ()
    assert report.verdict == "ok"
    assert (report.total.segments, report.total.episodes, report.total.steps) == (3, 9, 63)
    assert report.total.simulated_seconds == pytest.approx(63 * 0.05)
    assert report.total.counts["end_reason"] == {"goal": 9}
    assert report.total.counts["town"] == {"loop-*": 9}
    assert report.total.lengths.document()["p50"] == 7.0
    assert report.damaged == ()


def test_sizes_are_those_of_the_files_and_arrays(dataset):
    report = audit([dataset.path], SYNC)
    segment = dataset.open_segment(only_segment(dataset).name)
    files = [file for file in segment.path.rglob("*") if file.is_file()]
    assert report.total.bytes_on_disk == sum(file.stat().st_size for file in files)
    assert report.total.bytes_raw == sum(segment.read(name).nbytes for name in segment.names)


def set_row(row, value):
    def change(values):
        values[row] = value

    return change


def repeat_frames(values):
    values[9:13] = values[8]


# Episode 1 has steps 5..13 and observations 6..15.
SEMANTIC = {
    "episode-bounds": ("episode_length", set_row(1, 8)),
    "step-after-end": ("truncated", set_row(7, True)),
    "end-unmarked": ("terminated", set_row(13, False)),
    "end-twice": ("truncated", set_row(13, True)),
    "not-finite": ("vector", set_row(8, np.nan)),
    "action-bounds": ("action", set_row(7, 1.5)),
    "reward-sum": ("reward_terms", set_row(7, 40.0)),
    "return-sum": ("episode_return", set_row(1, 1e3)),
    "frame-order": ("frame_id", set_row(9, 1)),
    "frame-gap": ("frame_id", set_row(15, 40)),
    "sim-time": ("sim_time", set_row(9, 0.1)),
    "policy-digest": ("episode_policy_version", set_row(1, 3)),
    "black-frames": ("frames", set_row(9, 0)),
    "uniform-frames": ("frames", set_row(9, 255)),
    "frozen-frames": ("frames", repeat_frames),
}


@pytest.mark.parametrize("check", SEMANTIC)
def test_semantic_fault_is_found_in_its_episode(dataset, check):
    rewrite(dataset, *SEMANTIC[check])
    report = audit([dataset.path], SYNC)
    found = [finding for finding in report.findings if finding.check == check]
    assert found[0].segment == only_segment(dataset).name
    assert found[0].episode in ((1,) if check != "episode-bounds" else (2,))
    assert report.verdict == {"error": "errors", "warning": "warnings"}[CHECKS[check].severity]
    assert found[0].message in " ".join(audit_text(report).split())


def all_files(tmp):
    dataset = write(Path(tmp) / "names")
    return sorted(
        file.relative_to(only_segment(dataset)).as_posix()
        for file in only_segment(dataset).rglob("*")
        if file.is_file()
    )


def test_a_flipped_bit_in_any_file_is_found(dataset, tmp_path):
    segment = only_segment(dataset)
    rng = np.random.default_rng(3)
    for name in all_files(tmp_path):
        file = segment / name
        clean = file.read_bytes()
        damaged = bytearray(clean)
        damaged[rng.integers(len(clean))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        report = audit([dataset.path], SYNC)
        assert report.verdict == "errors", name
        assert {"manifest", "file-digest", "format-version"} & checks_of(report), name
        assert report.damaged == ((str(dataset.path), segment.name),)
        file.write_bytes(clean)
    assert audit([dataset.path], SYNC).verdict == "ok"


@pytest.mark.parametrize("name", ["frames/c/0/0/0/0", "reward/zarr.json", "zarr.json"])
def test_a_truncated_file_is_found_even_outside_the_sample(dataset, name):
    file = only_segment(dataset) / name
    file.write_bytes(file.read_bytes()[:-1])
    assert checks_of(audit([dataset.path], SYNC)) == {"file-size"}
    write(dataset.path, segments=8, collector="other")
    report = audit([dataset.path], dataclasses.replace(SYNC, sample=1e-9))
    assert checks_of(report) == {"file-size"}
    assert (report.total.segments, len(report.damaged)) == (8, 1)


def test_a_missing_file_is_found(dataset):
    (only_segment(dataset) / "reward/c/0").unlink()
    report = audit([dataset.path], SYNC)
    assert "file-missing" in checks_of(report)
    assert "reward/c/0 is missing" in audit_text(report)


def test_a_chunk_that_the_manifest_never_named_is_found(dataset):
    (only_segment(dataset) / "reward/c/0").unlink()
    reseal(only_segment(dataset), forget=["reward/c/0"])
    assert checks_of(audit([dataset.path], SYNC)) == {"array-metadata"}


def test_bytes_that_lie_about_their_own_checksum_are_found(dataset):
    segment = only_segment(dataset)
    data = bytearray((segment / "reward/c/0").read_bytes())
    data[0] ^= 1
    reseal(segment, data={"reward/c/0": bytes(data)})
    assert checks_of(audit([dataset.path], SYNC)) == {"array-unreadable"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [22]), ("data_type", "float64"), ("dimension_names", ["time"]), ("shape", None)],
)
def test_array_metadata_against_the_spec_is_found(dataset, key, value):
    segment = only_segment(dataset)
    document = json.loads((segment / "reward/zarr.json").read_bytes())
    document[key] = value
    reseal(segment, data={"reward/zarr.json": json.dumps(document).encode()})
    assert checks_of(audit([dataset.path], SYNC)) == {"array-metadata"}


def test_an_array_too_many_is_found(dataset):
    segment = only_segment(dataset)
    (segment / "extra").mkdir()
    reseal(segment, data={"extra/zarr.json": b"{}"})
    assert checks_of(audit([dataset.path], SYNC)) == {"array-metadata"}


def test_a_file_too_many_is_found(dataset):
    (only_segment(dataset) / "reward/notes.txt").write_text("mine")
    report = audit([dataset.path], SYNC)
    assert checks_of(report) == {"file-unexpected"}
    assert report.verdict == "warnings"


def test_a_link_in_place_of_a_file_is_found(dataset, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (only_segment(dataset) / "more").symlink_to(outside)
    assert checks_of(audit([dataset.path], SYNC)) == {"file-unexpected"}


def test_a_segment_of_another_spec_is_found(dataset, tmp_path):
    other = write(tmp_path / "other", VECTOR_SPEC)
    name = only_segment(other).name
    shutil.copytree(only_segment(other), dataset.segments_path / name)
    assert "spec-digest" in checks_of(audit([dataset.path], SYNC))


def test_a_segment_of_a_later_format_is_found(dataset):
    manifest = only_segment(dataset) / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 9}))
    assert checks_of(audit([dataset.path], SYNC)) == {"format-version"}


def test_a_renamed_segment_is_found(dataset):
    only_segment(dataset).rename(dataset.segments_path / "renamed")
    assert checks_of(audit([dataset.path], SYNC)) == {"manifest"}


def test_a_missing_manifest_is_a_warning(dataset):
    (only_segment(dataset) / "MANIFEST.json").unlink()
    report = audit([dataset.path], SYNC)
    assert checks_of(report) == {"manifest-missing"}
    assert (report.verdict, report.total.segments) == ("warnings", 0)
    strict = audit([dataset.path], dataclasses.replace(SYNC, strict=True))
    assert strict.verdict == "errors"


def test_leftovers_are_reported_and_harmless(dataset):
    (dataset.staging_path / "unfinished").mkdir()
    (dataset.path / "quarantine" / "bad").mkdir(parents=True)
    report = audit([dataset.path], SYNC)
    assert checks_of(report) == {"staging", "quarantined"}
    assert report.verdict == "ok"
    assert (report.datasets[0].staging, report.datasets[0].quarantined) == (1, 1)


def test_strays_among_the_segments_are_reported(dataset):
    (dataset.segments_path / ".tmp").mkdir()
    (dataset.segments_path / "notes.txt").write_text("mine")
    report = audit([dataset.path], SYNC)
    assert report.log.counts == {"stray": 2}
    assert report.total.segments == 1


def test_an_empty_dataset_is_a_warning(tmp_path):
    Dataset.create(tmp_path / "data", SPEC)
    report = audit([tmp_path / "data"])
    assert (checks_of(report), report.verdict) == ({"empty"}, "warnings")
    assert "verdict: warnings" in audit_text(report).splitlines()[-1]


def test_a_damaged_root_is_found_and_spares_the_other_dataset(dataset, tmp_path):
    other = write(tmp_path / "other", seed=1, collector="other")
    (dataset.path / "zarr.json").write_text("{")
    report = audit([dataset.path, other.path], SYNC)
    assert checks_of(report) == {"dataset-unreadable"}
    assert report.total.steps == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["missing", "file", "directory"])
def test_what_is_no_dataset_is_refused(tmp_path, kind):
    path = tmp_path / "data"
    if kind == "file":
        path.write_text("x")
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(DatasetError):
        audit([path])


def test_a_segment_in_two_datasets_is_reported(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "copy")
    report = audit([dataset.path, tmp_path / "copy"], SYNC)
    assert report.log.counts == {"segment-twice": 1}


def test_two_segments_of_one_id_are_an_error(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "copy")
    rewrite(Dataset.open(tmp_path / "copy"), "episode_seed", set_row(0, 99))
    report = audit([dataset.path, tmp_path / "copy"], SYNC)
    assert (report.log.counts, report.verdict) == ({"segment-conflict": 1}, "errors")


def test_naming_a_dataset_twice_audits_it_once(dataset):
    report = audit([dataset.path, dataset.path], SYNC)
    assert (report.verdict, report.total.segments) == ("ok", 1)


def test_an_episode_of_a_plan_collected_twice_is_reported(tmp_path):
    write(tmp_path / "data", plan="a" * 64)
    write(tmp_path / "data", plan="b" * 64, seed=1)
    assert audit([tmp_path / "data"], SYNC).verdict == "ok"
    write(tmp_path / "data", plan="a" * 64, seed=2)
    report = audit([tmp_path / "data"], SYNC)
    assert report.log.counts == {"episode-twice": 3}


def test_episodes_that_a_plan_lacks_are_reported_once_and_none_when_sampled(tmp_path):
    write(tmp_path / "data", plan="a" * 64, segments=4)  # episodes 0 to 11
    names = Dataset.open(tmp_path / "data").segment_ids()
    shutil.rmtree(tmp_path / "data" / "segments" / names[1])  # 3, 4, 5
    write(tmp_path / "data", plan="b" * 64, seed=1)
    report = audit([tmp_path / "data"], SYNC)
    (gap,) = report.findings
    assert (gap.check, gap.severity, report.verdict) == ("index-gap", "info", "ok")
    assert gap.message == f"plan {'a' * 16} lacks 3 episodes below 11: 3, 4, 5"
    sampled = audit([tmp_path / "data"], dataclasses.replace(SYNC, sample=0.5))
    assert "index-gap" not in sampled.log.counts, "what was not read is no gap"


def test_a_copied_dataset_repeats_segments_and_not_each_episode(tmp_path):
    write(tmp_path / "data", plan="a" * 64)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    report = audit([tmp_path / "data", tmp_path / "copy"], SYNC)
    assert report.log.counts == {"segment-twice": 1}


def test_a_reward_of_one_term_is_reported(dataset):
    rewrite(dataset, "reward_terms", set_row((slice(None), 1), 1e-6))
    report = audit([dataset.path], SYNC)
    assert report.log.counts["reward-dominated"] == 1
    assert report.total.reward_shares["progress"] > 0.99


def test_damaged_segments_are_quarantined_and_the_rest_is_kept(tmp_path):
    dataset = write(tmp_path / "data", segments=3)
    bad = dataset.segment_ids()[1]
    (dataset.segments_path / bad / "reward/c/0").write_bytes(b"")
    assert quarantine_damaged(audit([dataset.path], SYNC)).moved == (bad,)
    assert bad not in dataset.segment_ids()
    assert audit([dataset.path], SYNC).verdict == "ok"


@pytest.mark.parametrize("fault", ["unlisted", "other version", "removed"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_changes_between_the_proof_and_the_move_is_kept(tmp_path, monkeypatch, fault, dry_run):
    first, second = (write(tmp_path / name, segments=3, seed=n) for n, name in enumerate("ab"))
    bad = [dataset.segment_ids()[1] for dataset in (first, second)]
    for dataset, name in zip((first, second), bad, strict=True):
        (dataset.segments_path / name / "reward/c/0").write_bytes(b"")
    report = audit([first.path, second.path], SYNC)
    if fault == "removed":
        move = Dataset.quarantine

        def quarantine(dataset, name):
            if dataset.path == first.path:
                shutil.rmtree(dataset.segments_path / name)
            return move(dataset, name)

        monkeypatch.setattr(Dataset, "quarantine", quarantine)
    else:
        error = DatasetUnreadableError if fault == "unlisted" else FormatVersionError
        list_ids = Dataset.segment_ids

        def segment_ids(dataset):
            if dataset.path == first.path:
                raise error("gone")
            return list_ids(dataset)

        monkeypatch.setattr(Dataset, "segment_ids", segment_ids)
    found = quarantine_damaged(report, dry_run=dry_run)
    if fault == "removed" and dry_run:
        assert (list(found.moved), found.kept) == (bad, ())
        return
    assert found.moved == (bad[1],)
    (kept,) = found.kept
    assert (kept.dataset, kept.segment) == (str(first.path), bad[0])
    expected = "removed meanwhile" if fault == "removed" else "cannot be listed any more: gone"
    assert expected in kept.reason


def test_a_sample_is_stable_nested_and_about_as_large_as_asked():
    names = [f"segment-{number:05d}" for number in range(2000)]
    tenth, half = sample_segments(names, 0.1), sample_segments(names, 0.5)
    assert tenth < half < sample_segments(names, 1.0) == frozenset(names)
    assert 150 < len(tenth) < 250
    assert sample_segments(names[:500], 0.1) == tenth & set(names[:500])
    assert sample_segments(names[:3], 1e-9) == sample_segments(names[2::-1], 1e-9)
    assert len(sample_segments(names[:3], 1e-9)) == 1
    assert sample_segments([], 0.5) == frozenset()


def test_a_sampled_audit_reads_only_its_share_and_counts_all(tmp_path):
    dataset = write(tmp_path / "data", segments=10, lengths=(2,))
    share = dataclasses.replace(SYNC, sample=0.4)
    chosen = sample_segments(dataset.segment_ids(), 0.4)
    for name in dataset.segment_ids():
        chunk = dataset.segments_path / name / "reward/c/0"
        chunk.write_bytes(bytes(8) + chunk.read_bytes()[8:])
    report = audit([dataset.path], share)
    assert {finding.segment for finding in report.findings} == chosen
    assert report.total.segments == 10 - len(chosen)
    assert report.total.steps == 2 * report.total.segments
    assert "sampled" in audit_text(report)


def test_groups_are_bounded_and_progress_reports_each_segment(tmp_path, monkeypatch):
    write(tmp_path / "data", segments=11, lengths=(2,))
    waves = []
    compute = dask.base.compute

    def counting(*tasks, **options):
        waves.append(len(tasks))
        return compute(*tasks, **options)

    monkeypatch.setattr("dask.base.compute", counting)
    reported: list[AuditProgress] = []
    audit([tmp_path / "data"], SYNC, on_progress=reported.append)
    assert waves == [4, 4, 3]
    assert [progress.segments_done for progress in reported] == list(range(1, 12))
    assert reported[-1].fraction == 1.0
    assert "11 of 11 segments, 22 steps, 0 errors" in reported[-1].line()


def test_an_audit_stops_between_waves_and_says_so(tmp_path):
    write(tmp_path / "data", segments=11, lengths=(2,))
    asked = iter([False, True])
    report = audit([tmp_path / "data"], SYNC, should_stop=lambda: next(asked))
    assert (report.complete, report.total.segments) == (False, 4)
    assert "stopped early" in audit_text(report)


def test_findings_are_capped_and_counted(tmp_path):
    dataset = write(tmp_path / "data", lengths=(2,) * 50)
    rewrite(dataset, "episode_return", set_row(slice(None), 9e9))
    report = audit([dataset.path], dataclasses.replace(SYNC, max_findings_per_check=7))
    assert len(report.findings) == 7
    assert report.log.counts == {"return-sum": 50}
    assert "... and 47 more" in audit_text(report)


def test_the_document_is_json_with_the_keys_that_scripts_rely_on(dataset):
    rewrite(dataset, "vector", set_row(3, np.inf))
    report = audit([dataset.path], SYNC)
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert {
        "verdict",
        "steps",
        "episodes",
        "segments",
        "bytes_on_disk",
        "bytes_raw",
        "findings",
    } <= document.keys()
    assert document["verdict"] == "errors"
    (finding,) = document["findings"]
    assert {"check", "severity", "segment", "episode", "message", "fix"} <= finding.keys()
    assert document["datasets"][0]["path"] == str(dataset.path)
    assert document["damaged"][0]["segment"] == only_segment(dataset).name


def test_an_empty_document_is_json(tmp_path):
    Dataset.create(tmp_path / "data", SPEC)
    json.dumps(audit([tmp_path / "data"], SYNC).document(), allow_nan=False)


def test_the_text_is_plain_short_and_ends_with_the_verdict(tmp_path):
    write(tmp_path / "one", segments=2)
    write(tmp_path / "two", seed=1, collector="other")
    text = audit_text(audit([tmp_path / "one", tmp_path / "two"], SYNC))
    assert text.isascii()
    lines = text.splitlines()
    assert lines[-1].startswith("verdict: ok (0 errors, 0 warnings; 3 segments read in ")
    plain = [line for line in lines if str(tmp_path) not in line and " dataset " not in line]
    assert max(map(len, plain)) <= 80
    assert any(line.startswith("verdict: ok") for line in lines[1:4])
    assert any(line.split() == ["goal", "9", "#" * 24] for line in lines)


def test_the_text_shows_how_actions_and_speed_spread(dataset):
    rewrite(dataset, "action", set_row((slice(2, None), 0), 0.0))  # straight ahead
    rewrite(dataset, "action", set_row((slice(2), 0), 1.0))
    rewrite(dataset, "vector", set_row((slice(None), 0), 0.5))
    lines = audit_text(audit([dataset.path], SYNC)).splitlines()
    rows = {line.split()[0]: line for line in lines if "|" in line}
    assert list(rows) == ["steer", "throttle", "speed_mps"]
    # 19 of 21 steps, and the darkest ink where they are
    assert rows["steer"].endswith("| 1      90% within 0.05 of 0")
    assert "0 |@@@@@@@@@@@@............| 1" in rows["steer"]
    assert " 5 |@@@@@@@@@@@@@@@@@@@@@@@@| 5 " in rows["speed_mps"]
    assert max(map(len, rows.values())) <= 80


@pytest.mark.parametrize(
    "change",
    [
        {"sample": 0.0},
        {"sample": 1.5},
        {"sample": float("nan")},
        {"max_findings_per_check": 0},
        {"scheduler": ""},
        {"workers": -1},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        AuditConfig(**change)


def test_an_invalid_cluster_address_is_refused(dataset):
    pytest.importorskip("distributed")
    with pytest.raises(ConfigError, match="does not answer"):
        audit([dataset.path], AuditConfig(scheduler="nonsense://nowhere"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_of_processes_answers_as_threads_do(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    dataset = write(tmp_path / "data", segments=6)
    bad = dataset.segment_ids()[2]
    (dataset.segments_path / bad / "reward/c/0").unlink()
    by_threads = audit([dataset.path]).document()
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tcp://")
        by_cluster = audit([dataset.path], AuditConfig(scheduler=address)).document()
        with pytest.raises(SystemExit) as stop:
            main(["replay-inspect", str(dataset.path), "--json", "--scheduler", address])
    by_command = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1
    assert by_command["damaged"] == [{"dataset": str(dataset.path), "segment": bad}]
    assert {**by_cluster, "seconds": 0} == {**by_threads, "seconds": 0}
    assert by_command["findings"] == by_threads["findings"]


@pytest.mark.parametrize(
    ("seconds", "size_bytes", "says"),
    [
        (3.0, 999, ("3 s simulated", "999 B")),
        (90.0, 1_500_000, ("1.5 min simulated", "1.5 MB")),
        (7.2e6, 2.5e15, ("2,000.0 h simulated", "2,500.00 TB")),
    ],
)
def test_amounts_have_readable_units(dataset, seconds, size_bytes, says):
    report = audit([dataset.path], SYNC)
    total = dataclasses.replace(report.total, simulated_seconds=seconds, bytes_on_disk=size_bytes)
    text = audit_text(dataclasses.replace(report, total=total))
    assert all(part in text for part in says)
    assert "(0 errors, 0 warnings; 1 segment read" in text


def test_what_a_damaged_segment_claims_is_not_counted(dataset):
    segment = only_segment(dataset)
    reseal(segment, steps=10**12, observations=10**12 + 3)
    report = audit([dataset.path], SYNC)
    assert report.verdict == "errors"
    assert (report.total.segments, report.total.steps) == (0, 0)
    assert report.total.bytes_on_disk > 0
