"""``kill -9`` of a collector at random moments: published data stay valid and complete."""

import random
import threading

import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json, wait_until


def published(path):
    """Return the ids of the published segments."""
    return Dataset.open(path).segment_ids() if (path / "zarr.json").exists() else []


def episodes(path):
    """Return index and length of every published episode."""
    if not published(path):
        return []
    return [
        pair
        for segment in Dataset.open(path).snapshot().segments
        for pair in zip(
            segment.episode_table().index.tolist(),
            segment.episode_table().length.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_at_random_moments(tmp_path, start, kills):
    data = tmp_path / "data"
    chance = random.Random(7)
    plan = (
        "collect", data, "--seed", 5, "--resume", *QUICK_WORLD,
        "--set=collect.writer.segment_steps=300",
    )  # fmt: skip
    before: list[tuple[int, int]] = []
    for _ in range(kills):
        collector = start(*plan, "--steps", 10_000_000)
        if chance.random() < 0.8:  # mostly while it writes, sometimes while it starts
            count = len(published(data))
            wait_until(lambda n=count: len(published(data)) > n, "a segment", running=(collector,))
        threading.Event().wait(chance.uniform(0.0, 1.0))
        collector.kill()
        now = episodes(data)
        assert now[: len(before)] == before, "a published episode was lost or altered"
        if now:
            assert audit([data], AuditConfig()).verdict == "ok"
        before = now
    # One worker publishes in order, so only the last episodes can be missing.
    assert [index for index, _ in before] == list(range(len(before)))
    total = len(before) + 3
    avtd3_json(*plan, "--episodes", total)
    assert [index for index, _ in episodes(data)] == list(range(total))
