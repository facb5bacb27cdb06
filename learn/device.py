"""Keeping freed memory in the process, so that an update need not ask the system for it again.

glibc takes every large block from the system and gives it back when it is freed. An update from
images frees and takes some hundred megabytes, and the system clears each page anew: 12 % of the
update's time (`bench/learn_bench.py`). The process then holds on to its peak.
"""

import ctypes
from pathlib import Path

import torch

from avtd3.store.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse large blocks of memory, for the rest of its life.

    Returns:
        Whether the C library can; others than glibc are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


PRECISIONS = ("auto", "fp32", "bf16")
_NATIVE_BF16 = {"amx_bf16", "avx512_bf16"}


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"learn.device is {name!r}, expected auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"learn.device is {name!r}, but this machine has no such GPU; use auto")
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What the matrix products run in: bfloat16, or None for float32.

    ``auto`` takes bfloat16 where the hardware multiplies it. Elsewhere it is emulated, and slower
    than float32.
    """
    if precision == "bf16":
        return torch.bfloat16
    if precision == "auto" and _multiplies_bf16(device):
        return torch.bfloat16
    return None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return bool(_NATIVE_BF16.intersection(flags.split()))
