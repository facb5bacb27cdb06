import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.format.codec import MEASURED_FRAMES, FrameCodec, choose_codec
from avtd3.store.seal import FrameBuffer
from avtd3.store.writer import WriterConfig
from avtd3.tests.store.segments import feed, make_episode, make_spec, make_writer

AUTO = FrameCodec(name="auto")


def camera(sigma, frames=20, side=84):
    """A slope that moves, with sensor noise."""
    rng = np.random.default_rng(0)
    slope = np.linspace(20.0, 220.0, side)
    pictures = [np.tile(np.roll(slope, n), (side, 1)) for n in range(frames)]
    noisy = np.stack(pictures) + rng.normal(0.0, sigma, (frames, side, side))
    return noisy.round().clip(0, 255).astype(np.uint8)[:, None]


@pytest.mark.parametrize(("sigma", "name"), [(0.0, "lz4hc"), (200.0, "zstd"), (20.0, "raw")])
def test_the_first_codec_that_saves_a_fifth(sigma, name):
    # Noise of sigma 200 leaves half of the pixels at 0 or 255.
    frames = camera(sigma)
    chosen = choose_codec(AUTO, frames)
    assert chosen.name == name
    if name != "raw":
        saved = 1.0 - len(chosen.encode(frames[:4])) / frames[:4].nbytes
        assert saved >= 0.2
    faster = {"lz4hc": [], "zstd": ["lz4hc"], "raw": ["lz4hc", "zstd"]}[name]
    for other in faster:
        codec = FrameCodec(name=other, level=5 if other == "lz4hc" else 1)
        assert len(codec.encode(frames[:4])) > 0.8 * frames[:4].nbytes


def test_settings_are_kept_and_raw_frames_are_a_chunk_each():
    settings = FrameCodec(name="auto", level=7, chunk_frames=3)
    assert choose_codec(settings, camera(0.0)) == FrameCodec(name="lz4hc", level=7, chunk_frames=3)
    assert choose_codec(settings, camera(200.0)) == FrameCodec(name="zstd", level=1, chunk_frames=3)
    assert choose_codec(settings, camera(20.0)).chunk_frames == 1


def test_one_frame_is_enough():
    assert choose_codec(AUTO, camera(0.0, frames=1)).name == "lz4hc"


def test_auto_is_no_codec_of_a_chunk():
    with pytest.raises(AssertionError, match="auto"):
        AUTO.encode(camera(0.0, frames=4))
    with pytest.raises(AssertionError, match="auto"):
        AUTO.chain()
    with pytest.raises(ConfigError, match="expected lz4hc, zstd, raw or auto"):
        FrameCodec(name="best")


@pytest.mark.parametrize("count", [1, 4, 9])
def test_settling_changes_no_frame(count):
    frames = camera(20.0, frames=count)
    buffer = FrameBuffer(AUTO, frames.shape[1:])
    for frame in frames:
        buffer.append(frame)
    settled = buffer.settled()
    assert settled.codec.name == "raw"
    assert settled.settled() is settled
    assert [chunk[:-4] for chunk in settled.encoded(count).chunks] == [f.tobytes() for f in frames]


def noisy_episode(spec, length, seed):
    episode = make_episode(spec, length, seed=seed)
    rng = np.random.default_rng(seed)
    episode.frames = rng.integers(0, 256, episode.frames.shape, dtype=np.uint8)
    return episode


def written(tmp_path, episodes, spec):
    dataset = Dataset.create(tmp_path / "data", spec)
    with make_writer(dataset, codec=AUTO) as writer:
        for episode in episodes:
            feed(writer, episode)
            writer.flush()
    return dataset.snapshot().segments


@pytest.mark.parametrize("length", [5, MEASURED_FRAMES + 3])
def test_a_writer_measures_once_and_records_what_it_used(tmp_path, length):
    spec = make_spec()
    noisy, clean = noisy_episode(spec, length, 0), make_episode(spec, 7, seed=2)
    segments = written(tmp_path, [noisy, clean], spec)
    for segment, episode in zip(segments, [noisy, clean], strict=True):
        np.testing.assert_array_equal(segment.read_frames(), episode.frames)
        assert segment.provenance["codec"]["name"] == "raw"
        assert segment.frame_shard().kind == "raw"
        segment.verify()


def test_the_camera_decides(tmp_path):
    spec = make_spec(height=40, width=40)
    (segment,) = written(tmp_path, [make_episode(spec, 5)], spec)
    assert segment.provenance["codec"]["name"] == "lz4hc"


def test_without_a_camera_nothing_is_measured(tmp_path):
    spec = make_spec(image=False)
    (segment,) = written(tmp_path, [make_episode(spec, 5)], spec)
    assert "frames" not in segment.names


def test_an_interrupted_choice_loses_nothing(tmp_path, monkeypatch):
    spec = make_spec()
    episode = noisy_episode(spec, 6, 0)
    dataset = Dataset.create(tmp_path / "data", spec)
    writer = make_writer(dataset, codec=AUTO)
    feed(writer, episode)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrameBuffer, "settled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    writer.close()
    (segment,) = dataset.snapshot().segments
    np.testing.assert_array_equal(segment.read_frames(), episode.frames)


def test_it_is_a_setting():
    assert WriterConfig(codec=AUTO).codec.name == "auto"
