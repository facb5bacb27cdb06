"""`collect` and `evaluate` with URLs: a spool, an uploader, and policies that follow."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from avtd3.collect import CollectConfig, EvaluateConfig, collect, evaluate
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import CheckpointError, ConfigError, Dataset, SpecError, UnreachableError
from avtd3.store.remote import background
from avtd3.store.remote.client import open_place
from avtd3.store.remote.transfer import transfer
from avtd3.store.writer import WriterConfig
from avtd3.tests.collect.line_world import SPEC
from avtd3.tests.store.remote.datasets import content, make, sealed
from avtd3.tests.store.remote.servers import KEYS

WORLD = "avtd3.tests.collect.line_world:Line"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(background, "PERIOD_S", 0.02)


@pytest.fixture
def config(tmp_path):
    """Segments of one episode of 12 steps each, as far as possible."""
    return CollectConfig(
        world=WORLD,
        driver="random",
        min_free_mb=0,
        spool=str(tmp_path / "spool"),
        writer=WriterConfig(segment_steps=12),
    )


replaced = dataclasses.replace


def episodes_of(url, tmp_path, name):
    transfer(url, tmp_path / name)
    table = Dataset.open(tmp_path / name).episode_table()
    return sorted(table.index.tolist())


def test_a_collection_goes_to_a_url_and_is_the_same_as_a_local_one(config, bucket, tmp_path):
    report = collect(f"{bucket}/d", config, episodes=3)
    assert (report.dataset, report.tally.episodes, report.unsent) == (f"{bucket}/d", 3, "")
    transfer(f"{bucket}/d", tmp_path / "back")
    collect(tmp_path / "local", config, episodes=3)
    back, local = (Dataset.open(tmp_path / name) for name in ("back", "local"))
    for one, other in zip(back.episodes(), local.episodes(), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.vectors, other.vectors)
    assert Dataset.open(tmp_path / "spool").segment_ids() == [], "what is uploaded is deleted here"
    for key in KEYS:
        files = (p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert not any(key.encode() in data for data in files)


@pytest.mark.slow
def test_a_resume_continues_a_plan_whose_segments_are_at_the_url_only(config, bucket, tmp_path):
    collect(bucket, config, episodes=2)
    with pytest.raises(ConfigError, match=f"{bucket} already has 2 episodes of this plan"):
        collect(bucket, config, episodes=4)
    report = collect(bucket, config, episodes=4, resume=True)
    assert (report.tally.episodes, report.held_steps) == (2, 24)
    assert episodes_of(bucket, tmp_path, "back") == [0, 1, 2, 3]
    # Also from another machine, with an empty spool.
    other = replaced(config, spool=str(tmp_path / "other"))
    assert collect(bucket, other, episodes=5, resume=True).tally.episodes == 1
    assert episodes_of(bucket, tmp_path, "back") == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_nothing_is_lost_while_the_link_is_cut_and_a_full_spool_waits(
    config, proxy, bucket, tmp_path
):
    lines: list[str] = []
    cut_at: list[int] = []

    def watch(progress):
        lines.append(progress.line())
        if progress.tally.segments >= 1 and not cut_at:
            cut_at.append(len(lines))
            proxy.is_cut = True
        if "waiting for uploads: " in lines[-1] and "cannot be reached now" in lines[-1]:
            proxy.is_cut = False

    config = replaced(config, spool_bytes=15_000)
    report = collect(bucket, config, episodes=6, on_progress=watch)
    assert any("waiting for uploads: " in line for line in lines)
    assert (report.tally.episodes, report.unsent) == (6, "")
    assert episodes_of(bucket, tmp_path, "back") == list(range(6))


def test_a_stop_while_the_link_is_cut_keeps_the_spool_and_says_so(config, proxy, bucket, tmp_path):
    stop = []

    def watch(progress):
        proxy.is_cut = proxy.is_cut or progress.tally.episodes >= 1
        if "cannot be reached now" in progress.line():
            stop.append(True)

    report = collect(bucket, config, episodes=4, on_progress=watch, should_stop=lambda: bool(stop))
    assert "wait in" in report.unsent
    assert f"avtd3 push {tmp_path / 'spool'} {bucket}" in report.summary()
    assert len(Dataset.open(tmp_path / "spool").segment_ids()) >= 1
    proxy.is_cut = False
    report = collect(bucket, config, episodes=4, resume=True)
    assert report.unsent == ""
    assert episodes_of(bucket, tmp_path, "back") == [0, 1, 2, 3]


def test_errors_come_before_the_first_step(config, bucket, tmp_path, monkeypatch):
    steps: list[object] = []
    with pytest.raises(ConfigError, match="no bucket"):
        collect("s3://no-bucket-here", config, episodes=1, on_progress=steps.append)
    transfer(make(tmp_path / "data", [(2,)]).path, bucket)
    with pytest.raises(SpecError, match="has another spec"):
        collect(bucket, config, episodes=1, on_progress=steps.append)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match="cannot be reached now"):
        collect(f"{bucket}/d", config, episodes=1, on_progress=steps.append)
    assert steps == []


@pytest.fixture
def publish(tmp_path, bucket):
    """Publish a new policy of the line world into the bucket."""

    def publish(seed=0):
        torch.manual_seed(seed)
        network = NetworkConfig(hidden=(8,), features=8)
        store = PolicyStore(tmp_path / "learner")
        store.publish(Actor(SPEC, network), SPEC, network, updates=seed)
        transfer(tmp_path / "learner", f"{bucket}/policies")

    return publish


def test_policies_are_picked_up_from_a_url_while_collecting(config, bucket, tmp_path, publish):
    waited: list[str] = []

    def watch(progress):
        line = progress.line()
        if f"waiting for the first policy in {bucket}/policies" in line and not waited:
            waited.append(line)
            publish(0)
        if progress.tally.policy_version == 0 and len(waited) == 1:
            waited.append(line)
            publish(1)

    config = replaced(config, driver="policy")
    report = collect(
        tmp_path / "data", config, seconds=120.0, policies=f"{bucket}/policies",
        on_progress=watch, should_stop=lambda: False if len(waited) < 2 else seen(tmp_path) >= 1,
    )  # fmt: skip
    assert len(waited) == 2
    assert report.tally.policy_version == 1
    (plan,) = (tmp_path / "data" / ".plans").glob("*.json")
    assert json.loads(plan.read_bytes())["options"]["policies"] == f"{bucket}/policies"


def seen(tmp_path):
    dataset = Dataset.open(tmp_path / "data")
    return max(dataset.episode_table().policy_version.tolist(), default=-1)


def test_evaluate_takes_the_newest_policy_or_one_by_name(bucket, publish):
    config = EvaluateConfig(world=WORLD, episodes=1)
    with pytest.raises(CheckpointError, match=r"holds no policy.*--policies"):
        evaluate(f"{bucket}/policies", config)
    for seed in (0, 1):
        publish(seed)
    report = evaluate(f"{bucket}/policies", config)
    assert (report.policy_version, report.driver) == (1, f"{bucket}/policies")
    named = f"{bucket}/policies/policy-00000000.safetensors"
    assert evaluate(named, config).policy_version == 0
    open_place(f"{bucket}/policies").delete(["LATEST.json"])
    assert evaluate(f"{bucket}/policies", config).policy_version == 1
    open_place(f"{bucket}/policies").write("policy-00000001.safetensors", b"damaged")
    with pytest.raises(UnreachableError, match="SHA-256"):
        evaluate(f"{bucket}/policies", config)


@pytest.mark.slow
def test_workers_share_a_spool(config, bucket, tmp_path):
    report = collect(bucket, replaced(config, workers=2), episodes=4)
    assert report.tally.episodes == 4
    assert len(sealed(open_place(bucket))) >= 2
    assert episodes_of(bucket, tmp_path, "back") == [0, 1, 2, 3]
    assert len(content(tmp_path / "back")) > 40
