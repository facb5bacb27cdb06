"""Choose the device and the precision, and configure the memory allocator."""

import ctypes
from pathlib import Path

import torch

from avtd3.store.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16")
_NATIVE_BF16 = {"amx_bf16", "avx512_bf16"}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # see malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make this process keep large freed blocks of memory for reuse, instead of returning them.

    By default, glibc returns every large block to the system. An update from images frees and
    allocates hundreds of megabytes, and the system clears each page again, which takes 12 % of the
    update's time (`bench/learn_bench.py`). With this setting, the process keeps its peak memory.

    Returns:
        Whether the C library supports it; only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ConfigError: If there is no such device.
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
    """Return the type of matrix products: bfloat16, or None for float32.

    ``auto`` is bfloat16 if the hardware multiplies it natively. Emulation is slower than float32.
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
