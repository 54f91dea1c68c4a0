"""A program: an echo service for datagrams, at all addresses of both families. udp_echo.py PORT

It answers from the address that was written to, and prints "ready" once it listens.
"""

import selectors
import socket
import sys


def main() -> None:
    port = int(sys.argv[1])
    selector = selectors.DefaultSelector()
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((any_address, port))
        selector.register(sock, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data, peer = key.fileobj.recvfrom(65535)
            key.fileobj.sendto(data, peer)


if __name__ == "__main__":
    main()
