from pathlib import Path

import pytest
import torch

from avtd3.learn.device import autocast_type, pick_device
from avtd3.store.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_vnni", None),
        ("flags : fpu amx_bf16 amx_tile", torch.bfloat16),
        ("flags : avx512_bf16", torch.bfloat16),
        ("", None),
    ],
)
def test_auto_takes_bf16_where_the_cpu_multiplies_it(monkeypatch, flags, expected):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\n{flags}\n")
    assert autocast_type("auto", CPU) is expected


def test_auto_without_a_list_of_the_cpus_flags(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert autocast_type("auto", CPU) is None


def test_a_named_precision_is_taken():
    assert autocast_type("bf16", CPU) is torch.bfloat16
    assert autocast_type("fp32", CPU) is None


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("quantum", "cuda:99"):
        with pytest.raises(ConfigError, match="device is"):
            pick_device(name)
