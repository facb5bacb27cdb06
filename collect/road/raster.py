"""`Raster`: a road network painted on tiles of pixels, once, for cameras and wheels to look up.

A pixel is one byte: the class of the ground in the upper four bits, a texture level in the lower
four, so that one table of 256 brightnesses turns ground into picture under any light. Tiles
without road share a few default tiles of verge, which keeps 2 km of road below 10 MB. Three
layers: `fine` pixels, `coarse` pixels (4 x 4 fine ones, with the share of paint in the class, so
that far lines fade instead of flickering) and, at the coarse size, the direction of the lane.

Strips along the lanes are painted by sampling them more densely than the pixels lie: 0.1 s for
2 km of road in plain numpy.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.road.lines import Band, painted_lines
from avtd3.collect.road.network import Lane, RoadNetwork, Strip
from avtd3.collect.road.texture import ground_texture

VERGE, EDGE, SHOULDER, ASPHALT, GAP, PAINT_1, PAINT_2, PAINT_3, PAINT = range(9)
"""Ground classes. `GAP` is bare asphalt between the dashes of a line; `PAINT_1` to `PAINT` are
asphalt of which a quarter to all is painted."""
TILE = 128
"""Fine pixels along a tile's side."""
COARSE = 4
"""Fine pixels along a coarse pixel's side."""
DIRECTIONS = 252
"""Lane directions are told apart in this many steps of a full turn; 0 means no lane."""
NO_LANE, ANY_DIRECTION = 0, 255

