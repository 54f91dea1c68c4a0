"""A small web server to fetch from, as a program of its own: python -m sshunt.lab.servers PORT.

    GET  /            a page that says which host it comes from, and who asked
    GET  /bytes/N     N bytes, always the same ones: see ``payload``
    POST /sha256      the SHA-256 of what was sent, in hex

It is fast enough (a GB/s and more) that a tunnel in front of it is what a download measures. It
prints "ready" once it listens, on IPv4 and IPv6.
"""

import hashlib
import http.server
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

WEB_PORT = 80

_BLOCK_BYTES = 1024 * 1024


def payload(size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes in blocks: random, but the same in every process.

    The blocks repeat with a length that no buffer has, so that a byte that is lost, doubled or
    moved between blocks does not go unnoticed.
    """
    block = random.Random(1).randbytes(_BLOCK_BYTES - 1009)
    left = size
    while left > 0:
        yield block[:left]
        left -= len(block)


def write_payload(path: Path, size: int) -> None:
    """Make a file of ``payload(size)``."""
    with path.open("wb") as file:
        file.writelines(payload(size))


def payload_sha256(size: int) -> str:
    """Return the SHA-256 of ``payload(size)`` in hex."""
    digest = hashlib.sha256()
    for block in payload(size):
        digest.update(block)
    return digest.hexdigest()


class OfficeWebServer(http.server.ThreadingHTTPServer):
    """Listens on every address, IPv4 and IPv6."""

    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        """Bind for IPv4 as well, whatever net.ipv6.bindv6only says."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about a client that hung up: that is a thing to show here, not a failure."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class OfficePages(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a page or with bytes."""
        if self.path.startswith("/bytes/") and self.path[7:].isdecimal():
            size = int(self.path[7:])
            self._start_answer(size, "application/octet-stream")
            for block in payload(size):
                self.wfile.write(block)
        elif self.path == "/":
            peer = self.client_address[0].removeprefix("::ffff:")
            here = self.connection.getsockname()[0].removeprefix("::ffff:")
            self._answer(f"Hello from the office: this is {here}, and you are {peer}.\n")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Read what is sent and answer with its digest."""
        digest = hashlib.sha256()
        left = int(self.headers.get("Content-Length", "0"))
        while left > 0 and (block := self.rfile.read(min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        self._answer(digest.hexdigest() + "\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: who fetches sees the answer."""

    def _answer(self, text: str) -> None:
        body = text.encode()
        self._start_answer(len(body), "text/plain; charset=utf-8")
        self.wfile.write(body)

    def _start_answer(self, size: int, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()


def main() -> None:
    """Serve until killed."""
    with OfficeWebServer(("::", int(sys.argv[1])), OfficePages) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
