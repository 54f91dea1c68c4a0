"""A program: what arrives in the office from wherever it runs. Prints one JSON object and ends.

    what_arrives.py WEB4 WEB6 NAME    the office's machine by both families, and a name that only
                                      the office's resolver knows

"arrived" is what came back as it should; anything else is a sentence about what came instead. All
questions are asked at once, so that what does not arrive is waited for once.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

PATIENCE_S = 4.0
ATTEMPTS = 4

#: Sizes of datagrams: none, a small one, the largest of Ethernet's, several fragments, the largest.
SIZES = (0, 1, 1200, 1472, 8000, 60_000, 65_507)

UDP_ECHO_PORT = 7007


def tcp(address: str) -> str:
    with socket.create_connection((address, 80), PATIENCE_S) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return "arrived" if b"Hello from the office" in sock.makefile("rb").read() else "else"


def udp(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for size in SIZES:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_S / ATTEMPTS)
            came = None
            for _ in range(ATTEMPTS):  # as any program does that uses datagrams
                sock.sendto(size * b"x", (address, UDP_ECHO_PORT))
                with suppress(TimeoutError):
                    came = sock.recvfrom(65535)
                    break
            if came is None:
                return f"{size} bytes do not come back"
        data, (peer, port, *_) = came
        if (data, peer, port) != (size * b"x", address, UDP_ECHO_PORT):
            return f"{size} bytes come back as {len(data)} from {peer} port {port}"
    return "arrived"


def dns(name: str) -> str:
    return "arrived" if socket.getaddrinfo(name, 80) else "no address"


def ping(address: str) -> str:
    words = ["ping", "-n", "-c", "1", "-W", str(int(PATIENCE_S)), address]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "arrived" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def main() -> None:
    web4, web6, name = sys.argv[1:]
    questions: dict[str, tuple[Callable[[str], str], str]] = {"DNS": (dns, name)}
    for family, address in (("IPv4", web4), ("IPv6", web6)):
        questions[f"TCP {family}"] = tcp, address
        questions[f"UDP {family}"] = udp, address
        questions[f"ping {family}"] = ping, address

    def ask(question: tuple[Callable[[str], str], str]) -> str:
        look, at = question
        try:
            return look(at)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = pool.map(ask, questions.values())
        print(json.dumps(dict(zip(questions, answers, strict=True))))


if __name__ == "__main__":
    main()
