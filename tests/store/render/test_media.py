"""Pictures, contact sheets, GIFs and MP4s: each pixel and each picture is at its place."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from avtd3.store.errors import MissingPackageError, StorageError, install_command
from avtd3.store.render.media import (
    filmstrip,
    frame_image,
    scaled_image,
    sheet_width,
    write_contact_sheet,
    write_gif,
    write_mp4,
)


def grey(level, size=(24, 16)):
    return Image.new("RGB", size, (level, level, level))


@pytest.mark.parametrize(
    ("planes", "shown"),
    [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (4, (0, 1, 2))],
)
def test_a_frame_of_any_planes_becomes_a_colour_picture(planes, shown):
    frame = np.random.default_rng(0).integers(0, 256, (planes, 5, 7), dtype=np.uint8)
    picture = np.asarray(frame_image(frame))
    assert picture.shape == (5, 7, 3)
    for colour, plane in enumerate(shown):
        np.testing.assert_array_equal(picture[:, :, colour], frame[plane])


def test_frames_are_scaled_to_a_side_and_keep_their_shape():
    frame = np.zeros((1, 3, 6), np.uint8)
    frame[0, 0, 0] = 255
    picture = scaled_image(frame, 12)
    assert picture.size == (12, 6)
    assert np.asarray(picture)[:3, :3, 0].tolist() == [[255, 255, 0], [255, 255, 0], [0, 0, 0]]
    assert scaled_image(np.zeros((3, 50, 100), np.uint8), 10).size == (10, 5)


def test_a_filmstrip_holds_small_jpegs():
    uris, size = filmstrip(np.zeros((2, 3, 300, 500), np.uint8), 168)
    assert size == (168, 101)
    assert len(uris) == 2
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris)
    assert filmstrip(np.zeros((1, 1, 8, 9), np.uint8), 168)[1] == (9, 8)


def test_a_contact_sheet_holds_each_picture_at_its_place(tmp_path):
    path = tmp_path / "sheet.png"
    below = grey(77, (50, 9))
    write_contact_sheet(
        [grey(level) for level in (50, 100, 150)],
        ["a", "b", "c"],
        path,
        columns=2,
        below=below,
        title="three",
    )
    with Image.open(path) as sheet:
        assert sheet.width == sheet_width(24, 2)
        pixels = np.asarray(sheet)[:, :, 0]
    for level, count in ((50, 24 * 16), (100, 24 * 16), (150, 24 * 16), (77, 50 * 9)):
        assert (pixels == level).sum() >= count
    assert np.argmax((pixels == 50).any(axis=1)) < np.argmax((pixels == 150).any(axis=1))
    assert np.argmax((pixels == 50).any(axis=0)) < np.argmax((pixels == 100).any(axis=0))


def test_captions_of_two_lines_have_their_inks_and_a_legend_is_above_the_pictures(tmp_path):
    path = tmp_path / "sheet.png"
    legend = (((255, 0, 0), "red"), ((0, 0, 255), "blue"))
    pictures = [grey(50, (60, 16)), grey(100, (60, 16))]
    inks = [(0, 255, 0), (255, 255, 0)]
    write_contact_sheet(pictures, ["a\nEEE", "b\nEEE"], path, inks=inks, legend=legend)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)

    def place(colour):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        return rows.mean(), columns.mean()

    first, second = (place((level,) * 3) for level in (50, 100))
    assert place((255, 0, 0))[0] < first[0]
    assert place((255, 0, 0))[1] < place((0, 0, 255))[1]
    assert abs(place(inks[0])[1] - first[1]) < 30 < abs(place(inks[1])[1] - first[1])
    assert place(inks[1])[0] > second[0] + 16


def test_rare_colours_of_an_animation_stay_exact(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.putpixel((3, 3), (96, 220, 140))
    for colours in ((), [(96, 220, 140)]):
        write_gif([noise], tmp_path / "a.gif", period_s=0.1, colours=colours)
        with Image.open(tmp_path / "a.gif") as picture:
            shown = picture.convert("RGB").getpixel((3, 3))
        assert (shown == (96, 220, 140)) == bool(colours)


def test_an_animation_plays_every_picture_for_its_time(tmp_path):
    path = tmp_path / "a.gif"
    write_gif((grey(level) for level in [*range(0, 250, 10)] * 2), path, period_s=0.1)
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 50
        assert picture.info["duration"] == 100
        assert picture.info["loop"] == 0
        for number in (0, 25, 49):
            picture.seek(number)
            level = np.asarray(picture.convert("RGB"))[3, 3, 0]
            assert abs(int(level) - 10 * (number % 25)) < 10


def test_a_film_plays_every_picture_at_its_rate(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    write_mp4((grey(5 * number, (64, 48)) for number in range(40)), path, period_s=0.05)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 20
        levels = [frame.to_ndarray(format="gray").mean() for frame in container.decode(stream)]
    assert len(levels) == 40
    assert np.all(np.diff(levels) > 0)


def test_a_film_without_pyav_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=re.escape(install_command("video"))):
        write_mp4([grey(0)], tmp_path / "a.mp4", period_s=0.05)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write_gif([grey(0)], tmp_path / "missing" / "a.gif", period_s=0.1)
