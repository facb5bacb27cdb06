"""Exported policies answer as the original ones, for raw inputs and any batch size."""

import dataclasses
import json
import re
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from avtd3.learn import policy_export
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy import Policy
from avtd3.learn.policy_export import CardConfig, describe_policy, export_policy
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.dataset import Dataset
from avtd3.store.errors import CheckpointError, ConfigError, MissingPackageError
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.tests.store.segments import make_episode, write_dataset

IMAGE = ImageSpec(height=36, width=40, stack=2)
SPEC = EpisodeSpec(
    image=IMAGE,
    vector_names=("speed_mps", "heading_rad"),
    vector_scales=(20.0, 0.5),
    action_names=("steer", "gas"),
    action_low=(-1.0, -0.5),
    action_high=(1.0, 5.0),
)
VECTOR = dataclasses.replace(SPEC, image=None)
SMALL = NetworkConfig(hidden=(8,), features=16)


def publish(folder, spec, config=SMALL, limit=1.0):
    torch.manual_seed(0)
    actor = Actor(spec, config)
    for module in actor.modules():  # statistics that are not the initial ones
        if isinstance(module, torch.nn.BatchNorm2d):
            statistics = dict(module.named_buffers())
            statistics["running_mean"].uniform_(-5.0, 5.0)
            statistics["running_var"].uniform_(0.5, 2.0)
    store = PolicyStore(folder)
    store.publish(actor, spec, config, updates=5, action_limit=limit)
    return Policy.load(folder)


def inputs(spec, count):
    rng, found = np.random.default_rng(7), {}
    if spec.image is not None:
        shape = (count, *spec.image.observation_shape)
        found["frames"] = rng.integers(0, 256, shape, np.uint8)
    if spec.vector_size:
        found["vector"] = rng.normal(0.0, 30.0, (count, spec.vector_size)).astype(np.float32)
    return found


def assert_same(policy, given, actions):
    scales = np.float32(policy.spec.vector_scales)
    for row in range(len(actions)):
        vector = given["vector"][row] / scales if "vector" in given else None
        wanted = policy.act(given["frames"][row] if "frames" in given else None, vector)
        np.testing.assert_allclose(actions[row], wanted, rtol=0.0, atol=1e-5)


CASES = [
    pytest.param(SPEC, SMALL, 0.5, id="image and vector, limited actions"),
    pytest.param(VECTOR, SMALL, 1.0, id="vector"),
    *(
        pytest.param(spec, dataclasses.replace(SMALL, **changes), 1.0, marks=pytest.mark.slow)
        for spec, changes in (
            (dataclasses.replace(SPEC, vector_names=(), vector_scales=()), {}),
            (SPEC, {"conv_norm": "batch", "activation": "leaky_relu"}),
            (SPEC, {"conv_norm": "layer", "feature_clamp": 0.5}),
            (SPEC, {"feature_activation": "tanh", "feature_norm": False, "hidden": (8, 8, 8)}),
        )
    ),
]


@pytest.mark.parametrize(("spec", "config", "limit"), CASES)
def test_onnx_answers_as_the_policy(tmp_path, spec, config, limit):
    policy = publish(tmp_path / "policies", spec, config, limit)
    report = export_policy(tmp_path / "policies", tmp_path / "p.onnx", "onnx")
    assert report.difference <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    assert [entry.name for entry in session.get_inputs()] == list(inputs(spec, 1))
    assert {entry.shape[0] for entry in session.get_inputs()} == {"batch"}
    for count in (1, 3, 8):
        given = inputs(spec, count)
        (actions,) = session.run(["action"], given)
        assert actions.shape == (count, 2)
        assert_same(policy, given, actions)
    about = json.loads(session.get_modelmeta().custom_metadata_map["avtd3"])
    assert about == describe_policy(policy)
    assert EpisodeSpec.from_json(about["spec"]) == spec


