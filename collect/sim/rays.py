"""`GroundRays`: where a camera's rays meet the ground, and what is painted there.

Seen from the car the points hold as long as the camera's mounting does. A row of rays meets the
ground on a line, so a frame is one small product for the ends of the lines, one for all points,
and one gather from the window.
"""

import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.raster import COARSE
from avtd3.collect.sim.boxes import View
from avtd3.collect.sim.window import GroundWindow

# Rays nearer to the horizon than this meet the ground too far out to matter.
_LEAST_FALL = 1e-3


class GroundRays:
    """The rays of all pixels below the horizon, `fine` x `fine` of them for each.

    Near rows, where the pixels of the picture are finer than those of the ground, make do with
    one ray across. Rows and columns of rays are sorted by their place in the pixel, so that a
    picture is the sum of blocks.

    Attributes:
        horizon: First row of the picture that shows the ground.
        ahead_m: float64 (rows,), distance of the ground ahead of the camera, by row.
        right_m: float64 (rows, W), distance to the right of the camera's axis.
        count: float64 (rows, 1), rays of each pixel of a row.
    """

    def __init__(self, view: View, size: tuple[int, int], fine: int, pixel_m: float) -> None:
        height, width = size
        sub = (np.arange(fine)[:, None] + 0.5) / fine
        across = (np.arange(width) + sub - view.column) / view.focal  # (fine, W)
        down = (np.arange(height) + sub - view.row) / view.focal  # (fine, H)
        fall = view.sin_pitch + down * view.cos_pitch
        # A row belongs to the ground once all its rays do.
        self.horizon = int((fall < _LEAST_FALL).any(axis=0).sum())
        fall, down = fall[:, self.horizon :], down[:, self.horizon :]
        reach = view.height_m / fall  # (fine, rows)
        ahead = reach * (view.cos_pitch - down * view.sin_pitch)
        self.ahead_m = ahead.mean(axis=0)
        middle = across.mean(axis=0)
        self.right_m: NDArray[np.float64] = reach.mean(axis=0)[:, None] * middle
        rows, far = reach.shape[1], int((reach.max(axis=0) > pixel_m * view.focal).sum())
        self.count = np.where(np.arange(rows) < far, fine * fine, fine)[:, None]
        self._far, self._fine, self._width = far, fine, width
        self._far_rays = fine * far * fine * width
        # The rays of far rows come first, those of near rows behind them.
        ahead, reach = (
            np.concatenate([rays[:, :far].reshape(-1), rays[:, far:].reshape(-1)])
            for rays in (ahead, reach)
        )
        side = float(np.abs(across).max())
        self._lines = _lines(view, ahead, reach, side, pixel_m).astype(np.float32)
        self._across_far, self._across_near = (
            np.stack([np.ones(rays.size), rays.reshape(-1)]).astype(np.float32)
            for rays in (across, middle)
        )
        count = self._far_rays + fine * (rows - far) * width
        self._points = np.empty((2, count), np.float32)
        self._rows, self._columns = self._points
        self._points_far = self._points[:, : self._far_rays].reshape(2, fine * far, -1)
        self._points_near = self._points[:, self._far_rays :].reshape(2, -1, width)
        self._index = np.empty(count, np.intp)
        self._total = np.empty((rows, width), np.uint16)

    def brightness(
        self, window: GroundWindow, x_m: float, y_m: float, yaw_rad: float, table: bytes
    ) -> NDArray[np.uint16]:
        """Sum of the brightnesses that each pixel's rays meet; see `count`.

        Args:
            window: The ground around the car.
            x_m: Centre of the car.
            y_m: Centre of the car.
            yaw_rad: Heading of the car.
            table: Brightness of each of the 256 ground codes.

        Returns:
            uint16 (rows, W), from the horizon down; valid until the next call.
        """
        (fine_x, fine_y), (coarse_x, coarse_y) = window.fine_m, window.coarse_m
        pose = (
            math.cos(yaw_rad),
            math.sin(yaw_rad),
            x_m - fine_x,
            y_m - fine_y,
            x_m - coarse_x,
            y_m - coarse_y,
            1.0,
        )
        lines = np.dot(self._lines, np.array(pose, np.float32)).reshape(2, -1, 2)
        far = self._fine * self._far
        np.matmul(lines[:, :far], self._across_far, out=self._points_far)
        np.matmul(lines[:, far:], self._across_near, out=self._points_near)
        # Single precision tells 1.6 million places apart to a sixteenth of a pixel, and the fewer
        # arrays, the more of the processor's cache is left.
        rows = self._rows
        np.trunc(rows, out=rows)
        rows *= window.stride
        rows += self._columns
        # Gathers want indices of pointer size, and are twice as fast without `out`. All of them
        # lie inside: see `_lines`.
        np.copyto(self._index, rows, casting="unsafe")
        codes = window.flat.take(self._index)
        # bytes.translate is the fastest table look-up at hand, 1.5 times np.take.
        return self._summed(np.frombuffer(codes.tobytes().translate(table), np.uint8))

    def _summed(self, seen: NDArray[np.uint8]) -> NDArray[np.uint16]:
        fine, far, width = self._fine, self._far, self._width
        split, total = self._far_rays, self._total
        far_seen = seen[:split].reshape(fine, far, fine, width)
        np.add.reduce(far_seen, axis=(0, 2), dtype=np.uint16, out=total[:far])
        near_seen = seen[split:].reshape(fine, -1, width)
        np.add.reduce(near_seen, axis=0, dtype=np.uint16, out=total[far:])
        return total


def _lines(
    view: View,
    ahead: NDArray[np.float64],
    reach: NDArray[np.float64],
    side: float,
    pixel_m: float,
) -> NDArray[np.float64]:
    """What makes base and slope of each row's line out of the car's pose.

    Base and slope are window pixels; the point of a ray is ``base + across * slope``. Far rows
    look at the coarse pixels, and rows beyond those at what lies at their border.

    Returns:
        float64 (4 * rows, 7): for all window rows, then for all window columns, base and slope
        in turn, as sums over the pose (cosine and sine of the yaw, x and y in the fine square,
        x and y in the coarse square, 1).
    """
    near_m, far_m = (reach_m - 2.0 * pixel_m for reach_m in GroundWindow.reach_m(pixel_m))
    away = np.hypot(ahead, reach * side)
    mount_m = math.hypot(view.forward_m, view.right_m)
    clip = np.minimum(1.0, (far_m - mount_m) / away)
    coarse = away + mount_m > near_m
    scale = np.where(coarse, 1.0 / (pixel_m * COARSE), 1.0 / pixel_m)
    mount = complex(view.forward_m, view.right_m)
    base = (mount + ahead * clip * view.heading) * scale
    slope = 1j * reach * clip * view.heading * scale
    lines = np.zeros((2, len(reach), 2, 7))
    for part, value in enumerate((base, slope)):
        lines[0, :, part, :2] = np.stack([value.imag, value.real], axis=1)
        lines[1, :, part, :2] = np.stack([value.real, -value.imag], axis=1)
    near_scale, coarse_scale = np.where(coarse, 0.0, scale), np.where(coarse, scale, 0.0)
    lines[0, :, 0, 3], lines[1, :, 0, 2] = near_scale, near_scale
    lines[0, :, 0, 5], lines[1, :, 0, 4] = coarse_scale, coarse_scale
    lines[0, :, 0, 6] = np.where(coarse, GroundWindow.coarse_row, 0)
    return lines.reshape(-1, 7)
