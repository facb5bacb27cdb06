"""`draw_scene`: a moment of a drive as a picture.

The camera's picture is beside a map of the route and of the roads and vehicles around the car.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avtd3.collect.driving.world import Surroundings, WorldFrame
from avtd3.collect.maps.route import Route
from avtd3.store.render.media import INK, PAPER, font, scaled_image

PANEL_PX = 336
"""Side of the camera panel and of the map panel: four times the default camera."""
CAPTION_PX = 30
MAP_SPAN_M = 90.0
"""Metres of road shown across the map."""

LANE = (74, 82, 92)
ROUTE = (64, 156, 255)
OTHERS = (255, 184, 77)
CAR = (96, 220, 140)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One moment of a drive, and everything to draw of it."""

    frame: WorldFrame
    """The newest frame."""
    route: Route
    """The way to the goal."""
    action: NDArray[np.float32]
    """float32 (2,), the action that led here: steering, throttle or brake."""
    surroundings: Surroundings
    """Lanes and other vehicles."""
    caption: str
    """One line under the picture."""


def draw_scene(scene: Scene) -> Image.Image:
    """Draw the camera's picture and a map, side by side, above a caption.

    Returns:
        An RGB image of 2 x `PANEL_PX` by `PANEL_PX` + `CAPTION_PX` pixels.
    """
    picture = Image.new("RGB", (2 * PANEL_PX, PANEL_PX + CAPTION_PX), PAPER)
    camera = scaled_image(scene.frame.image, PANEL_PX)
    picture.paste(camera, (0, (PANEL_PX - camera.height) // 2))
    picture.paste(_draw_map(scene), (PANEL_PX, 0))
    draw = ImageDraw.Draw(picture)
    _draw_bars(draw, scene.action)
    draw.text((8, PANEL_PX + 7), scene.caption, fill=INK, font=font(14))
    return picture


def _draw_map(scene: Scene) -> Image.Image:
    panel = Image.new("RGB", (PANEL_PX, PANEL_PX), PAPER)
    draw = ImageDraw.Draw(panel)
    for lane in scene.surroundings.lanes:
        _draw_line(draw, scene, lane, LANE, 8)
    _draw_line(draw, scene, scene.route.points, ROUTE, 3)
    goal = _to_map(scene, scene.route.points[-1:])[0]
    draw.ellipse([*(goal - 6), *(goal + 6)], outline=ROUTE, width=3)
    for x_m, y_m, yaw_rad in scene.surroundings.others:
        _draw_vehicle(draw, scene, x_m, y_m, yaw_rad, OTHERS)
    car = scene.frame.vehicle
    _draw_vehicle(draw, scene, car.x_m, car.y_m, car.yaw_rad, CAR)
    return panel


def _to_map(scene: Scene, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map world metres (N, 2) to panel pixels: the car below the middle, its heading up."""
    car = scene.frame.vehicle
    delta = points - (car.x_m, car.y_m)
    cos, sin = np.cos(car.yaw_rad), np.sin(car.yaw_rad)
    ahead = delta @ (cos, sin)
    right = delta @ (-sin, cos)
    scale = PANEL_PX / MAP_SPAN_M
    return np.stack((PANEL_PX / 2 + right * scale, PANEL_PX * 0.7 - ahead * scale), axis=1)


def _draw_line(
    draw: ImageDraw.ImageDraw,
    scene: Scene,
    points: NDArray[np.float64],
    colour: tuple[int, int, int],
    width: int,
) -> None:
    pixels = _to_map(scene, points)
    near: NDArray[np.bool_] = np.max(np.abs(pixels - PANEL_PX / 2), axis=1) < PANEL_PX
    if near.sum() < 2:
        return
    # Points outside are dropped in runs, so that a line never jumps across the panel.
    edges = np.flatnonzero(np.diff(near.astype(np.int8)))
    for run in np.split(np.arange(len(pixels)), edges + 1):
        if near[run[0]] and len(run) > 1:
            draw.line([tuple(p) for p in pixels[run]], fill=colour, width=width, joint="curve")


def _draw_vehicle(
    draw: ImageDraw.ImageDraw,
    scene: Scene,
    x_m: float,
    y_m: float,
    yaw_rad: float,
    colour: tuple[int, int, int],
) -> None:
    corners = np.array([[2.3, 0.92], [2.3, -0.92], [-2.3, -0.92], [-2.3, 0.92]])
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    world = corners @ np.array([[cos, sin], [-sin, cos]]) + (x_m, y_m)
    draw.polygon([tuple(p) for p in _to_map(scene, world)], fill=colour)


def _draw_bars(draw: ImageDraw.ImageDraw, action: NDArray[np.float32]) -> None:
    """Show steering and throttle or brake as two bars in the camera panel's corner."""
    centre, reach = PANEL_PX - 60, 48
    for row, (value, colour) in enumerate(
        ((action[0], ROUTE), (action[1], CAR if action[1] >= 0 else OTHERS))
    ):
        y = PANEL_PX - 26 + 11 * row
        draw.rectangle([centre - reach, y, centre + reach, y + 7], fill=PAPER)
        ends = sorted((centre, centre + float(value) * reach))
        draw.rectangle([ends[0], y + 1, ends[1], y + 6], fill=colour)
