"""Audits of collected data have no findings: all drivers, all kinds of roads, and Gymnasium."""

import pytest
import torch

from avtd3.collect.collector import collect
from avtd3.collect.maps.scenarios import SCENARIOS
from avtd3.configs.load import load_section
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset

DRIVERS = ("expert", "random", "expert+noise=0.4", "random+gaussian=0.5", "policy", "policy+noise")
MIXTURE = ",".join(f"1:{driver}" for driver in DRIVERS)
SMALL = {"networks": 3, "route_length_m": 80.0, "npcs": 4, "time_limit_s": 12.0}


def collected(path, *, driver, episodes, seed=0, policies=None, **changes):
    settings = {"driver": driver, "seed": seed, "workers": 1}
    settings |= {f"scenario.{name}": value for name, value in changes.items()}
    config = load_section("collect", None, [f"collect.{k}={v}" for k, v in settings.items()])
    return collect(path, config, episodes=episodes, policies=policies)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Publish an untrained policy for the spec of the built-in simulator."""
    folder = tmp_path_factory.mktemp("policies")
    collected(folder / "data", driver="random", episodes=1, number=1, **SMALL)
    torch.manual_seed(0)
    config = NetworkConfig(hidden=(8,), features=8)
    spec = Dataset.open(folder / "data").spec
    PolicyStore(folder / "p").publish(Actor(spec, config), spec, config, updates=0)
    return folder / "p"


def findings(path):
    report = audit([path], AuditConfig(scheduler="sync", strict=True))
    assert report.total.steps > 0
    return [(f.check, f.episode, f.message) for f in report.findings]


def test_a_mixture_of_all_drivers_is_clean(tmp_path, policies):
    collected(tmp_path / "d", driver=MIXTURE, episodes=8, policies=policies, number=5, **SMALL)
    assert findings(tmp_path / "d") == []


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("scenario", [scenario.number for scenario in SCENARIOS])
def test_every_driver_is_clean_on_every_kind_of_road(tmp_path, policies, scenario, driver):
    collected(tmp_path / "d", driver=driver, episodes=4, policies=policies, number=scenario, seed=7)
    assert findings(tmp_path / "d") == []


@pytest.mark.parametrize(
    "name",
    [
        "Pendulum-v1",
        "InvertedPendulum-v5",
        "HumanoidStandup-v5",
        pytest.param("CarRacing-v3", marks=pytest.mark.slow),
    ],
)
def test_data_from_gymnasium_are_clean(tmp_path, name):
    gymnasium = pytest.importorskip("gymnasium")
    try:
        gymnasium.make(name).close()
    except gymnasium.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    config = load_section("collect", None, [f"collect.world=gym:{name}", "collect.driver=random"])
    collect(tmp_path / "d", config, steps=250)
    assert findings(tmp_path / "d") == []
