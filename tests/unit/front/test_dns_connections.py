"""How long a connection has been silent, as the kernel says."""

import socket
import time

from sshunt.front.dns_connections import idle_s


def test_silence_is_counted_from_the_last_byte_of_either_direction() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as program:
            ours, _ = listener.accept()
            with ours:
                time.sleep(0.5)
                assert idle_s(ours) >= 0.4
                program.send(b"x")
                assert ours.recv(1) == b"x"
                heard_s = idle_s(ours)
                assert heard_s < idle_s(program) + 0.4
                time.sleep(0.5)
                before_s = idle_s(ours)
                ours.send(b"y")
                assert idle_s(ours) < before_s


def test_a_dead_connection_is_the_idlest() -> None:
    sock = socket.socket()
    sock.close()
    assert idle_s(sock) == float("inf")
