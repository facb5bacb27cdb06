"""`transfer` between any two places, and the commands on top of it."""

import json
import shutil

import pytest

from avtd3.store import ConfigError, Dataset, DatasetError, SpecError, UnreachableError
from avtd3.store.files import sha256
from avtd3.store.remote import client
from avtd3.store.remote import transfer as module
from avtd3.store.remote.client import open_place
from avtd3.store.remote.transfer import TransferProgress, transfer
from avtd3.tests.store.remote.datasets import add, content, make, sealed
from avtd3.tests.store.remote.servers import KEYS
from avtd3.tests.store.segments import make_spec


@pytest.fixture
def data(tmp_path):
    dataset = make(tmp_path / "data", [(3,), (2,)])
    (dataset.path / "maps").mkdir()
    (dataset.path / "maps" / ("0" * 64 + ".xodr.gz")).write_bytes(b"a map")
    return dataset


PLACES = {
    "path": lambda request, name: request.getfixturevalue("tmp_path") / name,
    "memory": lambda request, name: f"memory://{request.getfixturevalue('tmp_path').name}/{name}",
    "s3": lambda request, name: f"{request.getfixturevalue('bucket')}/{name}",
}


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("path", "path"),
        ("path", "memory"),
        pytest.param("memory", "s3", marks=pytest.mark.slow),
        pytest.param("path", "s3", marks=pytest.mark.slow),
        pytest.param("s3", "path", marks=pytest.mark.slow),
        pytest.param("s3", "s3", marks=pytest.mark.slow),
    ],
)
def test_a_dataset_is_the_same_in_every_place(request, data, tmp_path, kind, other):
    pytest.importorskip("obstore")
    first, second = PLACES[kind](request, "one"), PLACES[other](request, "two")
    transfer(data.path, first)
    report = transfer(first, second)
    assert (report.copied, report.present, report.problems, report.stopped) == (2, 0, (), False)
    assert transfer(second, tmp_path / "back").size_bytes == report.size_bytes
    assert content(tmp_path / "back") == content(data.path)
    again = transfer(first, second)
    assert (again.copied, again.present, again.size_bytes) == (0, 2, 0)
    name = add(data, 9)
    if kind != "path":
        open_place(first).delete(open_place(first).sizes("log/"))  # as rclone would copy it
    transfer(data.path, first)
    assert transfer(first, second).copied == 1
    assert name in sealed(open_place(second))


@pytest.mark.slow
def test_a_pulled_directory_is_an_ordinary_dataset_that_knows_its_url(data, bucket, tmp_path):
    transfer(data.path, f"{bucket}/d/")
    transfer(f"{bucket}/d", tmp_path / "back")
    assert json.loads((tmp_path / "back" / ".mirror.json").read_bytes()) == {"url": f"{bucket}/d"}
    assert Dataset.open(tmp_path / "back").snapshot().steps == 5
    assert list((tmp_path / "back" / ".staging").iterdir()) == []
    add(Dataset.open(tmp_path / "back"), 9)


def test_a_stopped_transfer_continues_with_what_is_missing(data, bucket, tmp_path):
    seen: list[TransferProgress] = []
    report = transfer(
        data.path, bucket, should_stop=lambda: len(seen) > 60, on_progress=seen.append
    )
    assert report.stopped
    assert (report.copied, len(sealed(open_place(bucket)))) == (1, 1)
    assert "run the same command again to continue" in report.summary()
    assert 0.0 < seen[-1].fraction < 1.0
    rest = transfer(data.path, bucket)
    assert (rest.copied, rest.present) == (1, 1)
    half = transfer(bucket, tmp_path / "back", should_stop=lambda: True)
    assert half.stopped
    assert list((tmp_path / "back" / "segments").iterdir()) == []
    assert list((tmp_path / "back" / ".staging").iterdir()) == []
    transfer(bucket, tmp_path / "back")
    assert content(tmp_path / "back") == content(data.path)


