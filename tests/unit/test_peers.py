"""Whom a process and its children are really connected to."""

import os
import socket
import subprocess
import sys

from sshunt.peers import ssh_peers

_CONNECT = """
import socket, subprocess, sys
if len(sys.argv) > 2:
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]])
else:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.recv(1)
"""


def test_the_connections_of_children_count_as_their_parents() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", _CONNECT, str(port), _CONNECT]
        with subprocess.Popen(command) as parent:
            accepted, _ = listener.accept()
            with accepted:
                assert ssh_peers(parent.pid) == (("127.0.0.1", port),)
            parent.wait()


def test_an_ipv4_peer_of_a_dual_stack_socket_is_an_ipv4_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.socket(socket.AF_INET6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.connect(("::ffff:127.0.0.1", port))
            assert ("127.0.0.1", port) in ssh_peers(os.getpid())


def test_a_process_that_has_gone_has_no_peers() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert ssh_peers(process.pid) == ()
