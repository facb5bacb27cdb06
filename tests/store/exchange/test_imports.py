"""Imports of what other tools wrote, and of files made to do harm."""

import errno
import io
import json
import os
import re
import zipfile
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError, UnreadableError
from avtd3.store.exchange import record
from avtd3.store.exchange.importing import import_episodes
from avtd3.store.exchange.record import MAX_EPISODE_BYTES, ImportConfig
from avtd3.store.spec import ImageSpec
from avtd3.tests.store.exchange.readers import write_drq

RNG = np.random.default_rng(0)
T = 6


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def drq_episode(frames, stack=3, **changes):
    """An episode as DrQ-v2 stores it, from single frames (T + 1, C, H, W)."""
    padded = np.concatenate([np.repeat(frames[:1], stack - 1, axis=0), frames])
    stacks = [np.concatenate(padded[t : t + stack]) for t in range(len(frames))]
    rows = len(frames)
    return {
        "observation": np.array(stacks),
        "action": RNG.uniform(-1.0, 1.0, (rows, 2)).astype(np.float32),
        "reward": RNG.normal(size=(rows, 1)).astype(np.float32),
        "discount": np.ones((rows, 1), np.float32),
        **changes,
    }


def pictures(channels=3, rows=T + 1, side=6):
    return RNG.integers(0, 256, (rows, channels, side, side), np.uint8)


def test_a_replay_buffer_of_drqv2(tmp_path):
    frames = [pictures() for _ in range(11)]
    ended = np.ones((T + 1, 1), np.float32)
    ended[-1] = 0.0
    for number, one in enumerate(frames):
        extra = {"discount": ended} if number == 2 else {}
        write_drq(tmp_path / "buffer", number, drq_episode(one, **extra))
    report = import_episodes(tmp_path / "buffer", tmp_path / "data", "npz")
    assert (report.episodes, report.steps) == (11, 11 * T)
    assert report.notices == ("an observation has 3 frames of 3 planes",)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.spec.image is not None
    assert (dataset.spec.image.stack, dataset.spec.image.frame_shape) == (3, (3, 6, 6))
    found = list(dataset.episodes())
    for number, episode in enumerate(found):
        assert episode.attributes["imported_episode"] == number
        np.testing.assert_array_equal(episode.frames, frames[number])
    assert [episode.end_reason for episode in found[1:4]] == [
        "truncated",
        "terminated",
        "truncated",
    ]
    theirs = np.load(next((tmp_path / "buffer").glob("*_2_*.npz")))
    np.testing.assert_array_equal(found[2].actions, theirs["action"][1:])
    np.testing.assert_array_equal(found[2].rewards, theirs["reward"][1:, 0])


def test_states_instead_of_images(tmp_path):
    states = RNG.normal(size=(T + 1, 4))
    write_drq(tmp_path / "buffer", 0, drq_episode(pictures(), observation=states))
    import_episodes(tmp_path / "buffer", tmp_path / "data", "npz", ImportConfig(period_s=0.1))
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.spec.vector_names == tuple(f"observation_{n}" for n in range(4))
    assert dataset.spec.control_period_s == 0.1
    (episode,) = dataset.episodes()
    np.testing.assert_array_equal(episode.vectors, states.astype(np.float32))


def test_a_wrong_number_of_frames_is_found(tmp_path):
    write_drq(tmp_path / "buffer", 0, drq_episode(pictures()))
    with pytest.raises(SpecError, match="9 planes that are not a stack of 9 frames"):
        import_episodes(tmp_path / "buffer", tmp_path / "data", "npz", ImportConfig(stack=9))
    assert not (tmp_path / "data").exists()


def robomimic(path, *, next_obs, dones=1, images=("agentview_image",), length=T):
    with h5py.File(path, "w") as file:
        for number in (0, 1, 10):
            demo = file.create_group(f"data/demo_{number}")
            for key in images:
                demo[f"obs/{key}"] = RNG.integers(0, 256, (length, 7, 8, 3), np.uint8)
            demo["obs/robot0_eef_pos"] = RNG.normal(size=(length, 3))
            if next_obs:
                for key in demo["obs"]:
                    demo[f"next_obs/{key}"] = np.roll(demo[f"obs/{key}"][()], -1, axis=0)
            demo["actions"] = np.full((length, 2), number / 5.0)
            demo["rewards"] = np.zeros(length)
            demo["dones"] = np.r_[np.zeros(length - 1, np.int64), dones]
    return path


