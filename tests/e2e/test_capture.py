"""Real rules, made by the real helper, seen by ordinary connections.

    neighbour ------------- client ------------- server
     (forwarded traffic)     capturing.py         answers "direct" on 203.0.113.7, 2001:db8:3::7 and
                             helper, rules        192.0.2.2

There is no tunnel here: ``capturing.py`` answers whatever the kernel redirects to it with the
original destination. What is not captured goes on to the server, which answers "direct".
"""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import sshunt.helper
from sshunt.capture.plan import Plan, redirects
from sshunt.errors import ExitCode
from sshunt.helper.protocol import EXIT_NO_SOCKET, MAX_REQUEST_BYTES, VERSION
from sshunt.lab.accounts import PASSWORD
from sshunt.lab.hosts import Host
from sshunt.lab.world import ELSEWHERE_V4, ELSEWHERE_V6, Lab
from tests.e2e.captures import (
    Capture,
    Start,
    as_said,
    captures,
    cgroups,
    has_rules,
    helpers,
    soon,
    tables,
)

_HELPER = Path(sshunt.helper.__path__[0], "__main__.py")
_EVERY = [["0.0.0.0/0", "remote", 0, 65535], ["::/0", "remote", 0, 65535]]


def converse(host: Host, *lines: bytes, under: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the helper, started by ``under``, answers to these lines; fewer if it hangs up."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with theirs:
        program = [*under, sys.executable, "-I", "-S", "-B", str(_HELPER)]
        assert host.popen(program, stdin=theirs.fileno()).wait() == 0
    replies: list[dict[str, Any]] = []
    with ours, ours.makefile("rb") as answers:
        try:
            for line in lines:
                ours.sendall(line)
                if reply := answers.readline():
                    replies.append(json.loads(reply))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up
    return replies


@pytest.fixture(scope="module", autouse=True)
def direct(lab: Lab) -> Iterator[None]:
    """Listeners on the server that answer "direct"."""
    listeners = [
        lab.server.listen(address, port, timeout_s=120)
        for address in (ELSEWHERE_V4, ELSEWHERE_V6)
        for port in (80, 8080)
    ]

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with accepted:
                accepted.sendall(b"direct\n")

    threads = [threading.Thread(target=serve, args=[listener]) for listener in listeners]
    for thread in threads:
        thread.start()
    yield
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def reached(host: Host, address: str, port: int = 80) -> str:
    with host.connect(address, port, timeout_s=3) as sock:
        return sock.makefile().readline().strip()


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Starts captures on the client; nothing of them may be left at the end."""
    with captures(lab) as start:
        yield start


def test_connections_to_routed_addresses_arrive_with_their_original_destination(
    lab: Lab, start: Start
) -> None:
    capture = start()
    capture.apply([["10.0.0.0/8", "remote", 0, 65535], ["fd00::/8", "remote", 0, 65535]])
    assert reached(lab.client, "10.9.8.7", 443) == "captured 10.9.8.7 443"
    assert reached(lab.client, "fd00::9", 1) == "captured fd00::9 1"
    assert reached(lab.client, ELSEWHERE_V4) == "direct"
    assert reached(lab.client, ELSEWHERE_V6) == "direct"


def test_excluded_networks_and_ports_are_left_alone(lab: Lab, start: Start) -> None:
    capture = start()
    capture.apply(
        [
            *_EVERY,
            ["203.0.113.0/24", "direct", 0, 65535],
            [f"{ELSEWHERE_V4}/32", "remote", 8000, 9000],
            ["2001:db8:3::/48", "direct", 80, 80],
        ]
    )
    assert reached(lab.client, ELSEWHERE_V4) == "direct"
    assert reached(lab.client, ELSEWHERE_V4, 8080) == f"captured {ELSEWHERE_V4} 8080"
    assert reached(lab.client, ELSEWHERE_V6) == "direct"
    assert reached(lab.client, ELSEWHERE_V6, 8080) == f"captured {ELSEWHERE_V6} 8080"
    assert reached(lab.client, "255.255.255.254") == "captured 255.255.255.254 80"


def test_this_host_itself_is_never_captured(lab: Lab, start: Start) -> None:
    capture = start()
    ports = capture.apply(_EVERY)
    with lab.client.listen("192.0.2.1") as listener:
        with lab.client.connect("192.0.2.1", listener.getsockname()[1]):
            listener.accept()[0].close()
    assert reached(lab.client, "127.0.0.1", ports[0]) == "not redirected"
    assert reached(lab.client, "::1", ports[1]) == "not redirected"


def test_a_family_without_a_listener_is_left_alone(lab: Lab, start: Start) -> None:
    start().apply(_EVERY, listen6=None)
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert reached(lab.client, ELSEWHERE_V6) == "direct"


@pytest.fixture
def not_forwarding(lab: Lab) -> Iterator[None]:
    switches = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    for switch in switches:
        lab.client.write_sysctl(switch, "0")
    yield
    for switch in switches:
        lab.client.write_sysctl(switch, "1")


@pytest.mark.usefixtures("not_forwarding")
def test_what_this_host_would_not_forward_is_not_captured(lab: Lab, start: Start) -> None:
    start().apply(_EVERY, listen4="0.0.0.0", listen6="::")
    for address in (ELSEWHERE_V4, ELSEWHERE_V6):
        with pytest.raises(TimeoutError):
            lab.neighbour.connect(address, 80, timeout_s=0.5)
        assert reached(lab.client, address) == f"captured {address} 80"


def test_a_listener_on_one_address_serves_the_link_that_has_it_and_no_other(
    lab: Lab, start: Start
) -> None:
    start().apply(_EVERY, listen4="192.0.2.1", listen6="2001:db8:1::1")
    shown = lab.client.run(["nft", "list", "ruleset"]).stdout
    assert shown.count('iifname "to-server" goto capture') == 2
    for address in (ELSEWHERE_V4, ELSEWHERE_V6):
        with pytest.raises(TimeoutError):  # the lab's server has no way back to the neighbour
            lab.neighbour.connect(address, 80, timeout_s=0.5)


@pytest.mark.parametrize(
    ("listen4", "listen6"), [("0.0.0.0", "::"), ("198.51.100.1", "2001:db8:2::1")]
)
def test_forwarded_connections_are_captured_by_a_listener_that_others_can_reach(
    lab: Lab, start: Start, listen4: str, listen6: str
) -> None:
    start().apply(_EVERY, listen4=listen4, listen6=listen6)
    for host in (lab.neighbour, lab.client):
        assert reached(host, ELSEWHERE_V4) == f"captured {ELSEWHERE_V4} 80"
        assert reached(host, ELSEWHERE_V6) == f"captured {ELSEWHERE_V6} 80"


def test_forwarded_connections_are_left_alone_by_a_listener_on_loopback(
    lab: Lab, start: Start
) -> None:
    start().apply(_EVERY)
    # The lab's server has no way back to the neighbour, so only the client's rules are looked at.
    assert "hook prerouting" not in lab.client.run(["nft", "list", "ruleset"]).stdout


def test_the_guarded_client_and_its_children_are_not_captured_but_others_are(
    lab: Lab, start: Start
) -> None:
    capture = start()
    assert capture.ask("guard") is True
    capture.apply(_EVERY)
    assert capture.ask("connect", ELSEWHERE_V4, 80) == "direct"
    assert capture.ask("connect", ELSEWHERE_V6, 80) == "direct"
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")


def test_without_a_guard_bypassed_peers_are_not_captured(lab: Lab, start: Start) -> None:
    capture = start()
    with lab.server.listen(ELSEWHERE_V4, 2222), lab.server.listen(ELSEWHERE_V6, 2222):
        assert capture.ask("peers", ELSEWHERE_V4, 2222) == [[ELSEWHERE_V4, 2222]]
        assert capture.ask("peers", ELSEWHERE_V6, 2222) == [[ELSEWHERE_V6, 2222]]
    capture.apply(_EVERY, bypass=((ELSEWHERE_V4, 80),))
    assert capture.ask("connect", ELSEWHERE_V4, 80) == "direct"
    assert reached(lab.client, ELSEWHERE_V4, 8080).startswith("captured")
    capture.ask("bypass", [[ELSEWHERE_V4, 8080], [ELSEWHERE_V6, 80]])
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert reached(lab.client, ELSEWHERE_V4, 8080) == "direct"
    assert reached(lab.client, ELSEWHERE_V6) == "direct"


@pytest.mark.parametrize("address", [ELSEWHERE_V4, ELSEWHERE_V6])
@pytest.mark.parametrize(
    ("listen4", "listen6"), [("127.0.0.1", "::1"), ("198.51.100.1", "2001:db8:2::1")]
)
def test_a_socket_bound_to_an_interface_is_reset_and_does_not_hang(
    lab: Lab, start: Start, address: str, listen4: str, listen6: str
) -> None:
    start().apply(_EVERY, listen4=listen4, listen6=listen6)
    device = lab.client.run(["ip", "-o", "route", "get", address]).stdout.split(" dev ")[1].split()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.client.make_socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device[0].encode())
        bound.settimeout(20)
        with pytest.raises(ConnectionRefusedError):
            bound.connect((address, 80))
    assert reached(lab.client, address) == f"captured {address} 80"


def test_a_connection_that_is_older_than_the_rules_goes_on(lab: Lab, start: Start) -> None:
    with lab.server.listen(ELSEWHERE_V4) as listener:
        with lab.client.connect(ELSEWHERE_V4, listener.getsockname()[1]) as old:
            accepted, _ = listener.accept()
            with accepted:
                start().apply(_EVERY)
                old.sendall(b"still here")
                assert accepted.recv(100) == b"still here"


def test_two_sessions_stand_side_by_side_and_end_one_by_one(lab: Lab, start: Start) -> None:
    first, second = start(), start()
    assert first.ask("guard") is True
    assert second.ask("guard") is True
    first.apply([["10.1.0.0/16", "remote", 0, 65535]])
    second.apply([["10.2.0.0/16", "remote", 0, 65535]])
    assert reached(lab.client, "10.1.0.1") == "captured 10.1.0.1 80"
    assert reached(lab.client, "10.2.0.1") == "captured 10.2.0.1 80"
    first.ask("close")
    assert first.session not in tables(lab)
    assert second.session in tables(lab)
    assert reached(lab.client, "10.2.0.1") == "captured 10.2.0.1 80"


def test_undo_leaves_no_rules_and_the_helper_can_start_over(lab: Lab, start: Start) -> None:
    capture = start()
    capture.ask("guard")
    capture.apply(_EVERY)
    capture.ask("undo")
    assert not has_rules(lab)
    assert reached(lab.client, ELSEWHERE_V4) == "direct"
    capture.apply(_EVERY)
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")


def test_a_second_plan_takes_the_place_of_the_first(lab: Lab, start: Start) -> None:
    capture = start()
    capture.apply([["10.1.0.0/16", "remote", 0, 65535]])
    assert capture.apply([["10.2.0.0/16", "remote", 0, 65535]])[2] is True
    assert reached(lab.client, "10.2.0.1") == "captured 10.2.0.1 80"
    with pytest.raises(TimeoutError):
        reached(lab.client, "10.1.0.1")


def test_when_the_helper_is_killed_the_rules_go_and_the_client_hears_of_it(
    lab: Lab, start: Start
) -> None:
    capture = start()
    capture.ask("guard")
    assert capture.apply(_EVERY)[2] is True
    os.kill(capture.helper_pid(), signal.SIGKILL)
    soon(lambda: not tables(lab) and not cgroups(capture.session))
    assert capture.ask("helper") is False
    assert reached(lab.client, ELSEWHERE_V4) == "direct"
    message, _, exit_code = capture.ask("bypass", [])
    assert exit_code == ExitCode.CAPTURE
    assert "its rules with it" in message


def test_after_a_killed_helper_a_plain_table_is_reported_to_stay(lab: Lab, start: Start) -> None:
    capture = start("--plain")
    assert capture.apply(_EVERY)[2] is False
    os.kill(capture.child_pid(), signal.SIGKILL)
    message, hint, exit_code = capture.ask("bypass", [])
    assert capture.session in tables(lab)
    assert "its rules may still be in place" in message
    assert "start sshunt again" in hint
    assert exit_code == ExitCode.CAPTURE
    start()  # the next start removes them


def test_when_helper_and_client_are_killed_nothing_is_left(lab: Lab, start: Start) -> None:
    capture = start()
    assert capture.ask("guard") is True
    capture.apply(_EVERY)
    for pid in (capture.helper_pid(), capture.process.pid):
        os.kill(pid, signal.SIGKILL)
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def test_the_next_start_removes_what_a_killed_sweeper_left(lab: Lab, start: Start) -> None:
    capture = start()
    assert capture.ask("guard") is True
    (sweeper,) = psutil.Process(capture.helper_pid()).children()
    assert "sshunt" not in " ".join(sweeper.cmdline())
    sweeper.kill()
    os.kill(capture.helper_pid(), signal.SIGKILL)
    os.kill(capture.process.pid, signal.SIGKILL)
    soon(lambda: not helpers(lab.client))
    assert cgroups(capture.session)
    start()
    assert not cgroups(capture.session)


def test_when_the_client_is_killed_nothing_is_left(lab: Lab, start: Start) -> None:
    capture = start()
    capture.ask("guard")
    capture.apply(_EVERY)
    os.kill(capture.process.pid, signal.SIGKILL)
    soon(lambda: not tables(lab) and not cgroups(capture.session) and not helpers(lab.client))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_meant_for_the_client_do_not_end_the_helper(
    lab: Lab, start: Start, number: signal.Signals
) -> None:
    capture = start()
    capture.apply(_EVERY)
    os.kill(capture.helper_pid(), number)
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert capture.ask("helper") is True


def test_sigterm_makes_the_helper_undo_everything(lab: Lab, start: Start) -> None:
    capture = start()
    capture.ask("guard")
    capture.apply(_EVERY)
    os.kill(capture.helper_pid(), signal.SIGTERM)
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def test_a_plain_table_goes_when_the_client_goes(lab: Lab, start: Start) -> None:
    capture = start("--plain")
    assert capture.apply(_EVERY)[2] is False
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    os.kill(capture.process.pid, signal.SIGKILL)
    soon(lambda: not tables(lab))


def test_the_next_start_removes_what_dead_sessions_left_and_leaves_living_ones(
    lab: Lab, start: Start
) -> None:
    dead, alive = start("--plain"), start("--plain")
    alive.apply([["10.1.0.0/16", "remote", 0, 65535]])
    dead.apply([["10.2.0.0/16", "remote", 0, 65535]])
    os.kill(dead.child_pid(), signal.SIGKILL)
    assert dead.session in tables(lab)
    start()
    assert dead.session not in tables(lab)
    assert reached(lab.client, "10.1.0.1") == "captured 10.1.0.1 80"


def test_thousands_of_routes_are_taken(lab: Lab, start: Start) -> None:
    routes = [[f"10.{i // 200}.{i % 200}.0/25", "remote", 0, 65535] for i in range(10_000)]
    start().apply(routes)
    assert reached(lab.client, "10.49.199.1") == "captured 10.49.199.1 80"


# --- who may ------------------------------------------------------------------------------------


def test_an_ordinary_user_captures_through_sudo_and_sudo_does_not_stay(
    lab: Lab, start: Start
) -> None:
    capture = start(user="ben")
    assert capture.ask("guard") is True
    capture.apply(_EVERY)
    assert capture.ask("connect", ELSEWHERE_V4, 80) == "direct"
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert not [pid for pid in lab.client.pids() if psutil.Process(pid).name() == "sudo"]
    capture.end()
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def type_password(lab: Lab, password: str) -> Any:
    """The first word of a capture that cai starts on a terminal of his own."""
    ours, theirs = pty.openpty()
    try:
        capture = Capture(lab.client, user="cai", terminal=theirs)
        seen = b""
        while b"password for cai: " not in seen:
            assert select.select([ours], [], [], 10)[0], seen
            seen += os.read(ours, 1000)
        assert b"[sshunt] sudo password for cai: " in seen
        os.write(ours, password.encode() + b"\n")
        word = capture.answer()
        if word == "ready":
            # Ctrl-C on his terminal is for the client; and sudo gave the terminal back as it was.
            assert termios.tcgetattr(theirs)[3] & termios.ISIG
            assert capture.ask("guard") is True
            assert capture.apply(_EVERY)[2] is True
            assert capture.ask("close") is None
        capture.end()
        return word
    finally:
        os.close(ours)
        os.close(theirs)


def test_sudo_asks_for_the_password_on_the_terminal(lab: Lab) -> None:
    assert type_password(lab, PASSWORD) == "ready"
    assert not tables(lab)


def test_a_wrong_password_is_an_error_of_privilege(lab: Lab) -> None:
    message, hint, exit_code = type_password(lab, "wrong")
    assert "sudo did not start the privileged helper" in message
    assert "sudo true" in hint
    assert exit_code == ExitCode.PRIVILEGE


def test_a_sudo_that_makes_a_terminal_of_its_own_does_no_harm(lab: Lab, start: Start) -> None:
    capture = start(user="eva")
    assert capture.ask("guard") is True
    assert capture.apply(_EVERY)[2] is True
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert not [pid for pid in lab.client.pids() if psutil.Process(pid).name() == "sudo"]


def test_sudo_with_log_input_is_reported(lab: Lab) -> None:
    capture = Capture(lab.client, user="fil")
    message, hint, exit_code = capture.answer()
    capture.end()
    assert "log_input" in message
    assert hint
    assert exit_code == ExitCode.PRIVILEGE


@pytest.fixture
def only_doas(lab: Lab) -> dict[str, str]:
    """An environment in which doas is the only way to become root."""
    if lab.client.run(
        ["sh", "-c", "command -v doas && test -e /etc/doas.conf"], check=False
    ).stdout:
        folder = lab.folder / "only-doas"
        folder.mkdir(exist_ok=True)
        if not list(folder.iterdir()):
            (folder / "doas").symlink_to("/usr/bin/doas")
        return {"PROGRAMS": str(folder)}
    pytest.skip("there is no doas, or no overlay to lay its doas.conf into /etc")


def test_an_ordinary_user_captures_through_doas_and_doas_does_not_stay(
    lab: Lab, start: Start, only_doas: dict[str, str]
) -> None:
    capture = start(user="ben", env=only_doas)
    assert capture.ask("guard") is True
    assert capture.apply(_EVERY)[2] is True
    assert reached(lab.client, ELSEWHERE_V4).startswith("captured")
    assert not [pid for pid in lab.client.pids() if psutil.Process(pid).name() == "doas"]
    capture.end()
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def test_a_user_whom_doas_refuses_gets_an_error(lab: Lab, only_doas: dict[str, str]) -> None:
    capture = Capture(lab.client, user="dan", env=only_doas)
    message, hint, exit_code = capture.answer()
    capture.end()
    assert "doas did not start the privileged helper" in message
    assert "doas true" in hint
    assert exit_code == ExitCode.PRIVILEGE


@pytest.mark.parametrize(
    ("user", "env", "message"),
    [
        ("dan", {}, "sudo did not start the privileged helper"),
        ("ben", {"PROGRAMS": "/nonexistent"}, "neither sudo nor doas is installed"),
    ],
)
def test_a_user_whom_sudo_refuses_gets_an_error(
    lab: Lab, user: str, env: dict[str, str], message: str
) -> None:
    capture = Capture(lab.client, user=user, env=env)
    answer = capture.answer()
    capture.end()
    assert message in answer[0]
    assert answer[2] == ExitCode.PRIVILEGE


# --- what the helper does not do ------------------------------------------------------------------

_HELLO = b'{"request":"hello","version":%d,"session":"feedfacefeed"}\n' % VERSION
_RETAIN = b'{"request":"retain","addresses":["192.0.2.9"]}\n'
_FOREIGN_LISTENER = as_said(Plan("feedfacefeed", redirects([(ELSEWHERE_V4, 1)]), ()))


def test_the_helper_answers_nothing_before_hello(lab: Lab) -> None:
    (reply,) = converse(lab.client, b'{"request":"guard"}\n')
    assert (reply["reply"], reply["kind"]) == ("refused", "wrong-order")


def test_the_helper_speaks_its_own_version_only(lab: Lab) -> None:
    (reply,) = converse(lab.client, _HELLO.replace(b":%d," % VERSION, b":%d," % (VERSION - 1)))
    assert (reply["reply"], reply["kind"]) == ("refused", "version")


def test_the_helper_keeps_addresses_only_while_something_is_captured(lab: Lab) -> None:
    _, reply = converse(lab.client, _HELLO, _RETAIN)
    assert (reply["reply"], reply["kind"]) == ("refused", "wrong-order")


def test_where_there_is_no_tun_device_no_address_is_kept_and_all_else_goes_on(lab: Lab) -> None:
    without = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"']
    plan = {**_FOREIGN_LISTENER, "redirects": [["connections", "127.0.0.1", 1]]}
    apply = json.dumps({"request": "apply", "plan": plan}).encode() + b"\n"
    bypass = b'{"request":"bypass","endpoints":[]}\n'
    keep = _RETAIN.replace(b"192.0.2.9", b"192.0.2.1")
    _, _, refused, done = converse(lab.client, _HELLO, apply, keep, bypass, under=without)
    assert (refused["reply"], refused["kind"]) == ("refused", "not-retained")
    assert "/dev/net/tun" in refused["message"]
    assert done["reply"] == "done"


@pytest.mark.parametrize("line", [b"flush ruleset\n", b"\n", b"x" * (MAX_REQUEST_BYTES + 1)])
def test_the_helper_hangs_up_on_what_is_no_request(lab: Lab, line: bytes) -> None:
    replies = converse(lab.client, _HELLO, line, b'{"request":"undo"}\n')
    assert [reply.get("kind") for reply in replies] == [None, "bad-request"]


def test_the_helper_redirects_to_this_host_only(lab: Lab) -> None:
    apply = {"request": "apply", "plan": _FOREIGN_LISTENER}
    _, reply = converse(lab.client, _HELLO, json.dumps(apply).encode() + b"\n")
    assert (reply["reply"], reply["kind"]) == ("refused", "listener")


def test_the_helper_serves_one_session_only(lab: Lab) -> None:
    apply = {"request": "apply", "plan": {**_FOREIGN_LISTENER, "session": "0123456789"}}
    _, reply = converse(lab.client, _HELLO, json.dumps(apply).encode() + b"\n")
    assert (reply["reply"], reply["kind"]) == ("refused", "bad-request")


def test_the_helper_keeps_the_privileges_it_needs_and_no_others(lab: Lab, start: Start) -> None:
    start()
    (pid,) = helpers(lab.client)
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().split("\n")[:-1]
    )
    # CAP_NET_ADMIN, CAP_DAC_OVERRIDE, and CAP_NET_RAW for the packet process, until there is one.
    expected = f"{1 << 12 | 1 << 1 | 1 << 13:016x}"
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == expected
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    for descriptor in ("0", "1", "2"):
        assert os.readlink(f"/proc/{pid}/fd/{descriptor}") == "/dev/null"


_HAND_ON = """
import array, os, socket, sys
pair = socket.socketpair()
over = socket.socket(fileno=int(sys.argv[1]))
ends = array.array("i", [sock.fileno() for sock in pair])
over.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
"""


def test_a_process_that_reuses_the_dead_clients_number_is_not_moved(lab: Lab) -> None:
    over, theirs = socket.socketpair()
    maker = lab.client.popen(
        [sys.executable, "-c", _HAND_ON, str(theirs.fileno())],
        user="ben",
        pass_fds=[theirs.fileno()],
    )
    _, descriptors, _, _ = socket.recv_fds(over, 1, 2)
    maker.wait()
    over.close()
    theirs.close()
    with take_process_number(maker.pid) as somebody:
        group = Path(f"/proc/{somebody.pid}/cgroup").read_text()
        helper = [sys.executable, "-I", "-S", "-B", str(_HELPER)]
        lab.client.popen(helper, stdin=descriptors[1]).wait()
        os.close(descriptors[1])
        with socket.socket(fileno=descriptors[0]) as ours, ours.makefile("rb") as answers:
            replies = []
            for line in (_HELLO, b'{"request":"guard"}\n'):
                ours.sendall(line)
                replies.append(json.loads(answers.readline()))
        assert [reply["reply"] for reply in replies] == ["welcome", "guarded"]
        assert replies[1]["guarded"] is False
        assert Path(f"/proc/{somebody.pid}/cgroup").read_text() == group


@contextmanager
def take_process_number(pid: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of root's that has this number."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not last.exists():
        pytest.skip("this kernel does not let process numbers be chosen")
    for _ in range(200):
        last.write_text(str(pid - 1))
        with subprocess.Popen(["sleep", "60"]) as somebody:
            try:
                if somebody.pid == pid:
                    yield somebody
                    return
            finally:
                somebody.kill()
    pytest.skip("somebody else was always faster")


def test_without_the_right_to_change_rules_the_helper_says_so(lab: Lab) -> None:
    weak = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    (reply,) = converse(lab.client, _HELLO, under=weak)
    assert (reply["reply"], reply["kind"]) == ("refused", "not-permitted")


def test_without_libnftables_the_helper_says_so(lab: Lab) -> None:
    found = subprocess.check_output(["ldconfig", "-p"], text=True)
    path = next(line.split()[-1] for line in found.splitlines() if "libnftables.so.1" in line)
    hide = f'mount --bind /dev/null {os.path.realpath(path)} && exec "$@"'
    (reply,) = converse(lab.client, _HELLO, under=["unshare", "--mount", "sh", "-c", hide, "sh"])
    assert (reply["reply"], reply["kind"]) == ("refused", "no-nft")


def test_without_the_right_to_mount_there_is_no_guard_but_there_are_rules(lab: Lab) -> None:
    weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    plan = {**_FOREIGN_LISTENER, "redirects": [["connections", "127.0.0.1", 1]]}
    apply = json.dumps({"request": "apply", "plan": plan}).encode() + b"\n"
    replies = converse(lab.client, _HELLO, b'{"request":"guard"}\n', apply, under=weak)
    assert [reply["reply"] for reply in replies] == ["welcome", "guarded", "applied"]
    assert replies[1]["guarded"] is False


def test_a_helper_without_a_socket_ends_at_once(lab: Lab) -> None:
    program = [sys.executable, "-I", "-S", "-B", str(_HELPER)]
    assert lab.client.run(program, check=False).returncode == EXIT_NO_SOCKET
