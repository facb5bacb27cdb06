"""Held-out drives as a GIF and as a contact sheet."""

import itertools
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from avtd3.collect.environment import Environment
from avtd3.collect.evaluate import EvaluateConfig, EvaluationEpisode, Evaluator, one_thread
from avtd3.collect.worlds import WorldFactory, open_environment, open_world
from avtd3.store.render.media import write_contact_sheet, write_gif

EVERY = 2
"""Steps per picture of an animation: 10 pictures a second at 20 Hz."""
MAX_PICTURES = 250
"""Longest animation: 25 seconds of driving at 20 Hz."""
SHEET_STEP = 60
"""The step whose picture stands for an episode on the contact sheet, if it lasts that long."""


def film(environment: Environment, examination: EvaluationEpisode, path: Path) -> None:
    """Drive an episode and write it as a GIF.

    Args:
        environment: Where it was begun.
        examination: The episode.
        path: The file, replaced atomically.

    Raises:
        StorageError: The file cannot be written.
        WorldError: The simulator or the driver failed.
    """
    moments = itertools.islice(examination.transitions, 0, EVERY * MAX_PICTURES, EVERY)
    pictures = (environment.picture(moment.action, examination.driver) for moment in moments)
    write_gif(pictures, path, period_s=EVERY * environment.spec.control_period_s)


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
    environment = open_environment(config, open_world, render=True)
    try:
        evaluator = Evaluator(environment, config, subject)
        with one_thread(evaluator.policy):
            film(environment, evaluator.begin(index), path)
    finally:
        environment.close()


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
    environment = open_environment(config, open_world, render=True)
    pictures: list[Image.Image] = []
    captions: list[str] = []
    try:
        evaluator = Evaluator(environment, config, subject)
        with one_thread(evaluator.policy):
            for index in range(config.episodes):
                if should_stop() and pictures:
                    break
                examination = evaluator.begin(index)
                picture = _picture_at(environment, examination, SHEET_STEP)
                pictures.append(picture.resize((337, 183), Image.Resampling.LANCZOS))
                start = examination.rollout.start
                captions.append(f"{index}: {start.town}, {start.weather}")
    finally:
        environment.close()
    write_contact_sheet(pictures, captions, path, columns=4)


def _picture_at(environment: Environment, examination: EvaluationEpisode, step: int) -> Image.Image:
    """Return the picture of a step, or of the last one if there are fewer."""
    moment = None
    for count, moment in enumerate(examination.transitions):  # noqa: B007 - the last one is used
        if count == step:
            break
    assert moment is not None, "an episode has at least one step"
    return environment.picture(moment.action, examination.driver)
