"""From what a CARLA camera sends to what is stored: gray, and the size of the dataset."""

import numpy as np
from numpy.typing import NDArray

_LUMA_BGRA = (0.114, 0.587, 0.299, 0.0)  # ITU-R BT.601


class Grayscale:
    """Turns pictures of B, G, R, A into gray ones, each pixel the mean of a square of theirs.

    Args:
        height: Rows of the gray picture.
        width: Its columns.
        supersample: Rows and columns of the given picture for each of them.
    """

    def __init__(self, height: int, width: int, supersample: int) -> None:
        self._shape = (1, height, width)
        self._rows = (height, supersample, width * supersample * 4)
        self._cells = (height * width, supersample * 4)
        weights = np.tile(np.array(_LUMA_BGRA), supersample) / supersample**2
        self._weights = weights.astype(np.float32)
        self.size_bytes = height * supersample * width * supersample * 4
        """Bytes of a picture that can be turned."""

    def __call__(self, bgra: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn one picture.

        Args:
            bgra: uint8 (size_bytes,), rows from the top.

        Returns:
            uint8 (1, H, W), a new array, rounded to the nearest.
        """
        # Rows first: whole rows are added faster than pixels, and sums of 8 rows fit 16 bits.
        rows = bgra.reshape(self._rows)
        columns = rows[:, 0].astype(np.uint16)  # (H, W * s * 4)
        for number in range(1, rows.shape[1]):
            columns += rows[:, number]
        gray = columns.astype(np.float32).reshape(self._cells) @ self._weights
        gray += 0.5
        picture: NDArray[np.uint8] = gray.astype(np.uint8).reshape(self._shape)
        return picture
