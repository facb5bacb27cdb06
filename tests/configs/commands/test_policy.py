"""`avtd3 policy`, through the real command line."""

import json

import pytest

from avtd3.tests.project.source import ROOT

GOLDEN = ROOT / "tests" / "golden" / "policy-v1"


def test_info_says_what_a_policy_observes_and_does(avtd3):
    code, text, _ = avtd3("policy", "info", GOLDEN)
    assert code == 0
    assert "vector      speed_mps, lateral_m, heading_rad\n" in text
    assert "action      steer (-1 to 1), throttle_brake (-1 to 1)\n" in text
    code, text, _ = avtd3("policy", "info", GOLDEN, "--json")
    assert json.loads(text)["policy"]["updates"] == 7


def test_export_writes_a_file_and_a_card(avtd3, tmp_path):
    out = tmp_path / "new" / "policy.pt2"
    code, text, _ = avtd3("policy", "export", GOLDEN, out, "--to", "torch", "--licence", "MIT")
    assert code == 0
    assert "largest difference from the policy" in text
    assert out.stat().st_size > 0
    assert "Licence: MIT" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("info", "none"), "is missing"),
        (("export", GOLDEN, "p", "--to", "tflite"), "'tflite' is not one of"),
        (("export", GOLDEN, "p", "--to", "torch", "--evaluation", "none"), "cannot be read"),
        (("export", GOLDEN, ".", "--to", "torch"), "is a directory"),
    ],
)
def test_a_wrong_use_is_one_line(avtd3, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = avtd3("policy", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()
