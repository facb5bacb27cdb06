import dataclasses
import errno
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.errors import (
    FormatVersionError,
    NoSegmentsError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SegmentUnreadableError,
    SpecError,
)
from avtd3.store.files import sha256
from avtd3.store.format import arrays
from avtd3.store.format.codec import FrameCodec, seal
from avtd3.store.format.layout import FORMAT_VERSION, raw_bytes, segment_arrays
from avtd3.store.format.manifest import FileEntry, Limits, read_manifest
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.segments import assert_holds, make_episode, make_spec, write_dataset

SPEC = make_spec()


pytestmark = pytest.mark.usefixtures("no_fsync")


LENGTHS = (5, 1, 9, 2)
CODECS = [FrameCodec(), FrameCodec(name="zstd", level=1), FrameCodec(name="raw", chunk_frames=3)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate(LENGTHS)]
    return write_dataset(tmp_path_factory.mktemp("pristine") / "d", SPEC, episodes), episodes


@pytest.fixture
def dataset(pristine, tmp_path):
    shutil.copytree(pristine[0].path, tmp_path / "d")
    return type(pristine[0]).open(tmp_path / "d")


def only(dataset):
    (segment_id,) = dataset.segment_ids()
    return dataset.open_segment(segment_id)


def rebuild_manifest(path, **changes):
    """What an honest stranger does after changing a segment."""
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    files = {
        name: FileEntry(
            size=(path / name).stat().st_size, sha256=sha256((path / name).read_bytes())
        )
        for name in names
        if name != "MANIFEST.json"
    }
    manifest = dataclasses.replace(read_manifest(path), files=files, **changes).sealed()
    (path / "MANIFEST.json").write_bytes(manifest.to_bytes())


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def read_everything(segment):
    segment.episode_table()
    return {name: segment.read(name) for name in segment.names}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_zarr_xarray_and_dask_read_the_same_values(tmp_path, codec, channels):
    import dask.array
    import xarray

    spec = make_spec(channels=channels)
    episodes = [make_episode(spec, length, seed) for seed, length in enumerate(LENGTHS)]
    segment = only(write_dataset(tmp_path / "d", spec, episodes, codec=codec))
    ours = read_everything(segment)
    theirs = segment.open_zarr()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*MANIFEST.json is not recognized.*")
        labelled = xarray.open_dataset(segment.path, engine="zarr", consolidated=False)
        assert set(theirs.array_keys()) == set(ours) == set(labelled.data_vars)
    for name, values in ours.items():
        for other in (theirs[name][...], labelled[name].values):
            np.testing.assert_array_equal(values, other)
            assert values.dtype == other.dtype
    assert labelled.sizes["episode"] == len(LENGTHS)
    assert labelled["frames"].dims == ("observation", "channel", "row", "column")
    lazy = dask.array.from_zarr(str(segment.path / "frames"))
    assert lazy.chunksize[0] == codec.chunk_frames
    np.testing.assert_array_equal(lazy[3:8].compute(scheduler="sync"), ours["frames"][3:8])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 21), stop=st.integers(0, 21))
def test_any_range_of_frames(pristine, start, stop):
    dataset, episodes = pristine
    segment = only(dataset)
    frames = np.concatenate([episode.frames for episode in episodes])
    if start > stop:
        with pytest.raises(SpecError, match="outside"):
            segment.read_frames(start, stop)
        return
    out = np.full((stop - start, 1, 6, 5), 77, np.uint8)
    assert segment.read_frames(start, stop, out) is out
    np.testing.assert_array_equal(out, frames[start:stop])


@pytest.mark.parametrize(
    "out",
    [
        np.empty((20, 1, 6, 5), np.uint8),
        np.empty((21, 1, 6, 5), np.int8),
        np.empty((21, 1, 5, 6), np.uint8).swapaxes(2, 3),
    ],
)
def test_an_out_that_does_not_fit_is_refused(pristine, out):
    with pytest.raises(SpecError, match="out is"):
        only(pristine[0]).read_frames(out=out)


