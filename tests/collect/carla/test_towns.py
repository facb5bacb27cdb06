"""CARLA's own towns in the built-in simulator, from a directory of their OpenDRIVE files.

Set AVTD3_OPENDRIVE to a directory with Town01.xodr to Town07.xodr, such as ``OpenDrive`` of
carla-simulator/opendrive-test-files. The files are not part of this project.
"""

import os
from pathlib import Path

import pytest

from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig

FILES = Path(os.environ.get("AVTD3_OPENDRIVE", "does-not-exist"))
LEAST_SUCCESS = 0.9


@pytest.mark.slow
@pytest.mark.skipif(not FILES.is_dir(), reason="AVTD3_OPENDRIVE is not a directory")
@pytest.mark.parametrize("number", range(1, 8))
def test_the_expert_drives_in_the_towns_of_carla(number):
    town = ScenarioConfig(number=0, town=str(FILES / f"Town{number:02d}.xodr"), npcs=20)
    report = evaluate("expert", EvaluateConfig(scenario=town, episodes=30))
    reached = sum(score.end_reason == "goal" for score in report.scores)
    assert reached >= LEAST_SUCCESS * 30, [score.end_reason for score in report.scores]
