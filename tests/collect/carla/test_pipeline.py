"""The whole pipeline over the wire: collect, audit, learn, collect with the policy, evaluate."""

import pytest

from avtd3.store.dataset import Dataset
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import kinds
from avtd3.tests.pipeline.conftest import avtd3_json
from avtd3.tests.pipeline.test_two_terminals import SMALL_LEARNER, versions_driven


def place(section, server):
    """Return the options for a server, for a command's section of the configuration."""
    return (
        "--world=carla", "--host=127.0.0.1", f"--port={server.port}", "--town=AvTown01",
        "--scenario=0", "--npcs=2",
        f"--set={section}.scenario.route_length_m=40",
        f"--set={section}.scenario.time_limit_s=2",
        f"--set={section}.carla.settle_s=0.1",
        f"--set={section}.carla.timeout_s=60",
        f"--set={section}.carla.sensor_timeout_s=60",
        f"--set={section}.carla.step_timeout_s=120",
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_the_pipeline_over_the_wire(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    policies = run / "policies"
    with CarlaServer() as server:
        drive = ("collect", data, *place("collect", server), "--policies", policies)
        mixture = "0.5:expert,0.5:expert+noise=0.2"
        expert = avtd3_json(*drive, "--episodes", 3, "--driver", mixture)
        assert (expert["episodes"], expert["missing"], expert["skipped"]) == (3, "", [])

        found = avtd3_json("replay-inspect", data)
        assert found["verdict"] == "ok"

        learned = avtd3_json(
            "learn", data, "--run", run, "--policies", policies, "--updates", 6, *SMALL_LEARNER,
            "--set=learn.learning_starts=50",
        )  # fmt: skip
        assert learned["updates"] == 6

        policy = avtd3_json(*drive, "--episodes", 1, "--driver", "policy", "--seed", 1)
        assert policy["episodes"] == 1
        assert max(versions_driven(data)) >= 0

        score = avtd3_json("evaluate", policies, *place("evaluate", server), "--episodes", 1)
        assert (len(score["rows"]), score["world"]) == (1, "carla")

        record = server.record()
        assert kinds(server) == []
        assert record["problems"] == []
    worlds = {
        world for segment in Dataset.open(data).snapshot().segments
        for world in segment.episode_table().texts("world")
    }  # fmt: skip
    assert worlds == {"carla"}
