"""A child process of ours that ends when we do, however we end. Linux; elsewhere it just lives on.

PR_SET_PDEATHSIG (prctl(2)) is asked for by the child itself, between fork and exec or after a fork
without one. If its parent has died before that, nothing will come any more: so it looks.

Not here: the helper's own children (helper.nftables), for what root runs imports nothing of ours.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie() -> Callable[[], bool]:
    """What a child of this process calls first: it is killed when this process ends. False if that
    has happened already.

    To be made before the fork: everything that allocates or imports is done here.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tied() -> bool:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        return os.getppid() == parent

    return tied
