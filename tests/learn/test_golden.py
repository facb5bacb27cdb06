"""Checkpoints and policies of every released format stay readable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from avtd3.learn.checkpoints import FORMAT_VERSION, list_checkpoints, load_checkpoint
from avtd3.learn.policy import FORMAT_VERSION as POLICY_VERSION
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.td3 import create_state
from avtd3.learn.trainer import train
from avtd3.tests.golden.make_checkpoint import UPDATES, golden_config, write_golden_data

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = range(1, FORMAT_VERSION + 1)
NETWORKS = ("actor", "critic", "actor_target", "critic_target")


def golden_checkpoint(version):
    (path,) = list_checkpoints(GOLDEN / f"checkpoint-v{version}")
    return path


def test_every_format_has_its_golden_files():
    found = {path.name for kind in ("checkpoint", "policy") for path in GOLDEN.glob(f"{kind}-v*")}
    wanted = {f"checkpoint-v{version}" for version in VERSIONS}
    assert found == wanted | {f"policy-v{n}" for n in range(1, POLICY_VERSION + 1)}


@pytest.mark.parametrize("version", VERSIONS)
def test_old_checkpoints_are_read_to_the_bit(tmp_path, version):
    path, config = golden_checkpoint(version), golden_config()
    spec = write_golden_data(tmp_path / "data")
    state = create_state(spec, config.network, config.td3, torch.device("cpu"), seed=1)
    noise = torch.Generator()
    metadata = load_checkpoint(path, state, noise)
    assert (metadata.updates, metadata.spec_digest) == (UPDATES, spec.digest)
    stored = safetensors.numpy.load_file(path / "tensors.safetensors")
    for name in NETWORKS:
        for key, value in getattr(state, name).state_dict().items():
            assert value.numpy().tobytes() == stored[f"{name}/{key}"].tobytes(), key
    for name, (network, optimizer) in state.networks().items():
        for number, p in enumerate(network.parameters()):
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                want = stored[f"{name}_optimizer/{number}/{moment}"]
                assert optimizer.state[p][moment].numpy().tobytes() == want.tobytes()
    assert state.value_range is not None
    assert state.value_range.numpy().tobytes() == stored["value_range"].tobytes()
    assert noise.get_state().numpy().tobytes() == stored["noise"].tobytes()
    document = json.loads((path / "checkpoint.json").read_text())
    for key, value in metadata.document().items():
        assert value == document[key], key


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_continues_from_an_old_checkpoint(tmp_path, version):
    data, run, path = tmp_path / "data", tmp_path / "run", golden_checkpoint(version)
    write_golden_data(data)
    shutil.copytree(path, run / "checkpoints" / path.name)
    (run / "config.json").write_text("{}")
    report = train(golden_config(UPDATES + 3), datasets=[data], run=run, resume=True)
    assert (report.updates, report.session_updates) == (UPDATES + 3, 3)
    before, after = (
        safetensors.numpy.load_file(each / "tensors.safetensors")
        for each in list_checkpoints(run / "checkpoints")
    )
    assert before.keys() == after.keys()
    assert int(after["critic_optimizer/0/step"]) == UPDATES + 3


@pytest.mark.parametrize("version", range(1, POLICY_VERSION + 1))
def test_old_policies_act_as_their_weights_say(version):
    policy = PolicyStore(GOLDEN / f"policy-v{version}").latest(None)
    assert policy is not None
    assert (policy.version, policy.updates) == (1, UPDATES)
    file = GOLDEN / f"policy-v{version}" / "policy-00000001.safetensors"
    weights = safetensors.numpy.load_file(file)
    vector = np.array([0.3, -0.5, 0.1], np.float32)
    x = vector
    for layer in range(3):
        x = weights[f"head.layers.{layer}.weight"] @ x + weights[f"head.layers.{layer}.bias"]
        x = np.tanh(x) if layer == 2 else np.maximum(x, 0.0)
    np.testing.assert_allclose(policy.act(None, vector), x, rtol=1e-5)
