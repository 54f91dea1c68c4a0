"""What every relayed socket has in common, with real sockets."""

import errno
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sshunt.mux import frames
from sshunt.relay.sockets import (
    KEEPALIVE_IDLE_S,
    RESERVED_DESCRIPTORS,
    close_with_reset,
    error_of,
    is_reserved,
    keep_alive,
    keep_heap,
    reset_code,
    set_priority,
    without_delay,
)
from tests.unit.relay.ends import DEADLINE_S, accept, listen, read_all


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with listen() as listener:
        near = socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)
        far = accept(listener)
    with near, far:
        yield near, far


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, frames.RESET_REFUSED),
        (errno.EHOSTUNREACH, frames.RESET_HOST_UNREACHABLE),
        (errno.ENETUNREACH, frames.RESET_NET_UNREACHABLE),
        (errno.ETIMEDOUT, frames.RESET_TIMED_OUT),
        (errno.ECONNRESET, frames.RESET_ABORTED),
        (errno.EPIPE, frames.RESET_ABORTED),
        (errno.EMFILE, frames.RESET_NO_RESOURCES),
        (errno.EACCES, frames.RESET_NOT_PERMITTED),
        (errno.EINVAL, frames.RESET_OTHER),
        (0, frames.RESET_OTHER),
    ],
)
def test_the_other_end_is_told_what_the_kernel_told_us(number: int, code: int) -> None:
    assert reset_code(number) == code


def test_a_failed_connection_s_error_is_told_once() -> None:
    with listen() as free:
        address = free.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            sock.settimeout(DEADLINE_S)
            with pytest.raises(ConnectionRefusedError):
                sock.connect(address)
            number = errno.ECONNREFUSED
        assert reset_code(number) == frames.RESET_REFUSED
        assert error_of(sock) == 0


def test_a_reset_connection_s_error_is_told_once(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    close_with_reset(far)
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert error_of(near) == 0


def test_a_hard_close_is_a_reset_and_drops_what_is_unsent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    far.sendall(b"x" * 1000)
    close_with_reset(far)
    with pytest.raises(ConnectionResetError):
        read_all(near)
    assert far.fileno() == -1


def test_a_connection_that_the_peer_has_reset_can_be_closed_hard(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    close_with_reset(far)
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    close_with_reset(near)
    assert near.fileno() == -1


def test_urgent_bytes_keep_their_place_in_the_stream(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    without_delay(near)
    far.sendall(b"one ")
    far.send(b"!", socket.MSG_OOB)
    far.sendall(b" two")
    far.close()
    data = b""
    while part := near.recv(100):
        data += part
    assert data == b"one ! two"
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_a_listening_socket_was_told_its_connections_have_too() -> None:
    with listen() as listener:
        without_delay(listener)
        keep_alive(listener)
        with socket.create_connection(listener.getsockname()), accept(listener) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                assert idle_s == KEEPALIVE_IDLE_S


def test_a_socket_that_has_died_is_asked_for_no_keepalive_without_an_error() -> None:
    closed = socket.socket()
    closed.close()
    keep_alive(closed)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_priority_is_set_where_it_may_be_and_refused_without_an_error() -> None:
    so_priority = 12
    with socket.socket() as sock:
        set_priority(sock, 3)
        assert sock.getsockopt(socket.SOL_SOCKET, so_priority) == 3
    closed = socket.socket()
    closed.close()
    set_priority(closed, 3)


# --- descriptors ----------------------------------------------------------------------------------


def test_the_last_descriptors_are_reserved() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        pytest.skip("there is no limit")
    assert not is_reserved(limit - RESERVED_DESCRIPTORS - 1)
    assert is_reserved(limit - RESERVED_DESCRIPTORS)
    assert is_reserved(limit - 1)
    assert not is_reserved(limit)  # no such number is ever given


def said_by(code: str) -> str:
    command = [sys.executable, "-c", f"import resource, sys\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_limit_of_descriptors_is_raised_as_far_as_it_may_be() -> None:
    code = """
from sshunt.relay.sockets import raise_descriptor_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
raise_descriptor_limit()
"""
    assert said_by(code) == "True"


def test_a_descriptor_limit_without_end_reserves_nothing() -> None:
    code = """
from sshunt.relay import sockets
resource.getrlimit = lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
print(sockets.is_reserved(5))
"""
    assert said_by(code) == "False"


def test_a_kept_heap_takes_no_memory() -> None:
    def resident_kib() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() // 1024

    before = resident_kib()
    keep_heap()
    assert resident_kib() - before < 2048
