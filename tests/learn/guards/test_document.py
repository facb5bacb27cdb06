"""docs/guards.md lists every guard with its settings, their defaults and its test."""

import re
from pathlib import Path

import pytest

from avtd3.learn.guards.config import GUARDS, ActionLimitConfig, CnnRateConfig, GuardConfig
from avtd3.learn.td3 import ClipConfig

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "guards.md").read_text()
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
CONFIG = GuardConfig()


def rows(section):
    text = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def alerts():
    found = [row for row in rows("Alerts") if not row[0].startswith("---")]
    return {row[0].strip("`"): row for row in found}


def number(cell):
    return float(cell.replace(" ", "").replace("1/64", "0.015625"))


def test_every_guard_is_there():
    assert alerts().keys() == GUARDS.keys()


def test_every_test_that_is_named_is_there():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 15
    assert [name for name in sorted(named) if f"def {name}(" not in TESTS] == []


@pytest.mark.parametrize("name", sorted(GUARDS))
def test_the_limits_are_the_defaults(name):
    _, _, setting, warn, serious, stop, *_ = alerts()[name]
    reported = [number(cell) for cell in (warn, serious, stop) if cell not in ("", "any")]
    fields = re.findall(r"`(\w+)`", setting)
    defaults = {
        "grad_norm": CONFIG.grad_norm,
        "actor_loss_ratio": (CONFIG.actor_loss_ratio, 10 * CONFIG.actor_loss_ratio),
        "critic_loss_limit": (CONFIG.critic_loss_limit, 10 * CONFIG.critic_loss_limit),
        "q_margin": (CONFIG.q_margin, 1.0, 10.0),
        "max_skipped": (1.0, CONFIG.max_skipped),
    }
    expected = [x for field in fields for x in defaults.get(field) or (getattr(CONFIG, field),)]
    assert reported == expected


def test_the_settings_of_the_actions_are_the_defaults():
    owners = {"rate": CnnRateConfig(), "action_limit": ActionLimitConfig(), "td3": ClipConfig()}
    owners |= {"on_stop": CONFIG, "max_rollbacks": CONFIG}
    reported = 0
    for _, _, settings, *_ in rows("Actions"):
        config = next((c for key, c in owners.items() if settings.startswith(f"`{key}")), None)
        for name, value in re.findall(r"`(?:\w+\.)*(\w+)` ([\d./ ]*\d|true)", settings):
            default = getattr(config, name)
            assert default == (True if value == "true" else number(value)), name
            reported += 1
    assert reported == 17
