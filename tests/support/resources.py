"""The resources that a process uses: memory, open files."""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Callable
from typing import Any

import psutil


class _MallocInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def memory() -> int:
    """Bytes that were allocated and not freed, if the C library tells.

    The resident size also counts freed memory, and varies by megabytes without a leak.
    """
    gc.collect()
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return psutil.Process().memory_info().rss
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd + 64 * sys.getallocatedblocks()


def growth(work: Callable[[], Any]) -> int:
    """Bytes that each run of `work` leaves in use.

    The smaller value of two runs: a leak grows in both. A table of the interpreter or of another
    library that happens to double (ten megabytes in a long run of tests) grows in only one.
    """
    sizes = [memory()]
    for _ in range(2):
        work()
        sizes.append(memory())
    return min(after - before for before, after in itertools.pairwise(sizes))


def open_files() -> int:
    return psutil.Process().num_fds()