def test_counts_and_names(pristine):
    segment = only(pristine[0])
    assert (segment.episodes, segment.steps, segment.observations) == (4, 17, 21)
    assert segment.provenance["config"] == {"a": 1}
    assert segment.provenance["collector"] == "tester"
    assert {"avtd3", "python", "host", "sealed_at", "codec"} <= segment.provenance.keys()
    assert segment.episode_table().observation_offset.tolist() == [0, 6, 8, 18]
    assert segment.raw_bytes == sum(segment.read(name).nbytes for name in segment.names)
    with pytest.raises(SpecError, match="no array 'colour'"):
        segment.read("colour")


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize(("vector", "terms"), [(0, 0), (3, 2)])
def test_raw_bytes_are_the_sum_over_the_arrays(image, vector, terms):
    spec = make_spec(image=image, vector=vector or int(not image), terms=terms)
    counts = {"episodes": 3, "steps": 7, "observations": 10}
    total = sum(layout.nbytes for layout in segment_arrays(spec, **counts).values())
    assert raw_bytes(spec, **counts) == total


def test_every_flipped_bit_is_found(pristine, dataset):
    """In any file: `verify` finds it, and reading gives the right values or an error."""
    want = read_everything(only(pristine[0]))
    segment_id = dataset.segment_ids()[0]
    path = dataset.segments_path / segment_id
    rng = np.random.default_rng(0)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        good = file.read_bytes()
        for _ in range(12 if file.name in ("MANIFEST.json", "0") else 4):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            file.write_bytes(bad)
            with pytest.raises((SegmentCorruptError, FormatVersionError)):
                dataset.open_segment(segment_id).verify()
            try:
                got = read_everything(dataset.open_segment(segment_id))
            except (SegmentCorruptError, FormatVersionError):
                continue
            for name, values in want.items():
                np.testing.assert_array_equal(got[name], values)
        file.write_bytes(good)
    dataset.open_segment(segment_id).verify()


def test_every_truncated_file_is_found(dataset):
    segment_id = dataset.segment_ids()[0]
    path = dataset.segments_path / segment_id
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        good = file.read_bytes()
        # The manifest's last byte is a line feed, which it can do without.
        least = 2 if file.name == "MANIFEST.json" else 1
        for size in {0, 1, len(good) // 2, len(good) - least}:
            file.write_bytes(good)
            opened = dataset.open_segment(segment_id)
            file.write_bytes(good[:size])
            with pytest.raises(SegmentCorruptError, match="replay-inspect"):
                dataset.open_segment(segment_id)
            with pytest.raises(SegmentCorruptError):
                opened.verify()
            array = file.relative_to(path).parts[0]
            if file.name == "0":  # the values themselves: also found by who has it open already
                with pytest.raises(SegmentCorruptError):
                    opened.read(array)
        file.write_bytes(good)


def test_another_arrays_file_in_its_place_is_found(dataset):
    """Its own checksum holds, and its size is right."""
    path = only(dataset).path
    shutil.copy(path / "episode_seed" / "c" / "0", path / "episode_length" / "c" / "0")
    with pytest.raises(SegmentCorruptError, match="SHA-256"):
        only(dataset).read("episode_length")


def test_the_frames_of_another_segment_are_found(tmp_path):
    """Of the same size, each checksum inside right: only the SHA-256 in the manifest knows."""
    raw = FrameCodec(name="raw")
    first, second = [make_episode(SPEC, 5, seed) for seed in (0, 1)]
    mine = write_dataset(tmp_path / "mine", SPEC, [first], codec=raw)
    other = write_dataset(tmp_path / "other", SPEC, [second], codec=raw)
    shard = Path("frames", "c", "0", "0", "0", "0")
    shutil.copy(only(other).path / shard, only(mine).path / shard)
    with pytest.raises(SegmentCorruptError, match="SHA-256"):
        only(mine).verify()
    with pytest.raises(SegmentCorruptError, match="is another segment's"):
        only(mine).read_frames()
    with (
        Sampler([mine], ReplayConfig(batch_size=1), seed=0, scratch=tmp_path) as sampler,
        pytest.raises(NoSegmentsError, match="is another segment's"),
    ):
        sampler.sample()
    report = audit([mine.path], AuditConfig(scheduler="sync"))
    assert report.verdict == "errors"


def test_the_compressed_frames_of_another_segment_are_refused_when_opened(tmp_path):
    """They have another size, as good as always."""
    spec = make_spec(height=32, width=32)
    mine, other = [
        write_dataset(tmp_path / str(seed), spec, [make_episode(spec, 20, seed)]) for seed in (0, 1)
    ]
    shard = Path("frames", "c", "0", "0", "0", "0")
    shutil.copy(only(other).path / shard, only(mine).path / shard)
    with pytest.raises(SegmentCorruptError, match="bytes"):
        only(mine)


def test_every_missing_file_is_found(dataset):
    segment_id = dataset.segment_ids()[0]
    path = dataset.segments_path / segment_id
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "MANIFEST.json"):
        opened = dataset.open_segment(segment_id)
        good = file.read_bytes()
        file.unlink()
        with pytest.raises(SegmentCorruptError, match="cannot be read"):
            dataset.open_segment(segment_id)
        with pytest.raises(SegmentCorruptError):
            opened.verify()
        file.write_bytes(good)