def test_robomimic_with_and_without_next_observations(tmp_path):
    path = robomimic(tmp_path / "with.hdf5", next_obs=True, dones=0)
    report = import_episodes(path, tmp_path / "data", "hdf5")
    assert (report.episodes, report.steps) == (3, 3 * T)
    assert report.notices == ("the source states no action bounds: those of the data are used",)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.spec.vector_names == tuple(f"robot0_eef_pos_{n}" for n in range(3))
    assert dataset.spec.action_high == (2.0, 2.0)
    with h5py.File(path) as file:
        for episode, name in zip(dataset.episodes(), ("demo_0", "demo_1", "demo_10"), strict=True):
            wanted = np.moveaxis(file[f"data/{name}/obs/agentview_image"][()], -1, 1)
            np.testing.assert_array_equal(episode.frames[:-1], wanted)
            np.testing.assert_array_equal(episode.frames[-1], wanted[0])
            assert episode.truncated[-1]

    path = robomimic(tmp_path / "without.hdf5", next_obs=False, dones=0)
    cut = import_episodes(path, tmp_path / "cut", "hdf5", ImportConfig(image="none"))
    assert cut.steps == 3 * (T - 1)
    assert any("is dropped" in notice for notice in cut.notices)
    path = robomimic(tmp_path / "ended.hdf5", next_obs=False, dones=1)
    ended = import_episodes(path, tmp_path / "ended", "hdf5", ImportConfig(image="none"))
    assert ended.steps == 3 * T
    for episode in Dataset.open(tmp_path / "ended").episodes():
        assert episode.terminated[-1]
        np.testing.assert_array_equal(episode.vectors[-1], episode.vectors[-2])


def test_robomimic_may_write_zeros_before_numbers(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True)
    with h5py.File(path, "a") as file:
        file.move("data/demo_1", "data/demo_01")
        file.create_group(f"data/demo_{'9' * 5000}")
    assert import_episodes(path, tmp_path / "data", "hdf5").episodes == 3


def test_several_cameras_of_robomimic_become_streams(tmp_path):
    cameras = ("agentview_image", "robot0_eye_in_hand_image")
    path = robomimic(tmp_path / "a.hdf5", next_obs=True, images=cameras)
    report = import_episodes(path, tmp_path / "data", "hdf5", ImportConfig(stack=2))
    assert (report.episodes, report.steps) == (3, 3 * T)
    assert sum("became the stream" in notice for notice in report.notices) == 2
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.spec.format_version == 2
    assert dict(dataset.spec.streams) == {
        name: ImageSpec(channels=3, height=7, width=8, stack=2)
        for name in ("agentview", "robot0_eye_in_hand")
    }
    assert dataset.spec.vector_size == 3
    with h5py.File(path) as file:
        for episode, demo in zip(dataset.episodes(), ("demo_0", "demo_1", "demo_10"), strict=True):
            for camera in cameras:
                wanted = np.moveaxis(file[f"data/{demo}/obs/{camera}"][()], -1, 1)
                found = episode.streams[camera.removesuffix("_image")]
                np.testing.assert_array_equal(found[:-1], wanted)
    assert import_episodes(path, tmp_path / "data", "hdf5", ImportConfig(stack=2)).episodes == 0


def test_images_whose_names_make_one_stream_are_refused(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True, images=("Front", "front_image"))
    with pytest.raises(SpecError, match="would both be the stream front"):
        import_episodes(path, tmp_path / "data", "hdf5")


