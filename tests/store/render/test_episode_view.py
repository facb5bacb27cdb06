"""One episode: found by name, read, drawn in the terminal and as files."""

import json

import numpy as np
import pytest
from PIL import Image

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, NoSegmentsError, SegmentCorruptError
from avtd3.store.filters import parse_filter
from avtd3.store.render.episode_view import (
    FRAMES_AT_ONCE,
    WORDS,
    Channel,
    Track,
    document_of,
    draw_episode,
    find_episode,
    frame_of,
    played_frames,
    tracks_of,
    write_episode_gif,
    write_episode_mp4,
    write_episode_sheet,
)
from avtd3.store.render.text import Terminal
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec(height=12, width=10)
LENGTHS = (30, 7, 150, 20)


def chosen(path, name, seed=0):
    return find_episode([path], name, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def episodes():
    made = [make_episode(SPEC, length, n, index=n + 10) for n, length in enumerate(LENGTHS)]
    for number, total in enumerate((5.0, -40.0, 12.0, 80.0)):
        made[number].terms[:] = 0.0
        made[number].terms[-1, 0] = total
        made[number].reward = made[number].terms.astype(np.float64).sum(axis=1).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp("episodes") / "data"
    write_dataset(path, SPEC, episodes[:2])
    write_dataset(path, SPEC, episodes[2:], collector="other")
    return Dataset.open(path)


@pytest.mark.parametrize(
    ("word", "number"), [("worst", 1), ("best", 3), ("longest", 2), ("shortest", 1)]
)
def test_words_name_the_extreme_episode(dataset, word, number):
    episode = chosen(dataset.path, word)
    assert episode.index == number + 10
    assert episode.length == LENGTHS[number]


def test_words_choose_among_the_episodes_that_a_filter_means(dataset):
    rng = np.random.default_rng(0)
    for texts, number in ((["end=time_limit"], 0), (["town=town-2"], 2), (["end=collision"], 1)):
        place = find_episode([dataset.path], "worst", rng, parse_filter(texts))
        assert place.index == number + 10
    with pytest.raises(NoSegmentsError, match="filter"):
        find_episode([dataset.path], "worst", rng, parse_filter(["end=goal"]))


def test_random_names_every_episode_at_last(dataset):
    names = {chosen(dataset.path, "random", seed).name for seed in range(60)}
    assert len(names) == len(LENGTHS)


def test_an_episode_is_found_by_its_own_name_by_a_part_of_it_and_by_its_plan(dataset):
    for word in WORDS:
        place = chosen(dataset.path, word)
        assert chosen(dataset.path, place.name).name == place.name
        part = place.segment.id.rsplit("-", 1)[1]
        assert chosen(dataset.path, f"{part}:{place.number}").name == place.name
    assert chosen(dataset.path, "12").name.endswith(":0")
    assert chosen(dataset.path, "13").length == LENGTHS[3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonsense", "worst, best"),
        (":3", "SEGMENT:NUMBER"),
        ("nowhere:0", "no segment has 'nowhere'"),
        ("-:0", "more than one segment"),
        ("99", "no episode has number 99"),
        ("-1", "SEGMENT:NUMBER"),
    ],
)
def test_names_that_fit_none_or_several_are_refused(dataset, name, words):
    with pytest.raises(ConfigError, match=words):
        chosen(dataset.path, name)


def test_a_number_behind_the_last_episode_is_refused(dataset):
    segment = dataset.segment_ids()[0]
    with pytest.raises(ConfigError, match="from 0 to 1, not 2"):
        chosen(dataset.path, f"{segment}:2")


def test_the_same_plan_twice_asks_which(tmp_path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, SPEC, [make_episode(SPEC, 3, index=5)], collector=name)
    with pytest.raises(ConfigError, match="more than one episode has number 5"):
        find_episode([tmp_path / "a", tmp_path / "b"], "5", np.random.default_rng(0))


def test_an_empty_dataset_says_so(tmp_path):
    Dataset.create(tmp_path / "data", SPEC)
    with pytest.raises(NoSegmentsError, match="no episode"):
        chosen(tmp_path / "data", "worst")


def test_words_skip_a_damaged_segment_and_its_name_does_not(tmp_path, episodes):
    dataset = write_dataset(tmp_path / "data", SPEC, episodes[:1])
    write_dataset(tmp_path / "data", SPEC, episodes[1:2], collector="other")
    worst = chosen(dataset.path, "worst")
    (file,) = worst.segment.path.glob("episode_return/c/*")
    file.write_bytes(bytes(file.stat().st_size))
    assert chosen(dataset.path, "worst").name != worst.name
    with pytest.raises(SegmentCorruptError):
        chosen(dataset.path, worst.name)


@pytest.mark.parametrize("number", range(len(LENGTHS)))
def test_an_episode_holds_what_was_written(dataset, episodes, number):
    episode = chosen(dataset.path, str(number + 10))
    want = episodes[number]
    channels = {c.name: c.values for track in tracks_of(episode) for c in track.channels}
    np.testing.assert_array_equal(channels["steer"], want.action[:, 0].astype(np.float64))
    np.testing.assert_array_equal(channels["reward"], want.reward.astype(np.float64))
    np.testing.assert_array_equal(channels["r0"], want.terms[:, 0].astype(np.float64))
    assert episode.attributes["town"] == want.info["town"]
    for every in (1, 3, FRAMES_AT_ONCE + 1):
        np.testing.assert_array_equal(
            np.stack([*played_frames(episode, every)]), want.frames[::every]
        )
    np.testing.assert_array_equal(frame_of(episode, want.length), want.frames[-1])
    json.dumps(document_of(episode), allow_nan=False)


