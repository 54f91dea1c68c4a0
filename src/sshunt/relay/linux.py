"""What Linux can do and Python can't, or only since lately: by the C library's own functions.

    splice   what is in a pipe or a socket goes on to a socket or a pipe, as references to pages
    tee      what is in a pipe is in another pipe as well
    Timer    a descriptor that becomes readable after a time, exact to microseconds

ctypes finds the functions when first needed; splice needs it only before Python 3.10. splice and
tee never wait: BlockingIOError if there is nothing to take or no room for it.
"""

import os
import sys
import time
from functools import lru_cache
from typing import Any

_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK; splice(2)


@lru_cache(maxsize=1)
def _library() -> Any:
    """The C library with all of it; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
        library.tee.argtypes = (number, number, size, number)
        library.splice.argtypes = (number, pointer, number, pointer, size, number)
        library.tee.restype = library.splice.restype = ctypes.c_ssize_t
        library.timerfd_settime.argtypes = (number, number, pointer, pointer)
        library.timerfd_create.argtypes = (number, number)
    except (ImportError, OSError, AttributeError):
        return None
    return library


def can_splice() -> bool:
    """True if ``splice`` can be called. The kernel may still refuse (EINVAL, ENOSYS, EPERM)."""
    return hasattr(os, "splice") or _library() is not None


def can_tee() -> bool:
    """True if all of this module can be called."""
    return _library() is not None


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def tee(source: int, sink: int, size: int) -> int:
    """The first of what is in the pipe ``source`` is in the pipe ``sink`` as well; how many bytes,
    ``size`` at most. Raises OSError.
    """
    return _checked(_library().tee(source, sink, size, _FLAGS))


def splice(source: int, sink: int, size: int) -> int:
    """Move up to ``size`` bytes; how many it were. One of the two is a pipe. Raises OSError."""
    if hasattr(os, "splice"):
        return os.splice(source, sink, size, flags=_FLAGS)
    return _checked(_library().splice(source, None, sink, None, size, _FLAGS))


class Timer:
    """``fd`` is readable some time after ``start``, until ``start`` or ``stop``.
    timerfd_create(2). Raises OSError.
    """

    __slots__ = ("_after", "_never", "_settime", "fd")

    def __init__(self) -> None:
        import ctypes

        library = _library()
        four_longs = ctypes.c_long * 4  # struct itimerspec: interval and value, seconds and ns
        self._never = four_longs(0, 0, 0, 0)
        self._after = four_longs(0, 0, 0, 0)
        self._settime = library.timerfd_settime
        # TFD_NONBLOCK and TFD_CLOEXEC are the open(2) flags.
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.fd = _checked(library.timerfd_create(time.CLOCK_MONOTONIC, flags))

    def start(self, seconds: float) -> None:
        """Be readable in ``seconds``, more than none and less than one."""
        self._after[3] = int(seconds * 1e9)
        self._settime(self.fd, 0, self._after, None)

    def stop(self) -> None:
        """Not readable."""
        self._settime(self.fd, 0, self._never, None)