@pytest.mark.parametrize("spec", [SPEC, VECTOR], ids=["image and vector", "vector"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torch_answers_as_the_policy(tmp_path, spec):
    policy = publish(tmp_path / "policies", spec, limit=0.5)
    export_policy(tmp_path / "policies", tmp_path / "p.pt2", "torch")
    module = torch.export.load(tmp_path / "p.pt2").module()
    for count in (1, 6):
        given = inputs(spec, count)
        with torch.no_grad():
            actions = module(*map(torch.from_numpy, given.values())).numpy()
        assert_same(policy, given, actions)


def test_an_export_that_answers_differently_is_not_written(tmp_path, monkeypatch):
    publish(tmp_path / "policies", VECTOR)
    monkeypatch.setattr(policy_export, "_torch_runner", lambda _: lambda inputs: inputs[0] * 0.0)
    with pytest.raises(CheckpointError, match="nothing was written"):
        export_policy(tmp_path / "policies", tmp_path / "p.pt2", "torch")
    assert not (tmp_path / "p.pt2").exists()
    assert not (tmp_path / "p.md").exists()


def card(tmp_path, **config):
    export_policy(tmp_path / "run" / "policies", tmp_path / "p.pt2", "torch", CardConfig(**config))
    return (tmp_path / "p.md").read_text()


def test_the_card_says_what_is_known(tmp_path):
    policy = publish(tmp_path / "run" / "policies", VECTOR)
    text = card(tmp_path)
    assert policy.digest in text
    assert "Licence: not stated" in text
    assert "no run was given" in text
    assert "no run and no dataset was given" in text
    data = write_dataset(tmp_path / "data", VECTOR, [make_episode(VECTOR, 4)])
    config = {"datasets": [str(data.path), "gone"], "learn": {"td3": {"tau": 0.005}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    scores = {
        "policy_digest": policy.digest,
        "success_rate": 0.9,
        "success_interval": [0.699, 0.972],
        "interrupted": False,
        "world": "road|\n# x",
        "rows": [],
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    text = card(tmp_path, evaluation=tmp_path / "scores.json", licence="CC BY 4.0\n# x")
    assert "Licence: CC BY 4.0 # x\n" in text
    assert data.snapshot().digest in text
    assert re.search(r"\| gone \| - \| - \| not found", text)
    assert '"tau": 0.005' in text
    assert "| success rate | 0.9 |" in text
    assert "| success interval (95 %) | 0.699 to 0.972 |" in text
    assert text.count("\n# ") == 0


def test_an_evaluation_of_another_policy_is_refused(tmp_path):
    publish(tmp_path / "run" / "policies", VECTOR)
    digest = Policy.load(tmp_path / "run" / "policies").digest
    for content, says in (
        ('{"policy_digest": "x"}', "expected"),
        ("{", "cannot be read"),
        (f'{{"policy_digest": "{digest}", "success_interval": [null, 1]}}', "no number"),
        (f'{{"policy_digest": "{digest}", "success_rate": 1{"0" * 400}}}', "no number"),
    ):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(ConfigError, match=says):
            card(tmp_path, evaluation=tmp_path / "scores.json")
    assert not (tmp_path / "p.pt2").exists()


def test_without_onnx_one_line_names_the_extra(tmp_path, monkeypatch):
    publish(tmp_path / "policies", VECTOR)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"\[onnx\]"):
        export_policy(tmp_path / "policies", tmp_path / "p.onnx", "onnx")


def test_the_card_never_replaces_the_policy(tmp_path):
    publish(tmp_path / "policies", VECTOR)
    with pytest.raises(ConfigError, match="model card"):
        export_policy(tmp_path / "policies", tmp_path / "p.md", "torch")


def test_the_dataset_of_the_card_is_that_of_the_option(tmp_path):
    publish(tmp_path / "run" / "policies", VECTOR)
    data = write_dataset(tmp_path / "data", VECTOR, [make_episode(VECTOR, 4)])
    assert Dataset.open(data.path).snapshot().digest in card(tmp_path, data=(data.path,))