def test_a_segment_without_a_manifest_does_not_exist(dataset):
    segment_id = dataset.segment_ids()[0]
    opened = only(dataset)
    (opened.path / "MANIFEST.json").unlink()
    assert dataset.segment_ids() == []
    assert dataset.unsealed_ids() == [segment_id]
    with pytest.raises(SegmentCorruptError, match=r"MANIFEST\.json"):
        dataset.open_segment(segment_id)
    with pytest.raises(SegmentCorruptError):
        opened.verify()


@pytest.mark.parametrize("name", ["frames", "reward"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [4, 1, 6, 5]),
        ("data_type", "int8"),
        ("zarr_format", 2),
        ("node_type", "group"),
        ("chunk_grid", None),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**12] * 4}}),
        ("chunk_key_encoding", {"name": "odd"}),
        ("codecs", None),
        ("codecs", []),
        ("codecs", [{"name": "bytes"}, {"name": "nonsense"}]),
    ],
)
def test_edited_metadata_is_never_believed(dataset, name, key, value):
    path = only(dataset).path
    edit_json(path / name / "zarr.json", lambda document: document.update({key: value}))
    with pytest.raises(SegmentCorruptError):
        only(dataset).read(name)
    rebuild_manifest(path)  # a stranger who sealed the edit again
    with pytest.raises(SegmentCorruptError):
        only(dataset).read(name)


def rewrite_with_zarr(segment, name, **settings):
    import zarr

    values = segment.read(name)
    attributes = json.loads((segment.path / name / "zarr.json").read_text())["attributes"]
    shutil.rmtree(segment.path / name)
    array = zarr.create_array(
        segment.path / name,
        shape=values.shape,
        dtype=values.dtype,
        fill_value=0,
        attributes=attributes,
        **settings,
    )
    array[...] = values
    return values


@pytest.mark.parametrize("chunk_frames", [1, 4, 5])
@pytest.mark.parametrize("part", [1, 8, 2**20], ids=lambda frames: f"{frames} frames")
def test_parts_are_all_frames_in_order_from_memory_used_again(
    tmp_path, monkeypatch, chunk_frames, part
):
    codec = FrameCodec(chunk_frames=chunk_frames)
    dataset = write_dataset(tmp_path, SPEC, [make_episode(SPEC, 40, 0)], codec=codec)
    monkeypatch.setattr(arrays, "_PART_BYTES", part * SPEC.image.frame_bytes)
    segment, found = only(dataset), list[np.ndarray]()
    for start, frames in segment.frame_parts():
        assert start == len(found)
        found += list(frames.copy())
        assert len(frames) <= max(part, chunk_frames)
    np.testing.assert_array_equal(found, segment.read_frames())


def other_encodings():
    from zarr.codecs import BloscCodec, GzipCodec

    shards = {"chunks": (2, 1, 6, 5), "shards": (22, 1, 6, 5)}
    return {
        "codecs is .*bytes": {"chunks": (4, 1, 6, 5), "compressors": [BloscCodec()]},
        r"codecs of a chunk are \['bytes', 'gzip'\], format 1 allows": {
            **shards,
            "compressors": [GzipCodec()],
        },
        "chunk shape in a shard is": {"chunks": (2, 1, 3, 5), "shards": (22, 1, 6, 5)},
        "chunk_grid is .*12": {"chunks": (2, 1, 6, 5), "shards": (12, 1, 6, 5)},
        "chunk_key_encoding is": {
            **shards,
            "chunk_key_encoding": {"name": "v2", "separator": "."},
        },
    }


