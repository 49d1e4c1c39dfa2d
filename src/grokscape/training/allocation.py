"""How the C library treats memory that PyTorch gives back."""

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of handing them back to the system.

    A training step frees and asks again for the same few megabytes hundreds of times; with the default settings each
    time costs page faults, about a quarter of a step of the quadratic network on two cores. Does nothing where the C
    library has no mallopt. Changes no number.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 2**30)