def test_several_images_in_npz_become_streams(tmp_path):
    frames = {name: pictures(rows=T + 1) for name in ("left", "right")}
    episode = drq_episode(pictures(), vector=RNG.normal(size=(T + 1, 2)))
    del episode["observation"]
    episode |= {f"{name}_image": values for name, values in frames.items()}
    write_drq(tmp_path / "buffer", 0, episode)
    import_episodes(tmp_path / "buffer", tmp_path / "data", "npz")
    (found,) = Dataset.open(tmp_path / "data").episodes()
    assert list(found.streams) == ["left", "right"]
    for name, values in frames.items():
        np.testing.assert_array_equal(found.streams[name], values)
    assert found.vectors.shape == (T + 1, 2)


def test_one_of_several_images_is_chosen(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True, images=("front", "wrist"))
    with pytest.raises(SpecError, match="'side' cannot be used so"):
        import_episodes(path, tmp_path / "data", "hdf5", ImportConfig(image="side"))
    assert (
        import_episodes(path, tmp_path / "data", "hdf5", ImportConfig(image="wrist")).episodes == 3
    )


@pytest.mark.parametrize("has_next", [False, True])
def test_d4rl(tmp_path, has_next):
    """Episodes of 3 (terminal), 4 (time limit) and 2 steps (end of the file)."""
    states = RNG.normal(size=(9, 5)).astype(np.float32)
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        file["observations"] = states
        if has_next:
            file["next_observations"] = states + 1.0
        file["actions"] = RNG.uniform(-1.0, 1.0, (9, 2)).astype(np.float32)
        file["rewards"] = np.arange(9, dtype=np.float32)
        file["terminals"] = np.arange(9) == 2
        file["timeouts"] = np.arange(9) == 6
        file["infos/qpos"] = np.zeros((9, 6))
    report = import_episodes(tmp_path / "hopper.hdf5", tmp_path / "data", "hdf5")
    found = list(Dataset.open(tmp_path / "data").episodes())
    assert [episode.length for episode in found] == ([3, 4, 2] if has_next else [3, 3, 1])
    assert [bool(episode.terminated[-1]) for episode in found] == [True, False, False]
    assert [episode.rewards[-1] for episode in found] == ([2, 6, 8] if has_next else [2, 5, 7])
    np.testing.assert_array_equal(found[1].vectors[:3], states[3:6])
    after = states[6] + 1.0 if has_next else states[6]
    np.testing.assert_array_equal(found[1].vectors[-1], after)
    assert len(report.notices) == (0 if has_next else 2)


def minari_dataset(root, monkeypatch, *, jpeg=True, side=32, count=3, several=False):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    spaces = gymnasium.spaces
    observations = {
        "camera": spaces.Box(0, 255, (side, side, 3), np.uint8),
        "goal": spaces.Dict({"x": spaces.Box(-np.inf, np.inf, (2,), np.float64)}),
    }
    views = {"left": (2, 40, 48, 3), "right_image": (2, side, side)}
    if several:
        boxes = [(name, spaces.Box(0, 255, shape[1:], np.uint8)) for name, shape in views.items()]
        observations["pixels"] = spaces.Dict(dict[str, Any](boxes))
    space = spaces.Dict(observations)

    def more():
        if not several:
            return {}
        return {
            "pixels": {
                name: np.repeat(RNG.integers(0, 256, shape, np.uint8), [T, 1], axis=0)
                for name, shape in views.items()
            }
        }

    buffers = [
        EpisodeBuffer(
            id=n,
            seed=70 + n,
            observations={
                "camera": np.full((T + 1, side, side, 3), 40 * n, np.uint8),
                "goal": {"x": RNG.normal(size=(T + 1, 2))},
                **more(),
            },
            actions=RNG.uniform(-2.0, 2.0, (T, 1)).astype(np.float32),
            rewards=list(range(T)),
            terminations=[False] * (T - 1) + [n == 1],
            truncations=[False] * (T - 1) + [n != 1],
            infos={},
        )
        for n in range(count)
    ]
    minari.create_dataset_from_buffers(
        "test/mine-v0",
        buffers,
        observation_space=space,
        action_space=spaces.Box(-2.0, 2.0, (1,), np.float32),
        algorithm_name="none",
        author="nobody",
        author_email="nobody@example.org",
        code_permalink="none",
        jpeg_encoding=jpeg,
    )
    return root / "test" / "mine-v0"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("jpeg", [False, True])
