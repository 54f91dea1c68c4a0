"""Calls into a library that may end its process, or never come back."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import sshunt
from sshunt.helper import nftables
from sshunt.helper.nftables import _in_a_child
from sshunt.helper.protocol import KernelError, Refusal


def crash() -> bytes:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # not pytest's, which says so on stderr
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def leave() -> bytes:
    ctypes.CDLL(None)._exit(1)
    return b""


def sleep() -> bytes:
    time.sleep(60)
    return b""


def broken(work: object) -> KernelError:
    before = psutil.Process().children()
    with pytest.raises(KernelError) as caught:
        _in_a_child(work)  # type: ignore[arg-type]
    assert not set(psutil.Process().children()) - set(before)
    return caught.value


def test_the_result_of_the_work_comes_back() -> None:
    assert _in_a_child(lambda: b"") == b""
    assert _in_a_child(lambda: b"no such table") == b"no such table"


def test_a_crash_is_told_by_its_name() -> None:
    error = broken(crash)
    assert (error.kind, error.message) == (Refusal.CRASHED, "libnftables died of SIGSEGV")


def test_a_library_that_ends_its_process_does_not_end_ours() -> None:
    error = broken(leave)
    assert error.kind is Refusal.CRASHED
    assert error.message == "libnftables ended its process (status 1)"


def test_work_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "CALL_DEADLINE_S", 0.1)
    assert broken(sleep).kind is Refusal.STUCK


#: Asks for a child where none may be had: as a user of whom there are too many processes already,
#: or with one descriptor too few for a pipe.
_WITHOUT = """
import os, resource, sys
sys.path.append(sys.argv[1])
from sshunt.helper.nftables import _in_a_child
from sshunt.helper.protocol import KernelError
kind = getattr(resource, sys.argv[2])
opened = len(os.listdir("/proc/self/fd"))
limits = resource.getrlimit(kind)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
resource.setrlimit(kind, (int(sys.argv[3]), limits[1]))
for _ in range(3):
    try:
        _in_a_child(lambda: b"")
    except KernelError as error:
        print(error.kind.value, error.message)
resource.setrlimit(kind, limits)
print(len(os.listdir("/proc/self/fd")) - opened)
"""


@pytest.mark.parametrize(
    ("limit", "number", "why"),
    [
        ("RLIMIT_NPROC", "0", "Resource temporarily unavailable"),
        ("RLIMIT_NOFILE", "4", "Too many open files"),
    ],
)
def test_a_child_that_can_t_be_had_is_told_and_leaves_no_descriptor(
    limit: str, number: str, why: str
) -> None:
    source = str(Path(sshunt.__path__[0]).parent)
    words = [sys.executable, "-I", "-S", "-B", "-c", _WITHOUT, source, limit, number]
    said = subprocess.check_output(words, text=True).splitlines()
    assert said == 3 * [f"kernel no process for libnftables: {why}"] + ["0"]
