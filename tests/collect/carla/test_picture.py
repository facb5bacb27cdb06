import numpy as np
import pytest

from avtd3.collect.carla.car import Grayscale


def test_a_pixel_is_the_weighted_mean_of_a_square():
    square = np.array(
        [[[10, 20, 30, 255], [0, 0, 0, 255]], [[255, 255, 255, 0], [40, 80, 120, 9]]], np.uint8
    )
    luma = [0.114 * b + 0.587 * g + 0.299 * r for b, g, r, _ in square.reshape(4, 4).tolist()]
    found = Grayscale(1, 1, 2)(square.reshape(-1))
    assert found.tolist() == [[[round(sum(luma) / 4)]]]


@pytest.mark.parametrize("supersample", [1, 2, 3, 8])
def test_pictures_agree_with_a_slow_formula(supersample):
    height, width = 5, 7
    shape = (height, supersample, width, supersample, 4)
    bgra = np.random.default_rng(supersample).integers(0, 256, shape, np.uint8)
    luma = bgra[..., :3].astype(np.float64) @ np.array([0.114, 0.587, 0.299])
    expected = np.floor(luma.mean(axis=(1, 3)) + 0.5)
    gray = Grayscale(height, width, supersample)
    assert gray.size_bytes == bgra.nbytes
    found = gray(bgra.reshape(-1))
    assert found.dtype == np.uint8
    assert found.shape == (1, height, width)
    # In single precision, a value near a half may be rounded up or down.
    assert (
        np.abs(found[0] - expected).max() <= (np.abs(luma.mean(axis=(1, 3)) % 1 - 0.5) < 1e-3).max()
    )


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_gray_stays_what_it_is(level):
    bgra = np.full(4 * 4 * 4, level, np.uint8)
    assert (Grayscale(2, 2, 2)(bgra) == level).all()