def test_a_dataset_that_minari_wrote(tmp_path, monkeypatch, jpeg):
    path = minari_dataset(tmp_path, monkeypatch, jpeg=jpeg)
    report = import_episodes(path, tmp_path / "data", "minari")
    assert (report.episodes, report.steps) == (3, 3 * T)
    assert any("JPEG" in notice for notice in report.notices) == jpeg
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.spec.action_high == (2.0,)
    assert dataset.spec.vector_names == ("goal/x_0", "goal/x_1")
    loaded = minari.load_dataset("test/mine-v0")
    for n, (episode, theirs) in enumerate(zip(dataset.episodes(), loaded, strict=True)):
        assert episode.seed == 70 + n
        assert (bool(episode.terminated[-1]), bool(episode.truncated[-1])) == (n == 1, n != 1)
        wanted = np.moveaxis(theirs.observations["camera"], -1, 1)
        np.testing.assert_array_equal(episode.frames, wanted)
        vectors = theirs.observations["goal"]["x"].astype(np.float32)
        np.testing.assert_array_equal(episode.vectors, vectors)
        np.testing.assert_array_equal(episode.actions, theirs.actions)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("jpeg", [False, True])
def test_several_images_that_minari_wrote_become_streams(tmp_path, monkeypatch, jpeg):
    path = minari_dataset(tmp_path, monkeypatch, jpeg=jpeg, several=True)
    report = import_episodes(path, tmp_path / "data", "minari")
    assert any("JPEG" in notice for notice in report.notices) == jpeg
    dataset = Dataset.open(tmp_path / "data")
    shapes = {name: image.frame_shape for name, image in dataset.spec.images.items()}
    wanted = {"camera": (3, 32, 32), "pixels_left": (3, 40, 48), "pixels_right": (1, 32, 32)}
    assert shapes == wanted
    loaded = minari.load_dataset("test/mine-v0")
    for episode, theirs in zip(dataset.episodes(), loaded, strict=True):
        pixels = theirs.observations["pixels"]
        left, right = np.moveaxis(pixels["left"], -1, 1), pixels["right_image"][:, None]
        np.testing.assert_array_equal(episode.streams["pixels_left"], left)
        np.testing.assert_array_equal(episode.streams["pixels_right"], right)
        assert episode.vectors.shape == (T + 1, 2)


def test_an_interrupted_import_continues(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True)
    seen: list[Any] = []
    first = import_episodes(
        path,
        tmp_path / "data",
        "hdf5",
        on_progress=seen.append,
        should_stop=lambda: len(seen) == 1,
    )
    assert first.stopped
    assert first.episodes == 1
    second = import_episodes(path, tmp_path / "data", "hdf5")
    assert (second.episodes, second.already_there) == (2, 1)
    found = Dataset.open(tmp_path / "data").episodes()
    assert [episode.attributes["imported_episode"] for episode in found] == [0, 1, 2]


def test_another_spec_is_refused(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True)
    import_episodes(path, tmp_path / "data", "hdf5")
    with pytest.raises(SpecError, match="another spec"):
        import_episodes(path, tmp_path / "data", "hdf5", ImportConfig(image="none"))


# Files made to do harm


