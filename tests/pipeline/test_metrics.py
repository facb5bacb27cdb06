"""docs/metrics.md agrees with the code, and with the metrics that a run logs."""

import re
from pathlib import Path

import pytest

from avtd3.cli import main
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.metrics import FAMILIES, METRICS
from avtd3.tests.pipeline.conftest import QUICK_WORLD

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| (\S.*?) \| (\w*) \|$", re.MULTILINE)
TINY = (
    "--set=learn.log_every=2",
    "--set=learn.evaluate_every=4",
    "--set=learn.guards.every=2",
    "--set=learn.guards.layers_every=4",
    "--set=learn.network={hidden: [8, 8], features: 8}",
    "--set=learn.replay={batch_size: 4, held_out: 0.3}",
)


def avtd3(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


def table():
    found = {}
    for name, meaning, unit, better in ROW.findall(DOCUMENT.read_text()):
        assert name not in found, f"{name} is there twice"
        found[name] = (meaning.replace("&#124;", "|"), unit, better)
    return found


def test_the_tables_are_those_of_the_code():
    known = {**METRICS, **FAMILIES}
    assert table() == {name: (m.meaning, m.unit, m.better) for name, m in known.items()}


@pytest.mark.slow
def test_a_run_logs_every_metric(tmp_path):
    data, run, policies = (tmp_path / name for name in ("data", "run", "policies"))
    learn = ("learn", data, "--policies", policies, *TINY)
    avtd3("collect", data, "--driver", "random", "--episodes", 6, "--workers", 1, *QUICK_WORLD)
    avtd3(*learn, "--run", tmp_path / "first", "--updates", 2)
    more = ("--policies", policies, "--episodes", 4, "--workers", 1, "--seed", 2)
    avtd3("collect", data, "--driver", "policy", *more, *QUICK_WORLD)
    avtd3(*learn, "--run", run, "--updates", 8)
    logged = read_log(run / "events").curves
    names = {next((f for f in FAMILIES if name.startswith(f)), name) for name in logged}
    assert sorted(names) == sorted(table())
    assert list(logged["critic/loss"].updates) == [2, 4, 6, 8]
    assert list(logged["weights/actor.head.layers.0"].updates) == [4, 8]
