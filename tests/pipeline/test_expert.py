"""The expert reaches its goals, in traffic, on every kind of road."""

from pathlib import Path

import carla
import pytest

from avtd3.tests.pipeline.conftest import avtd3_json

HAMLET = Path(__file__).parents[1] / "data" / "hamlet.osm"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [0, 2, 4])
def test_on_generated_networks(scenario):
    report = avtd3_json(
        "evaluate", "expert", "--episodes", 20, "--scenario", scenario, "--workers", 2
    )
    assert report["success_rate"] >= 0.95, report["end_reasons"]


@pytest.mark.slow
def test_on_a_converted_openstreetmap_extract(tmp_path):
    town = tmp_path / "hamlet.xodr"
    town.write_text(carla.Osm2Odr.convert(HAMLET.read_text(), carla.Osm2OdrSettings()))
    words = ("--episodes", 20, "--npcs", 20, "--town", town, "--workers", 2)
    report = avtd3_json("evaluate", "expert", *words)
    assert report["success_rate"] >= 0.95, report["end_reasons"]
