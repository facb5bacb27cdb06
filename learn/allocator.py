"""Keeping freed memory in the process, so that an update need not ask the system for it again.

glibc takes every large block from the system and gives it back when it is freed. An update from
images frees and takes some hundred megabytes, and the system clears each page anew: 12 % of the
update's time (`bench/learn_bench.py`). The process then holds on to its peak.
"""

import ctypes

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