@pytest.mark.parametrize("number", range(5))
def test_frames_in_another_encoding_are_refused(dataset, number):
    message, settings = list(other_encodings().items())[number]
    segment = only(dataset)
    rewrite_with_zarr(segment, "frames", **settings)
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError, match=f"frames/zarr.json: .*{message}"):
        only(dataset).read_frames()
    with pytest.raises(SegmentCorruptError, match=f"frames/zarr.json: .*{message}"):
        only(dataset).verify()
    assert "array-metadata" in audit([dataset.path]).log.counts


def test_a_chunk_missing_from_a_shard_is_an_error_not_zeros(dataset):
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    segment = only(dataset)
    shutil.rmtree(segment.path / "frames")
    array = zarr.create_array(
        segment.path / "frames",
        shape=(21, 1, 6, 5),
        dtype="uint8",
        chunks=(4, 1, 6, 5),
        shards=(24, 1, 6, 5),
        compressors=[BloscCodec(shuffle="noshuffle"), Crc32cCodec()],
    )
    array[:12] = 1
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError, match="missing"):
        only(dataset).read_frames()


@pytest.mark.parametrize("name", ["frames", "reward"])
def test_an_empty_chunk_that_the_manifest_believes_in_is_an_error(dataset, name):
    segment = only(dataset)
    file = next(p for p in (segment.path / name / "c").rglob("*") if p.is_file())
    file.write_bytes(b"")
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError):
        only(dataset).read(name)


def test_a_small_array_in_another_encoding_is_refused(dataset):
    segment = only(dataset)
    rewrite_with_zarr(segment, "reward", chunks=(5,))
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError, match=r"reward/zarr.json: chunk_grid is .*5.*expects"):
        only(dataset).read("reward")


def test_an_array_missing_from_the_manifest_is_an_error(dataset):
    segment = only(dataset)
    shutil.rmtree(segment.path / "action")
    rebuild_manifest(segment.path)
    with pytest.raises(SegmentCorruptError, match="not in the manifest"):
        only(dataset).read("action")
    with pytest.raises(SegmentCorruptError, match="not in the manifest"):
        only(dataset).verify()


@pytest.mark.parametrize(
    "limits",
    [Limits(max_steps=16), Limits(max_file_bytes=100), Limits(max_raw_bytes=100)],
)
def test_a_segment_beyond_the_limits_is_refused_when_opened(dataset, limits):
    with pytest.raises(SegmentCorruptError, match="expected at most"):
        dataset.open_segment(dataset.segment_ids()[0], limits=limits)


def test_a_manifest_that_claims_the_moon_allocates_nothing(dataset):
    path = only(dataset).path
    rebuild_manifest(path, steps=10**12, observations=10**12 + 4)
    with pytest.raises(SegmentCorruptError, match="claims 1000000000000 steps"):
        only(dataset)
    rebuild_manifest(path, steps=170, observations=174)
    with pytest.raises(SegmentCorruptError, match="shape"):
        only(dataset).read_frames()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format_version": FORMAT_VERSION + 1}, FormatVersionError),
        ({"format_version": "1"}, SegmentCorruptError),
        ({"episodes": -1}, SegmentCorruptError),
        ({"steps": 1.5}, SegmentCorruptError),
        ({"observations": 3}, SegmentCorruptError),
        ({"files": [{"path": "../../x", "size": 1, "sha256": ""}]}, SegmentCorruptError),
        ({"files": [{"path": 3, "size": 1, "sha256": ""}]}, SegmentCorruptError),
        ({"files": [{"path": ["a"], "size": 1, "sha256": ""}]}, SegmentCorruptError),
        ({"files": [{"path": "a", "size": 1}]}, SegmentCorruptError),
        ({"files": [{"path": "a", "size": 1, "sha256": ""}] * 2}, SegmentCorruptError),
        ({"files": {"a": 1}}, SegmentCorruptError),
        ({"files": None}, SegmentCorruptError),
        ({"provenance": []}, SegmentCorruptError),
        ({"digest": 3}, SegmentCorruptError),
        ({"digest": "\ud800"}, SegmentCorruptError),
        ({"files": [{"path": "a", "size": 1, "sha256": "\ud800"}]}, SegmentCorruptError),
        ({"surprise": 1}, SegmentCorruptError),
    ],
)
def test_invalid_manifests_are_refused(dataset, change, error):
    path = only(dataset).path
    edit_json(path / "MANIFEST.json", lambda document: document.update(change))
    with pytest.raises(error):
        only(dataset)


