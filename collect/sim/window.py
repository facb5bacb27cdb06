"""`GroundWindow`: the piece of a raster around the car, contiguous, for the camera to gather from.

A camera ray needs one gather from the window instead of one for its tile and one for its pixel.
The window moves by whole tiles once the car nears its border: 0.3 ms every 15 m or so.
"""

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.raster import COARSE, TILE, Raster

_FINE_TILES = 8
_COARSE_TILES = 16
# How far the car may be from the window's centre, in tiles, before the window follows.
_SLACK_TILES = 1.5


class GroundWindow:
    """Fine pixels around the car and coarse ones farther out, in one array of equal rows.

    The fine square lies in rows 0 to 1023; the coarse one, half as wide, in the left half of
    the rows below. A position x in metres has the fine column ``(x - fine_m[0]) / pixel_m``,
    rows likewise from ``fine_m[1]``; coarse ones from `coarse_m`.
    """

    stride = _FINE_TILES * TILE
    """Pixels per row of `codes`."""
    coarse_row = _FINE_TILES * TILE
    """Row of `codes` where the coarse square begins."""

    def __init__(self) -> None:
        side = TILE // COARSE
        rows = self.coarse_row + _COARSE_TILES * side
        self.codes: NDArray[np.uint8] = np.zeros((rows, self.stride), np.uint8)
        self.flat = self.codes.reshape(-1)
        fine, coarse = self.codes[: self.coarse_row], self.codes[self.coarse_row :]
        self._fine = fine.reshape(_FINE_TILES, TILE, _FINE_TILES, TILE)
        self._coarse = coarse[:, : _COARSE_TILES * side].reshape(
            _COARSE_TILES, side, _COARSE_TILES, side
        )
        self.fine_m = self.coarse_m = (0.0, 0.0)
        self._raster: Raster | None = None
        self._centre_m = (0.0, 0.0)

    @staticmethod
    def reach_m(pixel_m: float) -> tuple[float, float]:
        """Distance from the car that is always inside the fine and the coarse square."""
        tile_m = TILE * pixel_m
        return (
            (_FINE_TILES / 2 - _SLACK_TILES) * tile_m,
            (_COARSE_TILES / 2 - _SLACK_TILES) * tile_m,
        )

    def show(self, raster: Raster) -> None:
        """Look at another raster from now on."""
        self._raster = raster
        self._centre_m = (float("inf"), float("inf"))

    def follow(self, x_m: float, y_m: float) -> None:
        """Move with the car; does nothing while it is near enough to the centre."""
        raster = self._raster
        assert raster is not None, "show a raster before following the car"
        tile_m = TILE * raster.pixel_m
        slack = _SLACK_TILES * tile_m
        if abs(x_m - self._centre_m[0]) <= slack and abs(y_m - self._centre_m[1]) <= slack:
            return
        column = round((x_m - raster.left_m) / tile_m)
        row = round((y_m - raster.top_m) / tile_m)
        self._centre_m = (raster.left_m + column * tile_m, raster.top_m + row * tile_m)
        half, reach = _FINE_TILES // 2, _COARSE_TILES // 2
        slots = raster.slots(row - reach, column - reach, _COARSE_TILES)
        near = slots[reach - half : reach + half, reach - half : reach + half]
        self._fine[:] = raster.fine[near].swapaxes(1, 2)
        self._coarse[:] = raster.coarse[slots].swapaxes(1, 2)
        centre_x, centre_y = self._centre_m
        self.fine_m = (centre_x - half * tile_m, centre_y - half * tile_m)
        self.coarse_m = (centre_x - reach * tile_m, centre_y - reach * tile_m)
