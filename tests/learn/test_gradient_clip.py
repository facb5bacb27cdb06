import math

import pytest
import torch
from torch import nn

from avtd3.learn.td3 import ClipConfig, clip_gradients
from avtd3.store.errors import ConfigError


def parameter(*gradient):
    tensor = nn.Parameter(torch.zeros(len(gradient)))
    tensor.grad = torch.tensor(gradient)
    return tensor


def test_joint_scope_limits_the_norm_of_all_together():
    cnn, mlp = [parameter(3.0, 0.0)], [parameter(0.0), parameter(4.0)]
    norms = clip_gradients(cnn, mlp, 1.0, ClipConfig())
    assert norms.before["cnn"].item() == 3.0
    assert norms.before["mlp"].item() == 4.0
    assert norms.after["cnn"].item() == pytest.approx(0.6)
    assert norms.after["mlp"].item() == pytest.approx(0.8)
    assert math.hypot(norms.after["cnn"].item(), norms.after["mlp"].item()) <= 1.0
    assert norms.clipped.item() == 1.0


def test_per_module_scope_limits_each_by_itself():
    cnn, mlp = [parameter(3.0)], [parameter(0.5)]
    norms = clip_gradients(cnn, mlp, 1.0, ClipConfig(scope="per_module"))
    assert norms.after["cnn"].item() == pytest.approx(1.0)
    assert norms.after["cnn"].item() <= 1.0
    assert norms.after["mlp"].item() == 0.5
    assert norms.clipped.item() == 1.0


def test_small_gradients_stay_as_they_are():
    mlp = [parameter(0.3, 0.4)]
    norms = clip_gradients([], mlp, 1.0, ClipConfig())
    assert norms.clipped.item() == 0.0
    assert torch.equal(mlp[0].grad, torch.tensor([0.3, 0.4]))
    assert norms.before.keys() == {"mlp"}


def test_switched_off_it_still_measures():
    mlp = [parameter(30.0, 40.0)]
    norms = clip_gradients([], mlp, 1.0, ClipConfig(enabled=False))
    assert norms.before["mlp"].item() == norms.after["mlp"].item() == 50.0
    assert norms.clipped.item() == 0.0


def test_another_order_of_the_norm():
    norms = clip_gradients([], [parameter(3.0, -5.0)], 1.0, ClipConfig(norm_type=1.0))
    assert norms.before["mlp"].item() == 8.0


def test_gradients_that_are_not_finite_are_reported():
    assert not clip_gradients([], [parameter(math.nan)], 1.0, ClipConfig()).finite
    assert not clip_gradients([parameter(math.inf)], [parameter(1.0)], 1.0, ClipConfig()).finite


@pytest.mark.parametrize(
    "bad", [{"actor_max_norm": 0.0}, {"norm_type": math.inf}, {"scope": "all"}]
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ClipConfig(**bad)
