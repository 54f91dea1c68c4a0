"""A ProxyCommand: connect to HOST PORT, and relay standard input and output, as nc does."""

import os
import socket
import sys
import threading

server = socket.create_connection((sys.argv[1], int(sys.argv[2])))


def from_server() -> None:
    while data := server.recv(65536):
        os.write(1, data)
    os._exit(0)


threading.Thread(target=from_server, daemon=True).start()
while data := os.read(0, 65536):
    server.sendall(data)
server.shutdown(socket.SHUT_WR)  # and wait for the server's last word, as nc does
threading.Event().wait()
