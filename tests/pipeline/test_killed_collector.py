"""``kill -9`` of a collector at random moments: what it published stays sound and complete."""

import random
import threading

import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json, wait_until


def published(path):
    """Ids of the published segments."""
    return Dataset.open(path).segment_ids() if (path / "zarr.json").exists() else []


def held(path):
    """Index and length of every published episode."""
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
@pytest.mark.timeout(1200)
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
        if chance.random() < 0.8:  # most while it writes, some while it starts
            count = len(published(data))
            wait_until(lambda n=count: len(published(data)) > n, "a segment", running=(collector,))
        threading.Event().wait(chance.uniform(0.0, 1.0))
        collector.kill()
        now = held(data)
        assert now[: len(before)] == before, "a published episode was lost or altered"
        if now:
            assert audit([data], AuditConfig()).verdict == "ok"
        before = now
    # One worker publishes in order: what is missing can only be the tail.
    assert [index for index, _ in before] == list(range(len(before)))
    total = len(before) + 3
    avtd3_json(*plan, "--episodes", total)
    assert [index for index, _ in held(data)] == list(range(total))