def test_numbered_components_do_not_hide_the_others(tmp_path):
    spec = make_spec(vector=3)
    names = ("wheel_1", "speed_mps", "wheel_2")
    spec = type(spec).from_json(
        spec.to_json() | {"vector_names": names, "vector_scales": [1, 10, 1]}
    )
    episode = make_episode(spec, 4)
    write_dataset(tmp_path / "data", spec, [episode])
    first = tracks_of(chosen(tmp_path / "data", "best"))[0]
    assert first.title == "speed_mps"
    np.testing.assert_allclose(first.channels[0].values, episode.vector[:, 1] * 10.0)


def test_frames_are_read_a_few_at_a_time(dataset, monkeypatch):
    episode = chosen(dataset.path, "longest")
    read = episode.segment.read_frames
    sizes = []

    def note(start, stop, stream=None):
        sizes.append(stop - start)
        return read(start, stop, stream=stream)

    monkeypatch.setattr(episode.segment, "read_frames", note)
    assert len([*played_frames(episode)]) == 151
    assert max(sizes) <= FRAMES_AT_ONCE


def test_the_terminal_shows_facts_numbers_and_frames(dataset):
    text = draw_episode(chosen(dataset.path, "worst"), Terminal(width=100, unicode=False))
    assert text.isascii()
    for word in ("town town-1", "7 steps", "return -40.0", "ended by collision", "steer", "r0"):
        assert word in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert "0.4 s" in text.splitlines()[-1]


def test_a_strangers_strings_do_not_steer_the_terminal(tmp_path):
    episode = make_episode(SPEC, 3, town="\x1b[2Jtown\nΩ", driver="d\x07", weather="\x9b31m")
    write_dataset(tmp_path / "data", SPEC, [episode])
    episode = chosen(tmp_path / "data", "best")
    assert r"\x1b[2Jtown\nΩ" in draw_episode(episode, Terminal())
    plain = draw_episode(episode, Terminal(unicode=False))
    assert all(line.isprintable() and line.isascii() for line in plain.splitlines())


def test_endless_names_end(dataset, tmp_path, monkeypatch):
    episode = chosen(dataset.path, "worst")
    monkeypatch.setattr(type(episode), "facts", episode.facts | {"town": "t" * 100_000})
    assert len(draw_episode(episode, Terminal())) < 10_000
    write_episode_sheet(episode, tmp_path / "a.png")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")), getattr(picture, "n_frames", 1), picture.info


def test_an_episode_becomes_a_contact_sheet(dataset, tmp_path):
    write_episode_sheet(chosen(dataset.path, "longest"), tmp_path / "a.png")
    sheet, _, _ = pixels(tmp_path / "a.png")
    assert sheet.shape[1] > 1000
    assert sheet.std() > 1.0


def test_an_episode_becomes_a_gif_in_its_own_time(dataset, tmp_path):
    write_episode_gif(chosen(dataset.path, "11"), tmp_path / "a.gif")
    picture, frames, info = pixels(tmp_path / "a.gif")
    assert frames == 4
    assert info["duration"] == 100
    assert picture.shape[1] > picture.shape[0]


def test_an_episode_becomes_a_film_of_all_its_frames(dataset, tmp_path):
    av = pytest.importorskip("av")
    write_episode_mp4(chosen(dataset.path, "11"), tmp_path / "a.mp4")
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == 20
        assert sum(1 for _ in container.decode(video=0)) == LENGTHS[1] + 1


def test_an_episode_without_camera_shows_its_numbers(tmp_path):
    spec = make_spec(image=False, terms=0)
    write_dataset(tmp_path / "data", spec, [make_episode(spec, 5)])
    episode = chosen(tmp_path / "data", "best")
    episode.vectors[2:] = np.nan
    episode.actions[:] = np.nan
    assert "reward" in draw_episode(episode, Terminal())
    write_episode_sheet(episode, tmp_path / "a.png")
    write_episode_gif(episode, tmp_path / "a.gif")
    assert pixels(tmp_path / "a.gif")[1] == 3


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_episode_sheet, "a.gif"), (write_episode_gif, "a.png"), (write_episode_mp4, "a")],
)
def test_a_name_of_another_kind_of_file_is_refused(dataset, tmp_path, write, name):
    episode = chosen(dataset.path, "best")
    with pytest.raises(ConfigError, match="name it"):
        write(episode, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_plot_cuts_off_few_far_spikes_and_nothing_else():
    def shown(values):
        return Track(title="x", channels=(Channel(name="x", values=values),)).shown_range

    calm = np.linspace(-1.0, 1.0, 500)
    assert shown(calm) == (-1.0, 1.0)
    spiked = calm.copy()
    spiked[250] = -50.0
    low, high = shown(spiked)
    assert -2.0 < low < -1.0
    assert high == 1.0
    spiked[::4] = -50.0
    assert shown(spiked) == (-50.0, 1.0)
    assert shown(np.zeros(9)) == (-0.5, 0.5)
    assert shown(np.full(9, np.nan)) == (-0.5, 0.5)
