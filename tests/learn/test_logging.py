"""The event files of a run, as avtd3 and TensorBoard read them."""

import dataclasses
import io
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.config import LearnConfig
from avtd3.learn.logging import RESULTS, EventWriter
from avtd3.learn.metrics import metric


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


@pytest.fixture
def shown(tmp_path):
    """What TensorBoard itself reads from a run of two starts: its data, and its experiment."""
    frame = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    settings = dataclasses.asdict(LearnConfig(updates=7, seed=3, precision="fp32"))
    for first_step in (1, 5):
        writer = EventWriter(tmp_path / "run", first_step=first_step, settings=settings)
        writer.write(first_step, {"critic/loss": 0.5 * first_step})
        writer.write_pictures(first_step, {"images/saliency": frame})
        writer.close()
    runs = EventMultiplexer({"run": str(tmp_path / "run")}).Reload()
    return frame, MultiplexerDataProvider(runs, "log")


def test_tensorboard_shows_the_pictures_of_a_run(shown, tmp_path):
    frame, provider = shown
    context = RequestContext()
    listed = provider.list_blob_sequences(context, experiment_id="x", plugin_name="images")
    assert [*listed["run"]] == ["images/saliency"]
    read = provider.read_blob_sequences(
        context, experiment_id="x", plugin_name="images", downsample=9
    )
    (*_, newest) = read["run"]["images/saliency"]
    assert newest.step == 5
    data = provider.read_blob(context, blob_key=newest.values[2].blob_key)  # after the two sizes
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), frame.transpose(1, 2, 0))
    assert [*read_log(tmp_path / "run").curves] == ["critic/loss"]


def test_tensorboard_compares_the_settings_of_runs(shown):
    _, provider = shown
    context = backend_context.Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[*range(4)]
    )
    found = list_session_groups.Handler(RequestContext(), context, "x", request).run()
    (group,) = found.session_groups
    assert group.hparams["learn.updates"].number_value == 7
    assert group.hparams["learn.seed"].number_value == 3
    assert group.hparams["learn.precision"].string_value == "fp32"
    assert group.hparams["learn.guards.enabled"].bool_value is True
    assert group.hparams["learn.network.hidden"].string_value == "(256, 256)"
    values = {value.name.tag: value.value for value in group.metric_values}
    assert values == {"critic/loss": 2.5}


def test_the_compared_metrics_exist():
    assert [tag for tag in RESULTS if metric(tag) is None] == []
