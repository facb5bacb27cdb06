from pathlib import Path

import numpy as np
import pytest
import torch

from avtd3.learn.device import autocast_type, memory_errors, pick_device
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
    for name in ("quantum", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match="device is"):
            pick_device(name)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(1 << 50),
        lambda: np.empty(1 << 50),
        lambda: torch.empty(1 << 62, 1 << 62),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried ...")),
    ],
    ids=["torch", "numpy", "sizes", "cuda"],
)
def test_a_lack_of_memory_says_what_was_asked_for(ask):
    with (
        pytest.raises(MemoryError, match="for networks of 5 layers; lower hidden"),
        memory_errors("networks of 5 layers; lower hidden"),
    ):
        next(ask())


def test_other_errors_are_not_about_memory():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("networks"):
        torch.ones(2, 3) @ torch.ones(2, 3)
