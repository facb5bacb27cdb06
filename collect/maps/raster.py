"""`Raster`: a road network painted as pixels, in tiles, for the camera and for the wheels.

A fine layer near the car and a coarse one far away hold a ground class and a texture level per
pixel; a third layer holds the direction of the lane.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork, Strip
from avtd3.collect.maps.opendrive import DRIVING
from avtd3.store.errors import RoadError

VERGE, EDGE, SHOULDER, ASPHALT, GAP, PAINT_1, PAINT_2, PAINT_3, PAINT = range(9)
"""Ground classes. `GAP` is bare asphalt between the dashes of a line. `PAINT_1` to `PAINT` are
asphalt of which one to four quarters are painted."""
TILE = 128  # fine pixels along the side of a tile
COARSE = 4  # fine pixels along the side of a coarse pixel
TEXTURES = 16  # texture levels, the lower four bits of a ground code
MAX_PIXELS, MAX_TILES = 100_000_000, 10_000_000
"""Largest paved area in fine pixels, and largest area of a whole network in tiles."""
MAX_WIDTH_M = 50.0  # of a lane
DIRECTIONS = 252  # steps of a full turn in which lane directions are stored
NO_LANE, ANY_DIRECTION = 0, 255
_SHOULDER_M, _EDGE_M = 0.5, 0.2
_LINE_M, _LINE_APART_M = 0.15, 0.2
_DASH_M, _DASH_PERIOD_M = 3.0, 9.0
_BARE = ("none", "grass", "curb")
_DEFAULTS = 4  # the verge repeats after this many tiles in each direction
_PAD_M = 16.0
# A rotated square lattice covers every pixel if its spacing is below a pixel / sqrt(2).
_SPACING_PX = 0.7
_LINE_SPACING_PX = 0.5
_SEED = 20200513  # any constant: the texture is the same in all episodes
_LAYERS_PX = ((0.7, 4.0), (0.3, 14.0))
"""Share of each layer of patches, and the smallest period of its waves in pixels."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """A painted network. All arrays are read-only; see `paint`."""

    pixel_m: float
    left_m: float
    top_m: float
    """x and y of the corner of the table."""
    table: NDArray[np.int32]
    """int32 (rows, columns), the slot of each tile; rows run along y, columns along x."""
    fine: NDArray[np.uint8]
    """uint8 (slots, TILE, TILE), class << 4 | texture."""
    coarse: NDArray[np.uint8]
    """uint8 (slots, TILE / COARSE, TILE / COARSE), class << 4 | texture."""
    direction: NDArray[np.uint8]
    """uint8, the shape of `coarse`: 1 + yaw in steps of a turn / `DIRECTIONS`, `NO_LANE`, or
    `ANY_DIRECTION` in junctions."""

    @classmethod
    def paint(cls, network: RoadNetwork, pixel_m: float) -> "Raster":
        """Paint all lanes of a network, and its other paved surface."""
        return _Painter(network, pixel_m).finish()

    def slots(self, row: int, column: int, size: int) -> NDArray[np.int32]:
        """Return slots int32 (size, size) of a square of tiles; outside, the border repeats."""
        rows = np.clip(np.arange(row, row + size), 0, self.table.shape[0] - 1)
        columns = np.clip(np.arange(column, column + size), 0, self.table.shape[1] - 1)
        found: NDArray[np.int32] = self.table[rows[:, None], columns]
        return found

    def ground_at(self, x_m: float, y_m: float) -> int:
        """Return the ground class at a position."""
        return self._pixel(self.fine, x_m, y_m, self.pixel_m) >> 4

    def direction_at(self, x_m: float, y_m: float) -> float | None:
        """Return the yaw of the lane at a position; None off the lanes and in junctions."""
        code = self._pixel(self.direction, x_m, y_m, self.pixel_m * COARSE)
        if code in (NO_LANE, ANY_DIRECTION):
            return None
        return (code - 1) * math.tau / DIRECTIONS

    def _pixel(self, layer: NDArray[np.uint8], x_m: float, y_m: float, size_m: float) -> int:
        side = layer.shape[1]
        tile_row, row = divmod(int((y_m - self.top_m) // size_m), side)
        tile_column, column = divmod(int((x_m - self.left_m) // size_m), side)
        table = self.table
        rows, columns = table.shape
        if not 0 <= tile_row < rows:
            tile_row = 0 if tile_row < 0 else rows - 1
        if not 0 <= tile_column < columns:
            tile_column = 0 if tile_column < 0 else columns - 1
        return layer.item(table.item(tile_row, tile_column), row, column)


class Band(NamedTuple):
    """A band along a strip; its borders are in metres to the right of the centre line."""

    along: Strip
    left_m: NDArray[np.float64]
    right_m: NDArray[np.float64]


class _Painter:
    """The layers of a raster while they are painted, from the bottom up."""

    def __init__(self, network: RoadNetwork, pixel_m: float) -> None:
        self.lanes, self.pixel_m = network.lanes, pixel_m
        self.strips: tuple[Strip, ...] = (*network.lanes, *network.paved)
        corner, count = measure_tiles(network, pixel_m)
        columns, rows = count.astype(np.int64).tolist()
        self.left_m, self.top_m = (corner * (TILE * pixel_m)).tolist()
        self.table = self._allocate(rows, columns)
        slots = int(self.table.max()) + 1
        self.fine = np.zeros((slots, TILE, TILE), np.uint8)
        side = TILE // COARSE
        self.direction = np.zeros((slots, side, side), np.uint8)

    def _allocate(self, rows: int, columns: int) -> NDArray[np.int32]:
        """Give a slot of its own to each tile that a strip may touch."""
        tile_m = TILE * self.pixel_m
        used = np.zeros((rows, columns), np.bool_)
        for strip in self.strips:
            reach_m = _reach_m(float(strip.width_m.max()))
            shifts = np.linspace(-reach_m, reach_m, 2 * math.ceil(reach_m / tile_m) + 1)
            for dx, dy in itertools.product(shifts, shifts):
                at = (strip.points + np.array((dx - self.left_m, dy - self.top_m))) // tile_m
                column, row = at.astype(np.int64).T
                used[row, column] = True
        y, x = np.indices((rows, columns)) % _DEFAULTS
        table = (y * _DEFAULTS + x).astype(np.int32)
        table[used] = _DEFAULTS**2 + np.arange(int(used.sum()))
        return table

    def finish(self) -> Raster:
        beside, outer = self._beside(), _SHOULDER_M + _EDGE_M
        for ground, begin, end in ((EDGE, _SHOULDER_M, outer), (SHOULDER, 0.0, _SHOULDER_M)):
            for strip, has_left, has_right in beside:
                w = strip.width_m / 2
                if not has_left:
                    self._fill(Band(strip, -w - end, -w - begin), ground << 4)
                if not has_right:
                    self._fill(Band(strip, w + begin, w + end), ground << 4)
        # Lanes are painted last: they cover other pavement.
        for strip in reversed(self.strips):
            ground = ASPHALT if strip.kind == DRIVING else SHOULDER
            self._fill(Band(strip, -strip.width_m / 2, strip.width_m / 2), ground << 4)
        for band, dashed in _painted_lines(self.lanes):
            self._draw_line(band, dashed)
        self._paint_directions()
        coarse = _coarsen(self.fine)
        _add_texture(self.fine, self.table)
        _add_texture(coarse, self.table)
        layers = (self.table, self.fine, coarse, self.direction)
        for layer in layers:
            layer.flags.writeable = False
        return Raster(self.pixel_m, self.left_m, self.top_m, *layers)

    def _beside(self) -> list[tuple[Strip, bool, bool]]:
        """Return for each strip whether a lane borders it on the left and on the right.

        Lane ids decrease from left to right along the road; the axis takes the place of lane 0.
        """
        keys = {(lane.road_id, lane.section_id, lane.lane_id) for lane in self.lanes}
        beside: list[tuple[Strip, bool, bool]] = []
        for strip in self.strips:
            if not isinstance(strip, Lane):
                beside.append((strip, False, False))
                continue
            outward = 1 if strip.lane_id > 0 else -1
            inner = strip.lane_id - outward or -outward
            road = (strip.road_id, strip.section_id)
            beside.append((strip, (*road, inner) in keys, (*road, strip.lane_id + outward) in keys))
        return beside

    def _fill(self, band: Band, code: int) -> None:
        index, _ = self._covered(band, self.pixel_m, TILE, _SPACING_PX)
        self.fine.reshape(-1)[index.reshape(-1)] = code

    def _draw_line(self, band: Band, dashed: bool) -> None:
        index, distance = self._covered(band, self.pixel_m, TILE, _LINE_SPACING_PX)
        code = np.full(index.shape, PAINT << 4, np.uint8)
        if dashed:
            code[distance % _DASH_PERIOD_M >= _DASH_M] = GAP << 4
        self.fine.reshape(-1)[index] = code

    def _paint_directions(self) -> None:
        size_m, side = self.pixel_m * COARSE, TILE // COARSE
        # Lanes outside junctions are painted last: where they overlap, their direction counts.
        for lane in sorted(self.lanes, key=lambda lane: not lane.is_junction):
            w = lane.width_m / 2
            index, distance = self._covered(Band(lane, -w, w), size_m, side, _SPACING_PX)
            code = np.full(index.shape, ANY_DIRECTION, np.uint8)
            if not lane.is_junction:
                yaw = np.interp(distance, lane.distance_m, lane.yaw_rad)
                turn = np.round(yaw * (DIRECTIONS / math.tau)).astype(np.int64) % DIRECTIONS
                code[:] = (turn + 1)[:, None]
            self.direction.reshape(-1)[index] = code

    def _covered(
        self, band: Band, size_m: float, side: int, spacing_px: float
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return flat indices (along, across) of pixels under a band, and distances along it."""
        strip = band.along
        reach_m = max(float(np.abs(band.left_m).max()), float(np.abs(band.right_m).max()))
        # The outer border of a curve is longer than the centre line.
        bend = np.abs(np.diff(strip.yaw_rad)) / np.maximum(np.diff(strip.distance_m), 1e-6)
        stretch = min(1.0 + reach_m * float(bend.max(initial=0.0)), 2.0)
        spacing_m, length = size_m * spacing_px, float(strip.distance_m[-1])
        at = np.linspace(0.0, length, math.ceil(length * stretch / spacing_m) + 1)
        widest = float((band.right_m - band.left_m).max())
        share = np.linspace(0.0, 1.0, math.ceil(widest / spacing_m) + 1, dtype=np.float32)
        x, y, yaw, left, right = _sample_band(band, at)
        # In pixels: a line across the strip, from its left end by shares of its whole width.
        across_x, across_y = np.sin(yaw) / -size_m, np.cos(yaw) / size_m
        wide = right - left
        ends = np.empty((2, len(at), 2), np.float32)
        ends[0, :, 0] = (x - self.left_m) / size_m + left * across_x
        ends[1, :, 0] = (y - self.top_m) / size_m + left * across_y
        ends[0, :, 1], ends[1, :, 1] = wide * across_x, wide * across_y
        column, row = (ends @ np.stack([np.ones_like(share), share])).astype(np.int32)
        return self._index(row, column, side), at

    def _index(
        self, row: NDArray[np.int32], column: NDArray[np.int32], side: int
    ) -> NDArray[np.intp]:
        """Return flat indices of pixels by row and column, in a layer with such tiles."""
        bits = side.bit_length() - 1
        tile = row >> bits
        tile *= self.table.shape[1]
        tile += column >> bits
        # `clip` only avoids a bounds check: strips are inside the table.
        flat: NDArray[np.intp] = self.table.reshape(-1).take(tile, mode="clip").astype(np.intp)
        flat <<= 2 * bits
        row &= side - 1
        row <<= bits
        column &= side - 1
        row += column
        flat += row
        return flat


