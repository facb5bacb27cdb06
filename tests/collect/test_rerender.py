"""`store render`: the same camera gives the same bytes, another one changes pictures alone."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avtd3.collect import CollectConfig, RoadConfig, ScenarioConfig, collect
from avtd3.collect.rerender import check_pictures, rerender
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.scene import SceneChanges
from avtd3.collect.sim.streams import StreamCamera
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, DatasetError
from avtd3.store.maintenance.compact import compact
from avtd3.store.segment import Segment
from avtd3.store.world_record import stored_maps
from avtd3.store.writer import WriterConfig

pytestmark = pytest.mark.usefixtures("maps_without_own_process")

CAMERA = CameraConfig(height=24, width=32)
ONE = dataclasses.asdict(CAMERA)
CONFIG = CollectConfig(
    scenario=ScenarioConfig(number=4, route_length_m=40.0, weather="random", networks=2),
    road=RoadConfig(camera=CAMERA),
    writer=WriterConfig(segment_steps=100, segment_seconds=1e9),
)
SMALLER = SceneChanges(camera={"height": 16, "width": 20, "field_of_view_deg": 120.0})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "data"
    collect(path, CONFIG, episodes=5)
    assert len(Dataset.open(path).segment_ids()) >= 3
    return path


@pytest.fixture
def copied(source, tmp_path):
    return shutil.copytree(source, tmp_path / "data")


def segments(path):
    return Dataset.open(path).snapshot().segments


def contents(path, *, without=()):
    """The bytes of every array of every segment, in order."""
    return [
        {
            name: (segment.path / name).read_bytes()
            for name in segment.files
            if "/" in name and name.split("/")[0] not in without
        }
        for segment in segments(path)
    ]


def test_the_same_camera_gives_the_same_bytes(source, tmp_path):
    report = rerender(source, tmp_path / "new", SceneChanges())
    assert (report.problems, report.stopped, report.differing) == ((), False, 0)
    assert report.frames == sum(s.observations for s in segments(source))
    assert contents(tmp_path / "new") == contents(source)
    assert stored_maps(tmp_path / "new").keys() == stored_maps(source).keys()
    assert check_pictures(source).differing == 0


def test_another_camera_changes_pictures_and_keeps_everything_else(source, tmp_path):
    new = tmp_path / "new"
    changes = SceneChanges(camera=SMALLER.camera, weather="night")
    rerender(source, new, changes, workers=2)
    changed = ("frames", "state_setup", "episode_weather")
    assert contents(new, without=changed) == contents(source, without=changed)
    one, two = (list(Dataset.open(path).episodes()) for path in (source, new))
    assert [e.frames.shape[1:] for e in two] == [(1, 16, 20)] * len(one)
    assert [e.actions.tobytes() for e in one] == [e.actions.tobytes() for e in two]
    assert {e.attributes["weather"] for e in two} == {"night"}
    assert [s.map_digests() for s in segments(source)] == [s.map_digests() for s in segments(new)]
    origins = [segment.provenance["render"] for segment in segments(new)]
    digests = [segment.manifest_digest for segment in segments(source)]
    assert [origin["digest"] for origin in origins] == digests
    assert origins[0]["weather"] == "night"
    # What was drawn can be drawn again: the new states hold the new camera.
    assert check_pictures(new).differing == 0
    assert [finding for finding in audit([new]).findings if finding.severity == "error"] == []


def test_a_stopped_render_continues_where_it_was(source, tmp_path):
    calls = iter([False, True])
    new = tmp_path / "new"
    report = rerender(source, new, SMALLER, should_stop=lambda: next(calls, True))
    assert (report.stopped, report.segments) == (True, 1)
    report = rerender(source, new, SMALLER)
    total = len(Dataset.open(source).segment_ids())
    assert (report.segments, report.already_there, report.stopped) == (total - 1, 1, False)
    rerender(source, tmp_path / "whole", SMALLER)
    assert contents(new) == contents(tmp_path / "whole")


def test_a_killed_render_leaves_whole_segments_and_continues(source, tmp_path):
    new = tmp_path / "new"
    argv = [sys.executable, "-m", "avtd3.cli", "store", "render", str(source), str(new)]
    argv += ["--camera", "height=16,width=20,field_of_view_deg=120.0"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(new.glob("segments/*/MANIFEST.json")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for segment in segments(new):
        segment.verify()
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["problems"] == []
    rerender(source, tmp_path / "whole", SMALLER)
    assert contents(new) == contents(tmp_path / "whole")
    assert not any((new / ".staging").iterdir())


def test_a_merged_dataset_can_be_rendered_and_a_rendered_one_merged(copied, tmp_path):
    rerender(copied, tmp_path / "one", SMALLER)
    compact(tmp_path / "one")
    compact(copied)
    rerender(copied, tmp_path / "two", SMALLER)
    one, two = (
        np.concatenate([e.frames for e in Dataset.open(tmp_path / name).episodes()])
        for name in ("one", "two")
    )
    assert np.array_equal(one, two)
    assert len(Dataset.open(tmp_path / "one").segment_ids()) == 1


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_map_that_cannot_be_read_concerns_its_segments_alone(copied, tmp_path, damage):
    path = min(stored_maps(copied).values())
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:50])
    needing = [
        segment.id
        for segment in Dataset.open(copied).snapshot().segments
        if any(path.name.startswith(digest) for digest in segment.map_digests())
    ]
    report = rerender(copied, tmp_path / "new", SMALLER)
    assert len(report.problems) == len(needing) > 0
    assert all(damage in problem and path.name in problem for problem in report.problems)
    assert report.segments == len(Dataset.open(copied).segment_ids()) - len(needing)


def test_a_car_that_is_nowhere_near_is_a_problem_of_its_segment(copied, monkeypatch):
    first, *others = Dataset.open(copied).segment_ids()
    original = Segment.world_records

    def far(segment):
        records = original(segment)
        assert records is not None
        record, *more = records
        assert record is not None
        far_m = 1e300 if segment.id == first else 0.0
        return [dataclasses.replace(record, ego=record.ego + far_m), *more]

    monkeypatch.setattr(Segment, "world_records", far)
    report = check_pictures(copied)
    (problem,) = report.problems
    assert f"segment {first}, episode 0 has a car more than 1e+09 m away" in problem
    assert (report.segments, report.differing) == (len(others), 0)


def test_a_dataset_without_states_is_one_clear_error(tmp_path):
    config = CollectConfig(scenario=CONFIG.scenario, road=CONFIG.road, record_world=False)
    collect(tmp_path / "data", config, episodes=1)
    (segment,) = Dataset.open(tmp_path / "data").snapshot().segments
    assert not [name for name in segment.files if name.startswith("state_")]
    for run in (lambda: check_pictures(tmp_path / "data"), lambda: render_into(tmp_path)):
        with pytest.raises(DatasetError, match="stores no states of the world"):
            run()
    assert not (tmp_path / "new").exists()


def render_into(folder):
    return rerender(folder / "data", folder / "new", SMALLER)


def test_recording_changes_no_other_byte_of_the_data(source, tmp_path):
    config = CollectConfig(
        scenario=CONFIG.scenario, road=CONFIG.road, writer=CONFIG.writer, record_world=False
    )
    assert config.plan_document() == CONFIG.plan_document()
    collect(tmp_path / "data", config, episodes=5)
    states = ("state_setup", "state_ego", "state_actor", "episode_wall_time")
    assert contents(tmp_path / "data", without=states) == contents(source, without=states)


def test_a_directory_with_other_pictures_is_refused(source, tmp_path):
    rerender(source, tmp_path / "new", SceneChanges(weather="night"))
    with pytest.raises(ConfigError, match=r"weather .night., expected fog"):
        rerender(source, tmp_path / "new", SceneChanges(weather="fog"))
    with pytest.raises(ConfigError, match="is the source dataset itself"):
        rerender(source, source, SMALLER)


def test_the_check_finds_a_picture_that_differs(copied):
    dataset = Dataset.open(copied)
    segment = dataset.snapshot().segments[0]
    drawn: list[int] = []
    original = type(segment).frame_parts

    def flipped(self, stream=None):
        for start, part in original(self, stream):
            if not drawn:
                part[0, 0, 3, 3] ^= 1
            drawn.append(start)
            yield start, part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(segment), "frame_parts", flipped)
        report = check_pictures(copied)
    assert report.differing == 1
    assert "1 differ from the stored ones" in report.summary()


STREAMS = {
    "bev": {"kind": "bev", "height": 20, "width": 16, "stack": 1},
    "gray": {},
    "rgb": {"kind": "rgb", "height": 30, "width": 40},
    "way": {"kind": "bev_route", "height": 24, "width": 16, "stack": 1},
}


@pytest.fixture(scope="module")
def several(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("several") / "new"
    report = rerender(source, path, SceneChanges(streams=STREAMS))
    observations = sum(segment.observations for segment in segments(source))
    assert (report.frames, report.problems) == (4 * observations, ())
    return path


def test_named_streams_make_a_dataset_of_format_2(source, several):
    spec = Dataset.open(several).spec
    assert spec.format_version == 2
    shapes = {name: image.observation_shape for name, image in spec.images.items()}
    assert shapes == {
        "bev": (5, 20, 16),
        "gray": (4, 24, 32),
        "rgb": (12, 30, 40),
        "way": (6, 24, 16),
    }
    shared = ("episode_weather", "state_setup")
    frames = ("frames", *(f"frames_{stream}" for stream in STREAMS))
    assert contents(several, without=(*frames, *shared)) == contents(
        source, without=(*frames, *shared)
    )
    for old, new in zip(segments(source), segments(several), strict=True):
        np.testing.assert_array_equal(old.read_frames(), new.read_frames(stream="gray"))
        assert "frames/zarr.json" not in new.files
        new.verify()
    assert not [f for f in audit([several]).findings if f.severity == "error"]


def test_streams_are_drawn_again_byte_for_byte(several, tmp_path):
    report = check_pictures(several)
    assert (report.differing, report.problems) == (0, ())
    same = tmp_path / "same"
    rerender(several, same, SceneChanges())
    assert contents(same) == contents(several)
    fewer = tmp_path / "fewer"
    rerender(several, fewer, SceneChanges(streams={"rgb": {"width": 20}}))
    assert Dataset.open(fewer).spec.images["rgb"].frame_shape == (3, 30, 20)


def test_collected_streams_equal_rendered_ones(source, several, tmp_path):
    """The cameras of the live simulator, and those that draw from its states."""
    cameras = {name: StreamCamera(**{**ONE, **changes}) for name, changes in STREAMS.items()}
    config = dataclasses.replace(CONFIG, road=RoadConfig(streams=cameras))
    collect(tmp_path / "live", config, episodes=5)
    for live, drawn in zip(segments(tmp_path / "live"), segments(several), strict=True):
        for stream in STREAMS:
            np.testing.assert_array_equal(
                live.read_frames(stream=stream), drawn.read_frames(stream=stream)
            )
    report = check_pictures(tmp_path / "live")
    assert (report.differing, report.problems) == (0, ())


def test_rendered_streams_are_compacted_and_rendered_again(several, tmp_path):
    path = shutil.copytree(several, tmp_path / "d")
    assert compact(path).merged_segments > 1
    report = rerender(path, tmp_path / "new", SceneChanges(streams={"bev": {"height": 12}}))
    assert (report.segments, report.problems) == (1, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": {"rgb": {"size": 3}}}, "camera has no 'size'"),
        ({"streams": {"rgb": {"kind": 3}}}, "camera.kind is 3"),
        ({"streams": {"rgb": {"kind": "x"}}}, "expected one of gray, rgb"),
        ({"streams": {"rgb": {}}, "camera": {"width": 20}}, "give each stream its own"),
    ],
)
def test_impossible_streams_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SceneChanges(**changes)
