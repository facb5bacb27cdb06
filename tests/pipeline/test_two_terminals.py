"""A collector and a learner that exchange only files, and are killed and restarted."""

import hashlib
import json

from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json, wait_until

SMALL_LEARNER = (
    "--set=learn.replay.batch_size=8",
    "--set=learn.network.features=32",
    "--set=learn.network.hidden=[32]",
    "--set=learn.learning_starts=200",
    "--set=learn.publish_every=10",
    "--set=learn.checkpoint_every=10",
    "--set=learn.refresh_seconds=0.5",
)


def versions_driven(path):
    """Return version and digest of the policy of every episode that a policy drove."""
    driven: dict[int, str] = {}
    for segment in Dataset.open(path).snapshot().segments:
        table = segment.episode_table()
        driven.update(zip(table.policy_version.tolist(), table.policy_digest, strict=True))
    return driven


def published(path):
    return {s.id: s.manifest_digest for s in Dataset.open(path).snapshot().segments}


def newest(policies):
    latest = policies / "LATEST.json"
    return json.loads(latest.read_text())["version"] if latest.exists() else -1


def test_either_side_can_be_killed_and_restarted(tmp_path, start):
    data, policies, run = tmp_path / "data", tmp_path / "policies", tmp_path / "run"
    collect = (
        "collect", data, "--policies", policies, "--driver", "0.5:policy,0.5:expert",
        "--steps", 10_000_000, "--seed", 3, "--resume", *QUICK_WORLD,
        "--set=collect.writer.segment_steps=100", "--set=collect.scenario.time_limit_s=10",
    )  # fmt: skip
    learn = (
        "learn", data, "--run", run, "--policies", policies, "--follow",
        "--updates", 1_000_000, *SMALL_LEARNER,
    )  # fmt: skip

    learner, collector = start(*learn), start(*collect)
    both = (learner, collector)
    wait_until(lambda: (data / "zarr.json").exists(), "a dataset", running=both)
    wait_until(lambda: max(versions_driven(data), default=-1) >= 1, "policy 1", running=both)

    collector.kill()
    before = published(data)
    version = newest(policies)
    wait_until(lambda: newest(policies) > version, "a new policy", running=(learner,))
    collector = start(*collect)
    both = (learner, collector)
    wait_until(lambda: len(published(data)) > len(before), "more segments", running=both)

    learner.kill()
    before |= published(data)
    version = newest(policies)
    wait_until(lambda: len(published(data)) > len(before), "new segments", running=(collector,))
    learner = start(*learn, "--resume")
    both = (learner, collector)
    wait_until(lambda: max(versions_driven(data)) > version, "a newer policy", running=both)

    assert collector.stop() == 0, collector.log.read_text()
    assert learner.stop() == 0, learner.log.read_text()
    after = published(data)
    assert before.items() <= after.items(), "a published segment was lost or altered"
    assert avtd3_json("replay-inspect", data)["verdict"] == "ok"
    for version, digest in versions_driven(data).items():
        if version >= 0:
            file = policies / f"policy-{version:08d}.safetensors"
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
