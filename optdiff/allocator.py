"""What becomes of memory that a CPU's programs, and their compiler, have freed.

This file owns how the C library of this process is told so, and nothing else.
"""

import ctypes
import platform
from functools import cache
from typing import Any

from jax import monitoring

# mallopt(3), with the numbers of glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
SETTINGS = (
    (MMAP_MAX, 0),  # large blocks come from the heap, which outlives them
    (TRIM_THRESHOLD, 2**31 - 1),  # and its end goes back to the system above 2 GB only
    (ARENA_MAX, 1),  # of which there is one: the others may not grow past 64 MB
)

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX tells its listeners when XLA has compiled a program."""

WORTH_IT = 1.0
"""Seconds of a compilation after which there is memory to give back."""


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
    library = _glibc()
    return library is not None and all([library.mallopt(*setting) for setting in SETTINGS])


@cache
def give_back_after_compiling() -> bool:
    """Have the process give back, after each compilation of a second and more, what it has freed.

    XLA's compiler takes a gigabyte for the UNet of Stable Diffusion 1.5. glibc would keep 0.8 of
    it, and the program's temporaries come on top.

    Returns:
      Whether it will be done: False with another C library, which changes nothing.

    >>> give_back_after_compiling() in (True, False)
    True
    """
    library = _glibc()
    if library is None:
        return False

    def trim(event: str, seconds: float, **rest: Any) -> None:
        if event == COMPILED and seconds >= WORTH_IT:
            library.malloc_trim(0)

    monitoring.register_event_duration_secs_listener(trim)
    return True


def _glibc() -> Any:
    """The process's C library, if it is the one that knows these calls."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