def npz_with(folder, name, data, method=zipfile.ZIP_DEFLATED):
    """A buffer whose episode has one member of other bytes."""
    write_drq(folder, 0, drq_episode(pictures()))
    (path,) = folder.glob("*.npz")
    with zipfile.ZipFile(path) as old:
        members = {member: old.read(member) for member in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for member, content in (members | {name: data}).items():
            new.writestr(member, content)
    return folder


def npy_header(descr, shape):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    return buffer.getvalue()


HARMFUL_MEMBERS = {
    "a pickle": (pickled(), "expected numbers"),
    "a claim of terabytes": (npy_header("<f4", (2**40, 2)), "expected at most"),
    "more than is stored": (npy_header("<f4", (10**8, 2)), "bytes are stored"),
    "a size below zero": (npy_header("<f4", (-1, 2)), "expected numbers"),
    "text": (npy_header("<U9", (7, 2)), "expected numbers"),
    "fields": (npy_header([("a", "<f4")], (7,)), "expected numbers"),
    "no header": (b"\x00" * 100, "no npz file"),
    "nothing": (b"", "no npz file"),
    "a truncated array": (npy_header("<f4", (7, 2)) + b"123", "no npz file"),
    "no rows": (npy_header("<f4", ()) + b"1234", "expected rows"),
    "another number of rows": (npy_header("<f4", (3, 2)) + bytes(24), "rows"),
    "no numbers": (npy_header("<f4", (7, 0)), "expected rows"),
    "not numbers": (npy_header("<f4", (7, 2)) + b"\xff" * 56, "not finite"),
}


@pytest.mark.parametrize(("data", "says"), HARMFUL_MEMBERS.values(), ids=HARMFUL_MEMBERS)
def test_a_harmful_npz_file_gives_one_clear_error(tmp_path, data, says):
    folder = npz_with(tmp_path / "buffer", "action.npy", data)
    with pytest.raises(SpecError, match=says) as caught:
        import_episodes(folder, tmp_path / "data", "npz")
    assert len(str(caught.value)) < 1000


def test_other_harmful_npz_folders(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        import_episodes(tmp_path / "none", tmp_path / "data", "npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="no npz files"):
        import_episodes(tmp_path / "empty", tmp_path / "data", "npz")
    folder = npz_with(tmp_path / "bz2", "a.npy", b"", zipfile.ZIP_BZIP2)
    with pytest.raises(SpecError, match="method 12, expected deflate"):
        import_episodes(folder, tmp_path / "data", "npz")
    folder = npz_with(tmp_path / "facts", "avtd3.npy", npy_header("|u1", (2,)) + b"{}")
    with pytest.raises(SpecError, match="not what avtd3 wrote"):
        import_episodes(folder, tmp_path / "data", "npz")
    folder = npz_with(tmp_path / "words", "avtd3.npy", npy_header("<f4", (2,)) + bytes(8))
    with pytest.raises(SpecError, match="expected a short text"):
        import_episodes(folder, tmp_path / "data", "npz")
    folder = npz_with(tmp_path / "planes", "observation.npy", npy_header("|u1", (7, 0, 6, 6)))
    with pytest.raises(SpecError, match="expected rows"):
        import_episodes(folder, tmp_path / "data", "npz")
    folder = npz_with(tmp_path / "pipe", "a.npy", b"")
    (path,) = folder.glob("*.npz")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        import_episodes(folder, tmp_path / "data", "npz")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("layout", "name"), [("npz", "avtd3.json"), ("minari", "metadata.json")])
def test_an_io_error_is_no_damage_of_the_source(tmp_path, monkeypatch, layout, name):
    folder = npz_with(tmp_path / "source", "a.npy", b"")
    (folder / name).write_text("{}")

    def fail(path, _max_bytes):
        raise OSError(errno.EIO, "the device failed", path)

    monkeypatch.setattr(record, "read_json", fail)
    with pytest.raises(UnreadableError, match="the device failed"):
        import_episodes(folder, tmp_path / "data", layout)


def claims_terabytes(file):
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (2**34, 64), np.float32, chunks=(64, 64))


def is_never_written(file):
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (10**7, 2), np.float32, chunks=(64, 2))


def is_a_bomb(file):
    del file["data/demo_0/obs/agentview_image"]
    shape = (MAX_EPISODE_BYTES // 4096 + 1, 64, 64)
    file.create_dataset("data/demo_0/obs/agentview_image", shape, np.uint8, compression="gzip")


def reads_another_file(file):
    del file["data/demo_0/actions"]
    external = [("/etc/passwd", 0, 48)]
    file.create_dataset("data/demo_0/actions", (6, 2), np.float32, external=external)


def links_to_another_file(file):
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.ExternalLink("/etc/passwd", "/x")


def links_in_a_circle(file):
    file["data/demo_0/obs/more"] = h5py.SoftLink("/data/demo_0/obs")


def contains_itself(file):
    for number in range(50):
        file[f"data/demo_0/obs/more{number}"] = file["data/demo_0/obs"]


def is_virtual(file):
    del file["data/demo_0/actions"]
    layout = h5py.VirtualLayout((6, 2), np.float32)
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (6, 2))
    file.create_virtual_dataset("data/demo_0/actions", layout)