def test_a_manifest_in_another_spelling_is_as_good(dataset):
    path = only(dataset).path / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    only(dataset).verify()


def test_a_segment_under_another_name_is_refused(dataset):
    segment = only(dataset)
    segment.path.rename(segment.path.with_name("other"))
    with pytest.raises(SegmentCorruptError, match="is that of segment"):
        only(dataset)


def test_a_segment_of_another_spec_is_refused(dataset):
    rebuild_manifest(only(dataset).path, spec_digest="0" * 64)
    with pytest.raises(SegmentCorruptError, match="spec 000000000000"):
        only(dataset)


def test_codes_beyond_the_categories_are_an_error(dataset):
    path = only(dataset).path
    edit_json(
        path / "episode_town" / "zarr.json",
        lambda document: document["attributes"].update(categories=["a"]),
    )
    rebuild_manifest(path)
    with pytest.raises(SegmentCorruptError, match=r"categories|names"):
        only(dataset).episode_table()


def test_readers_survive_quarantine(pristine, dataset):
    segment = only(dataset)
    before = segment.read_frames()
    dataset.quarantine(segment.id)
    for read in (segment.read_frames, segment.episode_table, segment.verify):
        with pytest.raises(SegmentNotFoundError, match="refresh the snapshot"):
            read()
    np.testing.assert_array_equal(before, only(pristine[0]).read_frames())


def test_a_link_in_place_of_a_file_is_not_followed_out(dataset, tmp_path):
    path = only(dataset).path
    file = path / "reward" / "c" / "0"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SegmentCorruptError, match="symbolic link"):
        only(dataset).read("reward")


def test_a_disk_that_fails_while_reading_is_one_of_our_errors(dataset, monkeypatch):
    segment = only(dataset)
    segment.read_frames()

    def fail(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(SegmentUnreadableError, match="the device failed"):
        segment.read_frames()


def test_the_fixture_holds_what_was_fed(pristine):
    assert_holds(*pristine)


@pytest.mark.parametrize(
    "lengths",
    [[6, 3, 0], [-1, 9, 1], [2**62, 2**62, 9 - 2**63], [2**63 - 1, 2, 8], [9, 9, 9], [1, 1, 1]],
)
def test_lengths_that_do_not_add_up_are_refused_even_if_their_sum_wraps_around(tmp_path, lengths):
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate((5, 3, 1))]
    dataset = write_dataset(tmp_path / "d", SPEC, episodes)
    path = dataset.segments_path / dataset.segment_ids()[0]
    offsets = np.cumsum(np.array([0, *lengths[:-1]], np.int64))
    for name, values in (("episode_length", lengths), ("episode_offset", offsets)):
        (path / name / "c" / "0").write_bytes(seal(np.array(values, "<i8").tobytes()))
    rebuild_manifest(path)
    with pytest.raises(SegmentCorruptError, match="do not add up"):
        only(dataset).episode_table()


@pytest.mark.parametrize(
    "change",
    [
        {"x" * 10**5: 1},
        {"episodes": [1] * 10**5},
        {"segment_id": "\x1b" * 10**5},
        {"format_version": 10**400},
        {"steps": "x" * 10**5},
        {"files": [{"path": "/" * 10**5, "size": 1, "sha256": ""}]},
    ],
)
def test_what_a_manifest_contains_never_fills_a_message(dataset, change):
    path = only(dataset).path / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    reason = dataset.snapshot().refused[0].reason
    assert len(reason) < 600 + len(str(path))
    assert reason.isprintable()
