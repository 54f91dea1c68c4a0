"""The lab's web server: pages, bytes that are always the same, and digests of what is sent."""

import hashlib
import http.client
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.lab.hosts import python
from sshunt.lab.servers import payload, payload_sha256, write_payload

DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the server listens, on this host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    program = python("sshunt.lab.servers", str(port))
    with subprocess.Popen(program, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield port
        server.kill()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, host: str = "127.0.0.1"
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_page_says_who_asked_whom(port: int, host: str) -> None:
    page = f"Hello from the office: this is {host}, and you are {host}.\n"
    assert ask(port, "GET", "/", host=host) == (200, page.encode())


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_bytes_are_as_many_as_asked_for_and_always_the_same(port: int, size: int) -> None:
    status, body = ask(port, "GET", f"/bytes/{size}")
    assert (status, len(body)) == (200, size)
    assert hashlib.sha256(body).hexdigest() == payload_sha256(size)


def test_the_digest_of_what_was_sent_is_the_answer(port: int) -> None:
    body = b"".join(payload(2_500_000))
    assert ask(port, "POST", "/sha256", body) == (200, payload_sha256(2_500_000).encode() + b"\n")
    assert ask(port, "POST", "/sha256")[1] == hashlib.sha256().hexdigest().encode() + b"\n"


@pytest.mark.parametrize("path", ["/nothing", "/bytes/", "/bytes/x", "/bytes/-1"])
def test_there_is_nothing_else(port: int, path: str) -> None:
    assert ask(port, "GET", path)[0] == 404


def test_a_client_that_hangs_up_in_the_middle_leaves_the_server_at_work(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"GET /bytes/100000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert ask(port, "GET", "/")[0] == 200


def test_a_shorter_payload_is_the_beginning_of_a_longer_one_and_a_file_has_it(
    tmp_path: Path,
) -> None:
    long = b"".join(payload(2_000_000))
    assert long.startswith(b"".join(payload(1_500_001)))
    write_payload(tmp_path / "file", 2_000_000)
    assert (tmp_path / "file").read_bytes() == long
