"""Whom a process and its children are really connected to."""

import os
import resource
import socket
import subprocess
import sys

from sshunt.transport.peers import behind, own_peer, ssh_peers

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


def test_a_peer_on_another_host_has_no_further_peers_behind_it() -> None:
    assert behind([("192.0.2.77", 22), ("2001:db8::77", 22)]) == ((), ())


def test_a_program_of_this_host_that_leads_nowhere_else_has_nobody_behind_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert behind([("127.0.0.1", port)]) == ((), ())


def test_a_port_of_this_host_at_which_nobody_can_be_seen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert behind([("127.0.0.1", port)]) == ((), (("127.0.0.1", port),))


def test_somebody_who_is_out_of_descriptors_sees_no_peer() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))  # and every lower one is taken
    try:
        assert own_peer(os.getpid()) is None
        assert ssh_peers(os.getpid()) == ()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)


def test_a_process_that_has_gone_has_no_peers() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert ssh_peers(process.pid) == ()
