"""Where a CPU's programs get their memory: kept between calls, rather than asked for every time.

This file owns how the C library of this process is told so, and nothing else.
"""

import ctypes
import platform

# mallopt(3), with the numbers of glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
SETTINGS = (
    (MMAP_MAX, 0),  # large blocks come from the heap, which outlives them
    (TRIM_THRESHOLD, 2**31 - 1),  # and its end goes back to the system above 2 GB only
    (ARENA_MAX, 1),  # of which there is one: the others may not grow past 64 MB
)


def keep_freed_memory() -> bool:
    """Have the process keep the memory that it frees, for the next time that it needs as much.

    XLA's CPU programs allocate their temporaries in every call and free them after it. glibc gives
    blocks that large back to the system, which has to hand out every page anew, zeroed: 150,000
    pages and a quarter of the time of a training step whose temporaries are 600 MB. What is kept is
    at most the process's peak. Call it before the first program runs.

    Returns:
      Whether it was done: False with another C library, which changes nothing.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all([library.mallopt(*setting) for setting in SETTINGS])
