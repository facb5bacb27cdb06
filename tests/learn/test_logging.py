import time

import pytest

from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.logging import EventWriter


@pytest.mark.parametrize("passed_s", [0, -3600])
def test_a_later_start_is_read_last_whatever_the_clock_says(tmp_path, monkeypatch, passed_s):
    now = 1_795_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for first_step in range(1, 25, 2):
        writer = EventWriter(tmp_path, first_step=first_step)
        for step in range(first_step, first_step + 5):  # three of them behind its checkpoint
            writer.write(step, {"critic/loss": float(first_step)})
        writer.close()
        now += passed_s
    curve = read_log(tmp_path).curves["critic/loss"]
    assert list(curve.updates) == list(range(1, 28))
    assert list(curve.values[:4]) == [1.0, 1.0, 3.0, 3.0]
