"""Programs that stop reading, thousands of them: they harm neither this host nor each other.

neighbour ------------- client ------------- server ------------- target
                        sshunt, 2,000        sshd + agent         floods whoever connects
                        stopped readers
"""

import re
import resource
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sshunt.lab.world import Lab
from sshunt.mux.limits import LEAST_WINDOW_BYTES
from sshunt.mux.windows import MOST_PROMISED_BYTES
from tests.e2e.tunnels import Tunnel

READERS = 2000

#: What the client has besides: its objects for each connection, what the allocator does not return.
SLACK_BYTES = 48 * 1024 * 1024

#: More than any of them could keep before: a window of 256 KiB, and small buffers of kernels.
ENOUGH_BYTES = 1_000_000

#: More than proves that somebody reads.
DOWNLOAD_BYTES = 20_000_000


class Flood:
    """A server that sends ENOUGH_BYTES to each of its callers, as fast as they take it."""

    def __init__(self, lab: Lab) -> None:
        self._listener = lab.target.listen(lab.target.v4, 0)
        self._listener.listen(READERS)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.moved_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            left: dict[socket.socket, int] = {}
            while not self._over.is_set():
                for key, _ in selector.select(0.1):
                    if key.fileobj is self._listener:
                        caller, _ = self._listener.accept()
                        caller.setblocking(False)
                        left[caller] = ENOUGH_BYTES
                        selector.register(caller, selectors.EVENT_WRITE)
                        continue
                    caller = key.fileobj  # type: ignore[assignment]
                    with suppress(BlockingIOError):
                        sent = caller.send(bytes(min(left[caller], 65536)))
                        self.moved_bytes += sent
                        left[caller] -= sent
                    if not left[caller]:
                        selector.unregister(caller)
            for sock in (self._listener, *left):
                sock.close()


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """This process has both ends of each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 3 * READERS:
        pytest.skip("a process may not have so many descriptors here")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settled(tunnel: Tunnel, flood: Flood) -> None:
    """Wait until nothing moves any more."""
    before = -1
    while before != flood.moved_bytes:
        before = flood.moved_bytes
        assert tunnel.process.poll() is None
        threading.Event().wait(1.0)


def test_two_thousand_stopped_readers_cost_what_was_promised_and_others_go_on(
    lab: Lab, tunnel: Tunnel
) -> None:
    # Kernels would take megabytes for each of them first.
    lab.client.write_sysctl("net/ipv4/tcp_wmem", "4096 16384 65536")
    before = resident_bytes(tunnel.process.pid)
    flood = Flood(lab)
    stopped = []
    try:
        for _ in range(READERS):
            stopped.append(lab.client.connect(lab.target.v4, flood.port))
        settled(tunnel, flood)
        grown = resident_bytes(tunnel.process.pid) - before
        print(f"grown by {grown / 1e6:.0f} MB, {flood.moved_bytes / 1e6:.0f} MB sent")
        assert flood.moved_bytes > READERS * LEAST_WINDOW_BYTES
        assert grown <= MOST_PROMISED_BYTES + READERS * LEAST_WINDOW_BYTES + SLACK_BYTES

        url = f"http://{lab.target.v4}/bytes/{DOWNLOAD_BYTES}"
        argv = ["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{size_download}", url]
        assert lab.client.run(argv).stdout == str(DOWNLOAD_BYTES)
    finally:
        flood.close()
        for sock in stopped:
            sock.close()
