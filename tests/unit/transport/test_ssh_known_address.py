"""ssh's ProxyCommand that connects to an address known already."""

import socket
import subprocess

from sshunt.transport import ssh_known_address


def command(address: str, port: int) -> str:
    """What ssh would run."""
    words = ssh_known_address.options(address, port, deadline_s=8)
    [found] = [word for word in words if word.startswith("ProxyCommand=")]
    return found.removeprefix("ProxyCommand=").replace("%%", "%")


def test_ssh_is_handed_a_connection_to_that_address() -> None:
    ours, its = socket.socketpair()
    with ours, its, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        subprocess.run(command("127.0.0.1", port), shell=True, check=True, stdout=its.fileno())
        _, fds, _, _ = socket.recv_fds(ours, 1, 4)
        with socket.socket(fileno=fds[0]) as near, server.accept()[0] as far:
            assert near.getpeername() == ("127.0.0.1", port)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            far.sendall(b"SSH-2.0-")
            assert near.recv(100) == b"SSH-2.0-"


def test_a_failed_connection_is_reported_in_ssh_s_words() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        done = subprocess.run(
            command("127.0.0.1", port), shell=True, capture_output=True, check=False, text=True
        )
    assert done.returncode == 1
    assert done.stderr == f"ssh: connect to host 127.0.0.1 port {port}: Connection refused\n"


def test_a_percent_sign_in_an_address_is_escaped_for_ssh() -> None:
    for word in ssh_known_address.options("fe80::1%eth0", 22, deadline_s=8):
        assert "%" not in word.replace("%%", "")