def measure_tiles(
    network: RoadNetwork, pixel_m: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first column and row of the tiles, and their numbers; raise if too large."""
    strips, tile_m = (*network.lanes, *network.paved), TILE * pixel_m
    points = np.concatenate([strip.points for strip in strips])
    widest_m = max(float(strip.width_m.max()) for strip in strips)
    if widest_m > MAX_WIDTH_M:
        raise RoadError(
            f"road {network.name} has a lane that is {widest_m:.0f} m wide, expected at most "
            f"{MAX_WIDTH_M:g} m; check the lane widths"
        )
    pad_m = max(_PAD_M, _reach_m(widest_m))
    corner = np.floor((points.min(axis=0) - pad_m) / tile_m) - 1.0
    count = np.ceil((points.max(axis=0) + pad_m) / tile_m) + 1.0 - corner
    area_m2 = sum(strip.length_m * float(strip.width_m.max()) for strip in strips)
    if count.prod() > MAX_TILES or area_m2 / pixel_m**2 > MAX_PIXELS:
        x_km, y_km = (count * tile_m / 1000.0).tolist()
        found = f"{area_m2 / 1e6:.1f} km2 of lanes in {x_km:.0f} by {y_km:.0f} km"
        most = f"{MAX_PIXELS * pixel_m**2 / 1e6:g} km2 in {MAX_TILES * tile_m**2 / 1e6:.0f} km2"
        raise RoadError(f"road {network.name} has {found}, expected at most {most}; split it")
    return corner, count


def _reach_m(width_m: float) -> float:
    """Return how far from the centre line of a strip something is painted."""
    return width_m / 2 + _SHOULDER_M + _EDGE_M + 1.0


def _painted_lines(lanes: Sequence[Lane]) -> Iterator[tuple[Band, bool]]:
    """Yield each painted line once, though it belongs to two lanes, and whether it is dashed."""
    drawn: set[tuple[int, int, int]] = set()
    for lane in lanes:
        inner = lane.lane_id - (1 if lane.lane_id > 0 else -1)
        left, right = (inner, lane.left_marking, -1.0), (lane.lane_id, lane.right_marking, 1.0)
        for boundary, kind, side in (left, right):
            key = (lane.road_id, lane.section_id, boundary)
            if key in drawn or kind in _BARE:
                continue
            drawn.add(key)
            middle, lines = side * lane.width_m / 2, kind.split("_")  # the inner line first
            shifts = (0.0,) if len(lines) == 1 else (-_LINE_APART_M, _LINE_APART_M)
            for shift, name in zip(shifts, lines, strict=False):
                at = middle + side * shift
                yield Band(lane, at - _LINE_M / 2, at + _LINE_M / 2), name == "broken"


def _sample_band(band: Band, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x, y, yaw, left and right border of a band at distances along it, float64 (5, n)."""
    strip = band.along
    knots = np.stack([*strip.points.T, strip.yaw_rad, band.left_m, band.right_m])
    # One search for all five; np.interp would search once for each.
    last = len(strip.distance_m) - 1
    place = np.interp(at, strip.distance_m, np.arange(last + 1.0))
    whole = np.minimum(place.astype(np.intp), last - 1)
    found: NDArray[np.float64] = np.diff(knots).take(whole, axis=1, mode="clip")
    found *= place - whole
    found += knots.take(whole, axis=1, mode="clip")
    return found


def _coarsen(fine: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the classes of the coarse layer, << 4, from a fine layer without texture."""
    side = TILE // COARSE
    # Four pixels of a row are one word; a product adds its bytes in the highest byte.
    words = (fine == PAINT << 4).view(np.uint32) * np.uint32(0x01010101) >> np.uint32(24)
    rows = words.astype(np.uint8).reshape(-1, side, COARSE, side)
    painted = rows[:, :, 0] + rows[:, :, 1] + rows[:, :, 2] + rows[:, :, 3]  # of 16
    plain = fine[:, 1::COARSE, 1::COARSE].copy()
    plain[plain >= GAP << 4] = ASPHALT << 4
    quarters = (painted + 3) >> 2
    return np.where(painted > 0, (quarters + GAP) << 4, plain).astype(np.uint8)


def _add_texture(layer: NDArray[np.uint8], table: NDArray[np.int32]) -> None:
    """Set the texture bits of a layer by position; they repeat after `_DEFAULTS` tiles (51 m)."""
    side = layer.shape[1]
    every = TILE // side
    texture = _ground_texture(_DEFAULTS * TILE)[every // 2 :: every, every // 2 :: every]
    tiles = texture.reshape(_DEFAULTS, side, _DEFAULTS, side).swapaxes(1, 2)
    # A verge tile is used in many places with the same texture: the last one counts.
    kind = np.zeros(len(layer), np.intp)
    rows, columns = np.indices(table.shape) % _DEFAULTS
    kind[table.reshape(-1)] = (rows * _DEFAULTS + columns).reshape(-1)
    layer |= tiles.reshape(-1, side, side)[kind]


@functools.cache
def _ground_texture(size: int) -> NDArray[np.uint8]:
    """Return levels uint8 (size, size): equally frequent, smooth to compress well, no seams."""
    rng = np.random.default_rng(_SEED)
    wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))  # cycles per pixel
    field = np.zeros((size, size))
    for share, period in _LAYERS_PX:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        layer = np.fft.irfft2(white * np.exp(-((wave * period) ** 2)), s=(size, size))
        field += share * layer / layer.std()
    # The limits are quantiles of a part of the field, so that all levels are equally frequent.
    part = np.sort(field[::4, ::4], axis=None)
    limits = part[len(part) * np.arange(1, TEXTURES) // TEXTURES]
    texture = np.searchsorted(limits, field).astype(np.uint8)
    texture.flags.writeable = False
    return texture
