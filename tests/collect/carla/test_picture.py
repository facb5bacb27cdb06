import numpy as np
import pytest

from avtd3.collect.carla.car import colour, gray, semantic


def test_a_pixel_is_the_weighted_mean_of_a_square():
    square = np.array(
        [[[10, 20, 30, 255], [0, 0, 0, 255]], [[255, 255, 255, 0], [40, 80, 120, 9]]], np.uint8
    )
    luma = [0.114 * b + 0.587 * g + 0.299 * r for b, g, r, _ in square.reshape(4, 4).tolist()]
    found = gray(square, 2)
    assert found.tolist() == [[[round(sum(luma) / 4)]]]


@pytest.mark.parametrize("supersample", [1, 2, 3, 8])
def test_pictures_agree_with_a_slow_formula(supersample):
    height, width = 5, 7
    shape = (height, supersample, width, supersample, 4)
    bgra = np.random.default_rng(supersample).integers(0, 256, shape, np.uint8)
    luma = bgra[..., :3].astype(np.float64) @ np.array([0.114, 0.587, 0.299])
    expected = np.floor(luma.mean(axis=(1, 3)) + 0.5)
    found = gray(bgra.reshape(height * supersample, width * supersample, 4), supersample)
    assert found.dtype == np.uint8
    assert found.shape == (1, height, width)
    # In single precision, a value near a half may be rounded up or down.
    assert (
        np.abs(found[0] - expected).max() <= (np.abs(luma.mean(axis=(1, 3)) % 1 - 0.5) < 1e-3).max()
    )


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_gray_stays_what_it_is(level):
    assert (gray(np.full((4, 4, 4), level, np.uint8), 2) == level).all()


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_colour_is_red_green_and_blue(supersample):
    shape = (5, supersample, 7, supersample, 4)
    bgra = np.random.default_rng(supersample).integers(0, 256, shape, np.uint8)
    planes = colour(bgra.reshape(5 * supersample, 7 * supersample, 4), supersample)
    means = bgra.astype(np.float64).mean(axis=(1, 3))
    for plane, channel in zip(planes, (2, 1, 0), strict=True):
        assert np.abs(plane - means[..., channel]).max() <= 0.501


def test_masks_are_the_shares_of_the_tags():
    tags = np.array([[1, 24], [24, 11]], np.uint8)  # road, lines, sky
    bgra = np.zeros((2, 2, 4), np.uint8)
    bgra[..., 2] = tags
    assert semantic(bgra, 2)[:, 0, 0].tolist() == [64, 128, 0, 64, 0]
    single = semantic(bgra, 1)
    assert single[0].tolist() == [[255, 0], [0, 0]]
    assert single[1].tolist() == [[0, 255], [255, 0]]
    other = np.full((2, 2, 4), 3, np.uint8)  # a building
    assert not semantic(other, 1).any()