_SHOULDER_M = 0.5
_EDGE_M = 0.2
_DASH_M = 3.0
_DASH_PERIOD_M = 9.0
_DEFAULTS = 4  # verge repeats after this many tiles in each direction
_PAD_M = 16.0
# A turned square lattice leaves no pixel out if its spacing is below a pixel / sqrt(2).
_SPACING_PX = 0.7
_LINE_SPACING_PX = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raster:
    """A painted network; see the module for the layers. All arrays are read-only."""

    pixel_m: float
    """Side of a fine pixel in metres."""
    left_m: float
    """x of the table's corner."""
    top_m: float
    """y of the table's corner."""
    table: NDArray[np.int32]
    """int32 (rows, columns), the slot of each tile; rows run along y, columns along x."""
    fine: NDArray[np.uint8]
    """uint8 (slots, TILE, TILE), class << 4 | texture."""
    coarse: NDArray[np.uint8]
    """uint8 (slots, TILE / COARSE, TILE / COARSE), class << 4 | texture."""
    direction: NDArray[np.uint8]
    """uint8, shaped as `coarse`: 1 + yaw in steps of a turn / `DIRECTIONS`, or one of `NO_LANE`
    and `ANY_DIRECTION` (junctions)."""

    @classmethod
    def paint(cls, network: RoadNetwork, pixel_m: float) -> "Raster":
        """Paint all lanes of a network, and what else is paved.

        Args:
            network: The lanes to paint.
            pixel_m: Side of a fine pixel in metres.
        """
        return _Painter(network, pixel_m).finish()

    @property
    def size_bytes(self) -> int:
        """Memory of all layers."""
        layers = (self.table, self.fine, self.coarse, self.direction)
        return sum(layer.nbytes for layer in layers)

    def slots(self, row: int, column: int, size: int) -> NDArray[np.int32]:
        """Slots int32 (size, size) of a square of tiles; beyond the table the border repeats."""
        rows = np.clip(np.arange(row, row + size), 0, self.table.shape[0] - 1)
        columns = np.clip(np.arange(column, column + size), 0, self.table.shape[1] - 1)
        found: NDArray[np.int32] = self.table[rows[:, None], columns]
        return found

    def ground_at(self, x_m: float, y_m: float) -> int:
        """Class of the ground at a position."""
        return self._pixel(self.fine, x_m, y_m, self.pixel_m) >> 4

    def direction_at(self, x_m: float, y_m: float) -> float | None:
        """Yaw of the lane at a position; None off the lanes and in junctions."""
        code = self._pixel(self.direction, x_m, y_m, self.pixel_m * COARSE)
        if code in (NO_LANE, ANY_DIRECTION):
            return None
        return (code - 1) * math.tau / DIRECTIONS

    def _pixel(self, layer: NDArray[np.uint8], x_m: float, y_m: float, size_m: float) -> int:
        side = layer.shape[1]
        row, column = int((y_m - self.top_m) // size_m), int((x_m - self.left_m) // size_m)
        rows, columns = self.table.shape
        slot = self.table.item(
            min(max(row // side, 0), rows - 1), min(max(column // side, 0), columns - 1)
        )
        return layer.item(slot, row % side, column % side)


class _Painter:
    """The layers while they are being painted, last paint on top."""

    def __init__(self, network: RoadNetwork, pixel_m: float) -> None:
        self.lanes, self.pixel_m = network.lanes, pixel_m
        self.strips: tuple[Strip, ...] = (*network.lanes, *network.paved)
        tile_m = TILE * pixel_m
        points = np.concatenate([strip.points for strip in self.strips])
        corner = np.floor((points.min(axis=0) - _PAD_M) / tile_m) - 1.0
        count = np.ceil((points.max(axis=0) + _PAD_M) / tile_m) + 1.0 - corner
        columns, rows = count.astype(np.int64).tolist()
        self.left_m, self.top_m = (corner * tile_m).tolist()
        self.table = self._allocate(rows, columns)
        slots = int(self.table.max()) + 1
        self.fine = np.zeros((slots, TILE, TILE), np.uint8)
        side = TILE // COARSE
        self.direction = np.zeros((slots, side, side), np.uint8)

    def _allocate(self, rows: int, columns: int) -> NDArray[np.int32]:
        """Give each tile that a strip may touch a slot of its own."""
        tile_m = TILE * self.pixel_m
        used = np.zeros((rows, columns), np.bool_)
        for strip in self.strips:
            reach = float(strip.width_m.max()) / 2 + _SHOULDER_M + _EDGE_M + 1.0
            for dx in (-reach, 0.0, reach):
                for dy in (-reach, 0.0, reach):
                    at = (strip.points + np.array((dx - self.left_m, dy - self.top_m))) // tile_m
                    column, row = at.astype(np.int64).T
                    used[row, column] = True
        y, x = np.indices((rows, columns)) % _DEFAULTS
        table = (y * _DEFAULTS + x).astype(np.int32)
        table[used] = _DEFAULTS**2 + np.arange(int(used.sum()))
        return table

    def finish(self) -> Raster:
        for ground, beyond in ((EDGE, _SHOULDER_M + _EDGE_M), (SHOULDER, _SHOULDER_M)):
            for strip in self.strips:
                w = strip.width_m / 2
                self._fill(Band(strip, -w - beyond, -w), ground << 4)
                self._fill(Band(strip, w, w + beyond), ground << 4)
        # Lanes come last: where they meet other pavement, they lie on top.
        for strip in reversed(self.strips):
            ground = ASPHALT if isinstance(strip, Lane) else SHOULDER
            self._fill(Band(strip, -strip.width_m / 2, strip.width_m / 2), ground << 4)
        for band, dashed in painted_lines(self.lanes):
            self._draw_line(band, dashed)
        self._paint_directions()
        coarse = _coarsen(self.fine)
        _add_texture(self.fine, self.table)
        _add_texture(coarse, self.table)
        for layer in (self.table, self.fine, coarse, self.direction):
            layer.flags.writeable = False
        return Raster(
            pixel_m=self.pixel_m,
            left_m=self.left_m,
            top_m=self.top_m,
            table=self.table,
            fine=self.fine,
            coarse=coarse,
            direction=self.direction,
        )

    def _fill(self, band: Band, code: int) -> None:
        x, y, _ = self._samples(band, self.pixel_m * _SPACING_PX)
        self.fine.reshape(-1)[self._index(x, y, self.pixel_m, TILE)] = code

    def _draw_line(self, band: Band, dashed: bool) -> None:
        x, y, distance = self._samples(band, self.pixel_m * _LINE_SPACING_PX)
        code = np.full(x.shape, PAINT << 4, np.uint8)
        if dashed:
            code[distance[:, 0] % _DASH_PERIOD_M >= _DASH_M] = GAP << 4
        self.fine.reshape(-1)[self._index(x, y, self.pixel_m, TILE)] = code

    def _paint_directions(self) -> None:
        size_m, side = self.pixel_m * COARSE, TILE // COARSE
        # Lanes proper come last: where they meet a junction, their direction counts.
        for lane in sorted(self.lanes, key=lambda lane: not lane.is_junction):
            w = lane.width_m / 2
            x, y, distance = self._samples(Band(lane, -w, w), size_m * _SPACING_PX)
            code = np.full(x.shape, ANY_DIRECTION, np.uint8)
            if not lane.is_junction:
                yaw = np.interp(distance[:, 0], lane.distance_m, np.unwrap(lane.yaw_rad))
                turn = np.round(yaw * (DIRECTIONS / math.tau)).astype(np.int64) % DIRECTIONS
                code[:] = (turn + 1)[:, None]
            self.direction.reshape(-1)[self._index(x, y, size_m, side)] = code

    def _samples(
        self, band: Band, spacing_m: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Points float32 (along, across) from the corner that cover a band, and their distances."""
        strip = band.along
        side = max(float(np.abs(band.left_m).max()), float(np.abs(band.right_m).max()))
        yaw = np.unwrap(strip.yaw_rad)
        # The outer border of a bend is longer than the centre line.
        bend = np.abs(np.diff(yaw)) / np.maximum(np.diff(strip.distance_m), 1e-6)
        stretch = 1.0 + side * float(bend.max(initial=0.0))
        length = float(strip.distance_m[-1])
        at = np.linspace(0.0, length, math.ceil(length * min(stretch, 2.0) / spacing_m) + 1)
        widest = float((band.right_m - band.left_m).max())
        share = np.linspace(0.0, 1.0, math.ceil(widest / spacing_m) + 1)
        centre_x, centre_y, turned, left, right = (
            np.interp(at, strip.distance_m, values)[:, None]
            for values in (
                *(strip.points - (self.left_m, self.top_m)).T,
                yaw,
                band.left_m,
                band.right_m,
            )
        )
        offset = (left + (right - left) * share).astype(np.float32)  # (along, across)
        x = centre_x.astype(np.float32) - offset * np.sin(turned).astype(np.float32)
        y = centre_y.astype(np.float32) + offset * np.cos(turned).astype(np.float32)
        return x, y, at[:, None]

    def _index(
        self, x: NDArray[np.float32], y: NDArray[np.float32], size_m: float, side: int
    ) -> NDArray[np.int32]:
        """Flat index int32 of the pixel under each position, in a layer with tiles of `side`."""
        bits = side.bit_length() - 1
        scale = np.float32(1.0 / size_m)
        column = (x * scale).astype(np.int32)
        row = (y * scale).astype(np.int32)
        tile = (row >> bits) * self.table.shape[1] + (column >> bits)
        flat: NDArray[np.int32] = np.take(self.table.reshape(-1), tile)
        flat <<= 2 * bits
        flat += (row & (side - 1)) << bits
        flat += column & (side - 1)
        return flat


def _coarsen(fine: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes uint8 (slots, TILE / COARSE, TILE / COARSE), << 4, of classes without texture."""
    side = TILE // COARSE
    blocks = (fine == PAINT << 4).reshape(-1, side, COARSE, side, COARSE)
    painted = blocks.sum(axis=(2, 4), dtype=np.uint8)  # of 16
    plain = fine[:, 1::COARSE, 1::COARSE].copy()
    plain[plain >= GAP << 4] = ASPHALT << 4
    quarters = (painted + 3) >> 2
    return np.where(painted > 0, (quarters + GAP) << 4, plain).astype(np.uint8)


def _add_texture(layer: NDArray[np.uint8], table: NDArray[np.int32]) -> None:
    """Set the texture bits, from the pixels' place in the world.

    The pattern repeats after `_DEFAULTS` tiles (51 m), which no one can see in a picture.
    """
    side = layer.shape[1]
    texture = ground_texture(_DEFAULTS * TILE, TILE // side)
    tiles = texture.reshape(_DEFAULTS, side, _DEFAULTS, side).swapaxes(1, 2)
    # Verge tiles lie in many places, all of the same texture: the last one counts.
    kind = np.zeros(len(layer), np.intp)
    rows, columns = np.indices(table.shape) % _DEFAULTS
    kind[table.reshape(-1)] = (rows * _DEFAULTS + columns).reshape(-1)
    layer |= tiles.reshape(-1, side, side)[kind]
