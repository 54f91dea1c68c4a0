"""--fail block: what is routed is reached through the tunnel, or not at all, whoever is killed.

neighbour ------------- client ------------- server ------------- target
(uses the client        sshunt               sshd + agent         web server
 as its router)
"""

import errno
import os
import signal
import socket
import time

from sshunt.lab.hosts import Host
from sshunt.lab.world import OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.conftest import Start
from tests.e2e.tunnels import SSHUNT, Remains, Tunnel, fetch, kill

BLOCK = ("--fail", "block", "--grace", "0", "-r", "server")
DEADLINE_S = 5.0


def tables(host: Host) -> list[str]:
    lines = host.run(["nft", "list", "tables"]).stdout.splitlines()
    return [line.split()[-1] for line in lines]


def blocks(host: Host) -> list[str]:
    return [name for name in tables(host) if name.startswith("sshunt-block-")]


def wait_until_nothing_else(host: Host) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while tables(host) != blocks(host) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tables(host) == blocks(host) != []


def refused(host: Host, address: str, port: int = 80) -> bool:
    """True if an error comes, and it is the one of a firewall."""
    try:
        host.connect(address, port, timeout_s=DEADLINE_S).close()
    except OSError as error:
        return error.errno in (errno.EHOSTUNREACH, errno.EACCES)
    return False


def datagram_is_refused(host: Host, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.make_socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 9))
        try:
            sock.send(b"x")
            sock.settimeout(0.5)
            sock.recv(1)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno in (errno.EPERM, errno.EACCES, errno.EHOSTUNREACH)
    return False


def ping_is_refused(host: Host, address: str) -> bool:
    done = host.run(["ping", "-c1", "-W1", address], check=False)
    return "not permitted" in done.stdout + done.stderr or "filtered" in done.stdout


def end_all(tunnel: Tunnel) -> None:
    """Kill all that is ours on this host, at once."""
    pids = [pid for role in ("helper", "sweeper", "packets") for pid in tunnel.pids(role)]
    os.kill(tunnel.process.pid, signal.SIGSTOP)
    kill([*pids, tunnel.process.pid, *tunnel.pids("ssh")])
    tunnel.process.wait(DEADLINE_S)


def clean_up(lab: Lab) -> str:
    return lab.client.run([*SSHUNT, "cleanup"]).stdout


def test_while_it_lives_all_else_is_refused_and_a_clean_stop_lifts_it(
    lab: Lab, start: Start
) -> None:
    tunnel = start(*BLOCK, OFFICE_V4, OFFICE_V6, "192.0.2.0/24")
    before = tables(lab.client)
    assert len(blocks(lab.client)) == 1
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    # Other hosts, which are not captured here.
    assert refused(lab.neighbour, lab.target.v4)
    assert refused(lab.neighbour, lab.target.v6)
    connections_from_there_are_answered(lab)
    # What lives is not cleaned up.
    assert clean_up(lab) == ""
    assert tables(lab.client) == before
    assert tunnel.stop() == 0
    assert tables(lab.client) == []


def connections_from_there_are_answered(lab: Lab) -> None:
    with lab.client.listen(lab.client.v4) as listener:
        with lab.server.connect(lab.client.v4, listener.getsockname()[1]) as sock:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert sock.recv(5) == b"hello"


def test_when_all_are_killed_the_targets_stay_blocked_until_the_next_start(lab: Lab) -> None:
    remains = Remains(lab)
    words = (*BLOCK, OFFICE_V4, OFFICE_V6)
    first = Tunnel(lab, words)
    first.wait_until_connected()
    end_all(first)
    wait_until_nothing_else(lab.client)
    for address in (lab.target.v4, lab.target.v6):
        assert refused(lab.client, address)
        assert datagram_is_refused(lab.client, address)
        assert ping_is_refused(lab.client, address)
    assert refused(lab.neighbour, lab.target.v4)
    left = blocks(lab.client)

    second = Tunnel(lab, words)
    second.wait_until_connected()
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert len(blocks(lab.client)) == 1
    assert blocks(lab.client) != left
    assert second.stop() == 0
    assert tables(lab.client) == []
    assert remains.left() == []


def test_a_server_inside_what_is_blocked_is_reached_by_the_next_start(lab: Lab) -> None:
    remains = Remains(lab)
    words = (*BLOCK, OFFICE_V4, "192.0.2.0/24")
    first = Tunnel(lab, words)
    first.wait_until_connected()
    end_all(first)
    wait_until_nothing_else(lab.client)
    assert refused(lab.client, lab.server.v4, 81)  # ... but not its port 22
    # Another port of it is blocked for everybody but the next session's ssh.
    sshd = lab.sshd(lab.server, port=2211)
    second = Tunnel(lab, (*BLOCK[:4], "-r", "server:2211", OFFICE_V4))
    second.wait_until_connected()
    assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    assert "the targets of 1 dead session are still blocked" in second.said
    assert second.stop() == 0
    sshd.stop()
    assert len(blocks(lab.client)) == 1  # that was of other networks
    assert f"removed: inet {blocks(lab.client)[0]}" in clean_up(lab)
    assert clean_up(lab) == ""
    assert remains.left() == []


def test_an_end_that_nobody_asked_for_leaves_it(lab: Lab) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, (*BLOCK, OFFICE_V4))
    tunnel.wait_until_connected()
    kill(tunnel.pids("helper"))
    assert tunnel.process.wait(DEADLINE_S) != 0
    assert "the targets stay blocked" in tunnel.said
    wait_until_nothing_else(lab.client)
    assert refused(lab.client, lab.target.v4)
    clean_up(lab)
    assert remains.left() == []