def test_damaged_bytes_are_not_copied_in_either_direction(data, bucket, tmp_path):
    first, second = data.segment_ids()
    chunk = data.segments_path / first / "reward" / "c" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    report = transfer(data.path, bucket)
    assert report.copied == 1
    (problem,) = report.problems
    assert "reward/c/0" in problem
    assert "SHA-256" in problem
    assert sealed(open_place(bucket)) == [second]
    chunk.write_bytes(good)
    transfer(data.path, bucket)
    open_place(bucket).write(f"segments/{first}/reward/c/0", good[::-1])
    open_place(bucket).delete([f"segments/{second}/action/c/0/0"])
    report = transfer(bucket, tmp_path / "back")
    assert report.copied == 0
    assert len(report.problems) == 2
    assert "removed or is damaged" in report.problems[1]
    assert Dataset.open(tmp_path / "back").segment_ids() == []


@pytest.mark.slow
def test_large_files_go_in_parts_and_a_wrong_one_is_given_up(data, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "CHUNK_BYTES", 100)
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    transfer(data.path, bucket)
    transfer(bucket, tmp_path / "back")
    assert content(tmp_path / "back") == content(data.path)
    name = add(data, 9, lengths=(40,))
    frames = data.segments_path / name / "frames" / "c" / "0" / "0" / "0" / "0"
    frames.write_bytes(frames.read_bytes()[::-1])
    report = transfer(data.path, bucket)
    assert "SHA-256" in report.problems[0]
    assert name not in sealed(open_place(bucket))


SLOW_FAULTS = [
    pytest.param(fault, marks=pytest.mark.slow) for fault in ("503", "before", "after", "slow")
]


@pytest.mark.parametrize("fault", ["half", *SLOW_FAULTS])
def test_a_transfer_survives_faults(data, proxy, bucket, tmp_path, fault):
    """Every tenth request fails, over real sockets."""
    shutil.rmtree(data.segments_path / data.segment_ids()[0])
    count = iter(range(10**9))
    proxy.fault = lambda method, path: fault if next(count) % 10 == 3 else ""
    lines = []
    transfer(data.path, bucket, on_progress=lambda progress: lines.append(progress.line()))
    transfer(bucket, tmp_path / "back", on_progress=lambda p: lines.append(p.line()))
    assert content(tmp_path / "back") == content(data.path)
    assert any("waiting: " in line for line in lines) == (fault != "slow")


@pytest.mark.slow
def test_an_outage_ends_with_an_error_and_the_next_run_continues(
    data, proxy, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(client, "PATIENCE_S", 0.05)
    count = iter(range(10**9))
    proxy.fault = lambda method, path: "before" if next(count) > 80 else ""
    with pytest.raises(UnreachableError, match="run the same command again"):
        transfer(data.path, bucket)
    proxy.fault = lambda method, path: ""
    transfer(data.path, bucket)
    transfer(bucket, tmp_path / "back")
    assert content(tmp_path / "back") == content(data.path)


def test_other_specs_and_other_things_are_refused(data, bucket, tmp_path):
    transfer(data.path, bucket)
    Dataset.create(tmp_path / "other", make_spec(terms=1))
    for source, destination in ((tmp_path / "other", bucket), (bucket, tmp_path / "other")):
        with pytest.raises(SpecError, match="another spec"):
            transfer(source, destination)
    for missing in (tmp_path / "missing", f"{bucket}/missing"):
        with pytest.raises(DatasetError, match="neither a dataset nor a directory of policies"):
            transfer(missing, tmp_path / "new")
    with pytest.raises(ConfigError, match="both source and destination"):
        transfer(bucket, f"{bucket}/")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="is a file"):
        transfer(bucket, tmp_path / "file")