def has_texts(file):
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = ["a"] * T


def lacks_rewards(file):
    del file["data/demo_0/rewards"]


def is_a_group(file):
    del file["data/demo_0/actions"]
    file.create_group("data/demo_0/actions")


def has_other_lengths(file):
    del file["data/demo_0/rewards"]
    file["data/demo_0/rewards"] = np.zeros(T - 1)


def has_actions_without_numbers(file):
    for demo in file["data"].values():
        del demo["actions"]
        demo["actions"] = np.zeros((len(demo["rewards"]), 0))


def has_no_next_observation(file):
    for key, values in file["data/demo_0/obs"].items():
        file[f"data/demo_0/next_obs/{key}"] = values[:0]


def has_nothing(file):
    del file["data"]


HARMS = (
    (claims_terabytes, "expected at most"),
    (is_never_written, "0 bytes are stored"),
    (is_a_bomb, "expected at most"),
    (reads_another_file, "in another file"),
    (links_to_another_file, "is a link"),
    (links_in_a_circle, "is a link"),
    (contains_itself, "more than 1000 groups"),
    (is_virtual, "in another file"),
    (has_texts, "expected rows of numbers"),
    (lacks_rewards, "there is no array"),
    (is_a_group, "there is no array"),
    (has_other_lengths, "expected one number"),
    (has_actions_without_numbers, "expected one size above 0"),
    (has_no_next_observation, f"expected {T + 1} rows"),
    (has_nothing, "expected data/demo_N"),
)


@pytest.mark.parametrize(("harm", "says"), HARMS, ids=[harm.__name__ for harm, _ in HARMS])
def test_a_harmful_hdf5_file_gives_one_clear_error(tmp_path, harm, says):
    path = robomimic(tmp_path / "a.hdf5", next_obs=False)
    with h5py.File(path, "r+") as file:
        harm(file)
    with pytest.raises(SpecError, match=says) as caught:
        import_episodes(path, tmp_path / "data", "hdf5")
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_hdf5_file_gives_one_clear_error(tmp_path, share):
    path = robomimic(tmp_path / "a.hdf5", next_obs=True)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SpecError, match=re.escape(str(path))):
        import_episodes(path, tmp_path / "data", "hdf5")


METADATA = (
    ({"data_format": "arrow"}, "expected data_format hdf5"),
    ({"action_space": "{"}, "not JSON"),
    ({"action_space": json.dumps({"type": "Discrete", "n": 3})}, "TD3 needs numbers"),
    ({"action_space": json.dumps({"type": "Box", "low": {}, "high": []})}, "cannot be read"),
    ({"action_space": json.dumps({"type": "Box", "low": [10**400], "high": []})}, "cannot be read"),
    ({"observation_space": json.dumps({"type": "Dict", "subspaces": 3})}, "cannot be used so"),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("changes", "says"), METADATA)
def test_harmful_metadata_of_minari_give_one_clear_error(tmp_path, monkeypatch, changes, says):
    path = minari_dataset(tmp_path, monkeypatch, count=1)
    file = path / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    config = ImportConfig(image="camera")
    with pytest.raises(SpecError, match=says):
        import_episodes(path, tmp_path / "data", "minari", config)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_of_another_size_than_claimed_is_refused(tmp_path, monkeypatch):
    path = minari_dataset(tmp_path, monkeypatch, count=1)
    file = path / "data" / "metadata.json"
    text = file.read_text().replace("[32, 32, 3]", "[64, 32, 3]")
    file.write_text(text)
    with pytest.raises(SpecError, match="expected"):
        import_episodes(path, tmp_path / "data", "minari")
