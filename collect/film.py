"""Held-out drives as a GIF and as a contact sheet."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from avtd3.collect.examiner import EvaluateConfig, Examination, Examiner, one_thread
from avtd3.collect.pictures import Scene, draw_scene
from avtd3.collect.world import World
from avtd3.collect.worlds import WorldFactory, open_world
from avtd3.store.show.pictures import animation, contact_sheet

EVERY = 2
"""Steps per picture of an animation: 10 pictures a second at 20 Hz."""
MAX_PICTURES = 250
"""Longest animation: 25 seconds of driving at 20 Hz."""
SHEET_STEP = 60
"""The step whose picture stands for an episode on the contact sheet, if it lasts that long."""


def film(world: World, examination: Examination, path: Path) -> None:
    """Drive an episode and write it as a GIF.

    Args:
        world: The simulator on which it was begun.
        examination: The episode.
        path: The file, replaced atomically.

    Raises:
        StorageError: The file cannot be written.
        WorldError: The simulator or the driver failed.
    """
    scenes = itertools.islice(_scenes(world, examination), 0, EVERY * MAX_PICTURES, EVERY)
    pictures = (draw_scene(scene) for scene in scenes)
    animation(pictures, path, period_s=EVERY * world.control_period_s)


def film_held_out(
    subject: str,
    config: EvaluateConfig,
    index: int,
    path: Path,
    *,
    open_world: WorldFactory = open_world,
) -> None:
    """Write one episode of an evaluation as a GIF.

    Args:
        subject: Who drives, as for `avtd3.collect.evaluate.evaluate`.
        config: The evaluation.
        index: Number of the episode.
        path: The file, replaced atomically.
        open_world: Makes the simulator.

    Raises:
        Avtd3Error: As `avtd3.collect.evaluate.evaluate`.
    """
    world = open_world(config.world, config.road)
    try:
        examiner = Examiner(world, config, subject)
        with one_thread(examiner.policy):
            film(world, examiner.begin(index), path)
    finally:
        world.close()


def sheet_held_out(
    subject: str,
    config: EvaluateConfig,
    path: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    open_world: WorldFactory = open_world,
) -> None:
    """Write one picture of each episode of an evaluation onto a contact sheet.

    Args:
        subject: Who drives, as for `avtd3.collect.evaluate.evaluate`.
        config: The evaluation.
        path: The file, replaced atomically.
        should_stop: Asked between episodes; true leaves the rest out.
        open_world: Makes the simulator.

    Raises:
        Avtd3Error: As `avtd3.collect.evaluate.evaluate`.
    """
    world = open_world(config.world, config.road)
    pictures: list[Image.Image] = []
    captions: list[str] = []
    try:
        examiner = Examiner(world, config, subject)
        with one_thread(examiner.policy):
            for index in range(config.episodes):
                if should_stop() and pictures:
                    break
                examination = examiner.begin(index)
                scene = _scene_at(world, examination, SHEET_STEP)
                pictures.append(draw_scene(scene).resize((337, 183), Image.Resampling.LANCZOS))
                start = examination.rollout.start
                captions.append(f"{index}: {start.town}, {start.weather}")
    finally:
        world.close()
    contact_sheet(pictures, captions, path, columns=4)


def _scene_at(world: World, examination: Examination, step: int) -> Scene:
    scene = None
    for count, scene in enumerate(_scenes(world, examination)):  # noqa: B007 - the last one is used
        if count == step:
            break
    assert scene is not None, "an episode has at least one step"
    return scene


def _scenes(world: World, examination: Examination) -> Iterator[Scene]:
    start = examination.rollout.start
    for number, transition in enumerate(examination.transitions):
        facts = transition.step.facts
        end = f"   {transition.step.reason}" if transition.step.reason else ""
        yield Scene(
            frame=transition.frame,
            route=start.route,
            action=transition.action,
            surroundings=world.surroundings(),
            caption=(
                f"{examination.driver} on {start.town}, {start.weather}   "
                f"{number * world.control_period_s:4.1f} s   {3.6 * facts.speed_mps:4.1f} km/h   "
                f"{facts.lateral_m:+.2f} m{end}"
            ),
        )
