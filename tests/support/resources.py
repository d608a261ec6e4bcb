"""What a process has in use: memory, open files."""

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
    """Bytes in use: what was allocated and not freed, where the C library tells.

    The resident size also holds what is free again, and varies by megabytes with nothing lost.
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
    """Bytes that `work` leaves in use, each time it is done.

    The lesser of two: what leaks does so both times; a table of the interpreter, or of another
    library, that happens to double meanwhile (ten megabytes in a long run of tests) does not.
    """
    sizes = [memory()]
    for _ in range(2):
        work()
        sizes.append(memory())
    return min(after - before for before, after in itertools.pairwise(sizes))


def open_files() -> int:
    return psutil.Process().num_fds()