def policy(folder, version, weights=b"weights"):
    folder.mkdir(exist_ok=True)
    name = f"policy-{version:08d}"
    about = {"version": version, "file": f"{name}.safetensors", "sha256": sha256(weights)}
    (folder / f"{name}.safetensors").write_bytes(weights)
    (folder / f"{name}.json").write_text(json.dumps({**about, "size_bytes": len(weights)}))
    (folder / "LATEST.json").write_text(json.dumps(about))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_policies_are_copied_and_latest_never_goes_back(bucket, tmp_path):
    here, back = tmp_path / "policies", tmp_path / "back"
    for version in (0, 1, 2):
        policy(here, version)
    report = transfer(here, f"{bucket}/policies")
    assert (report.noun, report.copied, report.present) == ("policy", 3, 0)
    assert "copied 3 policies" in report.summary()
    transfer(f"{bucket}/policies", back)
    assert names(back) == names(here)
    policy(here, 3)
    assert transfer(here, f"{bucket}/policies").copied == 1
    policy(here, 1)  # writes an older LATEST
    transfer(here, f"{bucket}/policies")
    latest = json.loads(open_place(f"{bucket}/policies").read("LATEST.json"))
    assert latest["version"] == 3
    policy(back, 3, b"of another learner")
    with pytest.raises(ConfigError, match="in use by another learner, which published another"):
        transfer(back, f"{bucket}/policies")
    policy(here, 4)
    (here / "policy-00000004.safetensors").write_bytes(b"damaged")
    (here / "policy-00000005.json").write_text("{")
    assert len(transfer(here, f"{bucket}/policies").problems) == 2


def test_policies_that_a_lagging_listing_hides_are_not_missing(bucket, proxy, tmp_path):
    policy(tmp_path / "policies", 0)
    proxy.lag_s = 60.0
    transfer(tmp_path / "policies", f"{bucket}/policies")
    report = transfer(f"{bucket}/policies", tmp_path / "back")
    assert (report.noun, report.copied) == ("policy", 1)
    assert names(tmp_path / "back") == names(tmp_path / "policies")


def test_the_commands_copy_verify_and_exit_with_1_when_something_is_wrong(
    data, bucket, tmp_path, avtd3
):
    code, out, err = avtd3("push", data.path, f"{bucket}/d", "--limit", "50MB/s", "--verbose")
    printed = [out, err]
    assert (code, out.startswith("copied 2 segments")) == (0, True)
    code, out, _ = avtd3("pull", f"{bucket}/d", tmp_path / "back", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["copied"], report["noun"], report["source"]) == (2, "segment", f"{bucket}/d")
    open_place(f"{bucket}/d").write(f"segments/{data.segment_ids()[0]}/reward/c/0", b"x")
    assert avtd3("pull", f"{bucket}/d", tmp_path / "again")[0] == 1
    for words, says in (
        (("--limit", "0MB/s"), "--limit is '0MB/s', expected above 0"),
        (("--limit", "fast"), "expected an amount of bytes"),
    ):
        code, _, line = avtd3("push", data.path, bucket, *words)
        assert code == 2
        assert says in line
        printed.append(line)
    code, _, line = avtd3("push", data.path, "s3://no-such-bucket-here/d")
    assert (code, "create it" in line) == (2, True)
    place = open_place(f"{bucket}/d")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    everything = (*files, *(place.read(key) for key in place.sizes("") if "/c/" not in key))
    for key in KEYS:
        assert not any(key in text for text in printed)
        assert not any(key.encode() in content for content in everything)


def test_a_file_that_never_ends_is_refused_early(data, bucket, tmp_path, monkeypatch):
    transfer(data.path, bucket)
    read = []

    def endless(self, key, size):
        while True:
            read.append(key)
            yield b"x" * 100_000

    monkeypatch.setattr(client.RemotePlace, "chunks", endless)
    report = transfer(bucket, tmp_path / "back")
    assert "more than" in report.problems[0]
    assert len(read) < 1000


def test_an_audit_of_a_url_reads_a_copy_and_reports_what_is_damaged_there(data, bucket, avtd3):
    transfer(data.path, bucket)
    code, out, err = avtd3("replay-inspect", bucket, "--json")
    report = json.loads(out)
    assert report["datasets"][0]["path"].endswith(bucket.rpartition("/")[2])
    assert f"copied {bucket} to " in err
    open_place(bucket).write(f"segments/{data.segment_ids()[0]}/reward/c/0", b"x")
    code, out, err = avtd3("replay-inspect", bucket)
    assert code == 1
    assert "not copied: " in err
    code, _, err = avtd3("replay-inspect", bucket, "--quarantine")
    assert (code, "copy it first (avtd3 pull)" in err) == (2, True)
