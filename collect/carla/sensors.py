"""`Sensors`: camera, collision and lane invasion sensor of a car; `Grayscale` converts pictures."""

import collections
import queue
import time
from typing import NamedTuple

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.server import ROLE, Server
from avtd3.collect.maps.camera_mounting import Mounting
from avtd3.store.errors import WorldError, WorldLost

_LUMA_BGRA = (0.114, 0.587, 0.299, 0.0)  # ITU-R BT.601


class Grayscale:
    """Convert B, G, R, A pictures to gray ones, each pixel the mean of a square of pixels.

    Args:
        height: Rows of the gray picture.
        width: Columns of the gray picture.
        supersample: Rows and columns of the original picture per row and column.
    """

    def __init__(self, height: int, width: int, supersample: int) -> None:
        self._shape = (1, height, width)
        self._rows = (height, supersample, width * supersample * 4)
        self._cells = (height * width, supersample * 4)
        weights = np.tile(np.array(_LUMA_BGRA), supersample) / supersample**2
        self._weights = weights.astype(np.float32)
        self.size_bytes = height * supersample * width * supersample * 4
        """Bytes of an original picture."""

    def __call__(self, bgra: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert one picture.

        Args:
            bgra: uint8 (size_bytes,), rows from the top.

        Returns:
            uint8 (1, H, W), a new array, rounded to the nearest.
        """
        # Rows first: adding whole rows is faster than adding pixels. Sums of 8 rows fit 16 bits.
        rows = bgra.reshape(self._rows)
        columns = rows[:, 0].astype(np.uint16)  # (H, W * s * 4)
        for number in range(1, rows.shape[1]):
            columns += rows[:, number]
        gray = columns.astype(np.float32).reshape(self._cells) @ self._weights
        gray += 0.5
        picture: NDArray[np.uint8] = gray.astype(np.uint8).reshape(self._shape)
        return picture


_HARMLESS = ("static.road", "static.sidewalk", "static.ground", "static.terrain")
"""Ground that a car stands on; contact with it is not a collision."""
_LISTENING_S = 0.05


class _Shot(NamedTuple):
    """A picture that the camera sent."""

    frame: int
    size: tuple[int, int]
    """Width and height."""
    gray: NDArray[np.uint8] | None
    """uint8 (1, H, W); None if the size is wrong."""


class Sensors:
    """A camera, a collision and a lane invasion sensor, mounted on a car.

    Args:
        server: Connected and synchronous.
        car: The `carla.Vehicle`.
        mounting: Position of the camera, from the middle of the car.
        middle_m: How far the middle of the car is ahead of its origin.

    Raises:
        WorldLost: The server did not answer.
    """

    def __init__(
        self, server: Server, car: carla.Vehicle, mounting: Mounting, middle_m: float
    ) -> None:
        self._server = server
        config = server.config
        camera = config.camera
        self._gray = Grayscale(camera.height, camera.width, camera.supersample)
        self._wait_s = config.sensor_timeout_s
        self._shots: queue.SimpleQueue[_Shot] = queue.SimpleQueue()
        self._contacts: collections.deque[tuple[int, str]] = collections.deque()
        self._markings: collections.deque[int] = collections.deque()
        self._crossed, self._reported = 0, 0
        self.late = 0
        """Pictures of other frames than the expected one."""
        self._mounted: list[carla.Sensor] = []
        self._mount(car, "sensor.camera.rgb", _place(mounting, middle_m), _lens(config))
        self._mount(car, "sensor.other.collision", carla.Transform(), {})
        self._mount(car, "sensor.other.lane_invasion", carla.Transform(), {})

    def _mount(
        self, car: carla.Vehicle, kind: str, place: carla.Transform, attributes: dict[str, str]
    ) -> None:
        with self._server.calling(f"mount {kind}"):
            blueprint = self._server.world.get_blueprint_library().find(kind)
            for name, value in {**attributes, "role_name": ROLE}.items():
                if blueprint.has_attribute(name):
                    blueprint.set_attribute(name, value)
            self._mounted.append(self._server.world.spawn_actor(blueprint, place, attach_to=car))

    def listen(self) -> carla.WorldSnapshot:
        """Start to listen, and tick until the first picture arrives.

        A subscription is live some milliseconds after `listen`; data sent before is lost.

        Returns:
            The snapshot of the last tick.

        Raises:
            WorldLost: No picture arrived.
        """
        camera, collision, invasion = self._mounted
        with self._server.calling("start its sensors", limit_s=None):
            camera.listen(self._receive)
            collision.listen(
                lambda event: self._contacts.append((event.frame, event.other_actor.type_id))
            )
            invasion.listen(lambda event: self._markings.append(event.frame))
        deadline_s = time.monotonic() + self._wait_s
        while True:
            snapshot = self._server.tick()
            if self._next(_LISTENING_S) is not None:
                return snapshot
            if time.monotonic() > deadline_s:
                raise self._stall(snapshot.frame, "first picture")

    def _receive(self, image: carla.Image) -> None:
        """Store a picture; called by a thread of the client."""
        data = np.frombuffer(image.raw_data, np.uint8)
        gray = self._gray(data) if data.size == self._gray.size_bytes else None
        self._shots.put(_Shot(image.frame, (image.width, image.height), gray))

    def _next(self, within_s: float) -> _Shot | None:
        try:
            return self._shots.get(timeout=max(within_s, 0.0))
        except queue.Empty:
            return None

    def picture(self, frame: int) -> NDArray[np.uint8]:
        """Return the camera's picture of a frame, uint8 (1, H, W).

        Raises:
            WorldLost: The picture did not arrive in time.
            WorldError: The picture has another size than requested.
        """
        deadline_s = time.monotonic() + self._wait_s
        while (shot := self._next(deadline_s - time.monotonic())) is not None:
            if shot.frame == frame:
                return self._checked(shot)
            self.late += 1
            if shot.frame > frame:
                break
        raise self._stall(frame, f"picture of frame {frame}")

    def _checked(self, shot: _Shot) -> NDArray[np.uint8]:
        if shot.gray is None:
            width, height = shot.size
            raise WorldError(
                f"CARLA server {self._server.where} sent a picture of {width} x {height}, "
                f"expected {self._gray.size_bytes} bytes; restart the server"
            )
        return shot.gray

    def _stall(self, frame: int, what: str) -> WorldLost:
        others = f"; {self.late} pictures of other frames arrived" if self.late else ""
        return WorldLost(
            f"CARLA server {self._server.where} ticks (frame {frame}), but its camera sent no "
            f"{what} within {self._wait_s:g} s (sensor_timeout_s){others}; check whether it is "
            "overloaded or was started without rendering",
            "sensor_stall",
        )

    def discard_until(self, frame: int) -> None:
        """Discard all events up to a frame: a teleport crosses every marking on its way."""
        self.late = 0
        self.collision(frame)
        self._take_markings(frame)
        self._reported = (self._crossed + 1) // 2

    def collision(self, frame: int) -> str:
        """Return what the car hit up to a frame (``vehicle``, ``walker``, ``static``...) or ""."""
        kinds = []
        while self._contacts and self._contacts[0][0] <= frame:
            kinds.append(self._contacts.popleft()[1])
        hits = [kind.partition(".")[0] for kind in kinds if not kind.startswith(_HARMLESS)]
        return hits[0] if hits else ""

    def lane_invasions(self, frame: int) -> int:
        """Return how many markings the front of the car crossed up to a frame, since the last call.

        CARLA reports every marking for each of the four corners of the car. The rear corners repeat
        the front ones, so that two reports are one crossing.
        """
        self._take_markings(frame)
        total = (self._crossed + 1) // 2
        new, self._reported = total - self._reported, total
        return new

    def _take_markings(self, frame: int) -> None:
        while self._markings and self._markings[0] <= frame:
            self._markings.popleft()
            self._crossed += 1

    def close(self) -> None:
        """Stop all sensors, then remove them from the server.

        A sensor that is stopped but not destroyed may abort the process later, and so may one that
        is destroyed but not stopped. Therefore all sensors are stopped first. If the server is
        gone, they are only stopped.
        """
        for sensor in self._mounted:
            if sensor.is_listening():
                sensor.stop()
        mounted, self._mounted = self._mounted, []
        for sensor in mounted:
            if not self._server.is_gone and not sensor.destroy():
                # Either the sensor or the server is gone; the next call will show which.
                return


def _place(mounting: Mounting, middle_m: float) -> carla.Transform:
    return carla.Transform(
        carla.Location(x=middle_m + mounting.forward_m, y=mounting.right_m, z=mounting.height_m),
        carla.Rotation(
            pitch=-float(np.degrees(mounting.pitch_rad)), yaw=float(np.degrees(mounting.yaw_rad))
        ),
    )


def _lens(config: CarlaConfig) -> dict[str, str]:
    camera = config.camera
    return {
        "image_size_x": str(camera.width * camera.supersample),
        "image_size_y": str(camera.height * camera.supersample),
        "fov": str(camera.field_of_view_deg),
        "sensor_tick": "0.0",
        # Motion blur depends on the frame rate: disable it.
        "motion_blur_intensity": "0.0",
    }
