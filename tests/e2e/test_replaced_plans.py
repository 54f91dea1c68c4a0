"""A plan takes the place of another while it captures: other routes, other listeners.

    client ----------------- server
     programs, rules          answers "direct" on 203.0.113.7

The listener is the test's own, so that a captured connection can stay open.
"""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sshunt.lab.hosts import Host
from sshunt.lab.world import ELSEWHERE_V4, Lab
from tests.e2e.captures import (
    Capture,
    Start,
    beside_what_crashes_libnftables,
    captures,
    tables,
)

_OFFICE = ["10.0.0.0/8", "remote", 0, 65535]
_LABS = ["172.16.0.0/12", "remote", 0, 65535]
_EVERY = ["0.0.0.0/0", "remote", 0, 65535]

WITH_OWNER_AND_WITHOUT = pytest.mark.parametrize("options", [[], ["--plain"]])


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    with captures(lab) as start:
        yield start


@pytest.fixture
def listener(lab: Lab) -> Iterator[socket.socket]:
    with lab.client.listen("127.0.0.1") as listener:
        listener.settimeout(3)
        yield listener


def apply(capture: Capture, listener: socket.socket, *routes: list[object]) -> object:
    return capture.apply(list(routes), listen4=listener.getsockname()[:2], listen6=None)


@contextmanager
def captured(
    host: Host, listener: socket.socket, address: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection that is redirected to the listener."""
    with host.connect(address, 7) as program, listener.accept()[0] as ours:
        yield program, ours


def goes_on(program: socket.socket, ours: socket.socket) -> bool:
    program.sendall(b"question")
    ours.sendall(b"answer")
    return ours.recv(100) == b"question" and program.recv(100) == b"answer"


def is_captured(host: Host, listener: socket.socket, address: str) -> bool:
    listener.settimeout(0.3)
    try:
        with host.make_socket(socket.AF_INET, socket.SOCK_STREAM) as program:
            program.setblocking(False)
            program.connect_ex((address, 7))
            listener.accept()[0].close()
    except TimeoutError:
        return False
    finally:
        listener.settimeout(3)
    return True


def hang_up_on_one(server: socket.socket) -> None:
    server.accept()[0].close()


@WITH_OWNER_AND_WITHOUT
def test_open_connections_of_a_removed_route_go_on_and_new_ones_take_the_new_route(
    lab: Lab, start: Start, listener: socket.socket, options: list[str]
) -> None:
    capture = start(*options)
    apply(capture, listener, _OFFICE)
    with captured(lab.client, listener, "10.9.8.7") as old:
        apply(capture, listener, _LABS)
        assert goes_on(*old)
        with captured(lab.client, listener, "172.16.8.7") as new:
            assert not is_captured(lab.client, listener, "10.9.8.7")
            apply(capture, listener, _OFFICE)
            assert goes_on(*old)
            assert goes_on(*new)
        assert is_captured(lab.client, listener, "10.9.8.7")
        assert not is_captured(lab.client, listener, "172.16.8.7")


def test_there_is_one_table_of_the_session_whose_owner_stays_the_same(
    lab: Lab, start: Start, listener: socket.socket
) -> None:
    capture = start()
    for routes in (_OFFICE, _LABS, _OFFICE):
        _, _, owner = capture.apply([routes], listen4=listener.getsockname()[:2], listen6=None)
        assert owner is True
        assert tables(lab).count("table") == 1
        assert lab.client.run(["nft", "list", "ruleset"]).stdout.count("flags owner") == 1
    capture.ask("undo")
    assert not tables(lab)


def test_in_between_nothing_goes_uncaptured(lab: Lab, start: Start) -> None:
    capture = start()
    port, _, _ = capture.apply([_EVERY], listen6=None)
    seen: list[str] = []
    is_over = threading.Event()

    def connect() -> None:
        while not is_over.is_set():
            with lab.client.connect(ELSEWHERE_V4, 80, timeout_s=3) as program:
                seen.append(program.makefile().readline().strip())

    def serve() -> None:
        with lab.server.listen(ELSEWHERE_V4, 80) as server:
            server.settimeout(0.1)
            while not is_over.is_set():
                try:
                    accepted, _ = server.accept()
                except TimeoutError:
                    continue
                with accepted:
                    accepted.sendall(b"direct\n")

    threads = [threading.Thread(target=work) for work in (serve, connect, connect)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            others = [f"10.{number}.0.0/16", "remote", 0, 65535]
            capture.apply([_EVERY, others], listen4=("127.0.0.1", port), listen6=None)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {f"captured {ELSEWHERE_V4} 80"}


def test_a_plan_that_is_refused_leaves_the_one_before_it(
    lab: Lab, start: Start, listener: socket.socket
) -> None:
    capture = start()
    apply(capture, listener, _OFFICE)
    before = lab.client.run(["nft", "list", "ruleset"]).stdout
    with captured(lab.client, listener, "10.9.8.7") as old:
        message, _, _ = capture.apply([_LABS], listen4=(ELSEWHERE_V4, 1), listen6=None)
        assert (
            message == f"can't capture connections: {ELSEWHERE_V4} is not an address of this host"
        )
        assert lab.client.run(["nft", "list", "ruleset"]).stdout == before
        assert goes_on(*old)
    assert capture.ask("bypass", [["10.9.8.7", 7]]) is None
    assert not is_captured(lab.client, listener, "10.9.8.7")


@WITH_OWNER_AND_WITHOUT
def test_changes_apply_to_the_latest_plan(
    lab: Lab, start: Start, listener: socket.socket, options: list[str]
) -> None:
    capture = start(*options)
    for routes in (_OFFICE, _LABS):
        apply(capture, listener, routes)
    assert is_captured(lab.client, listener, "172.16.8.7")
    assert capture.ask("bypass", [["172.16.8.7", 7]]) is None
    assert not is_captured(lab.client, listener, "172.16.8.7")


def test_the_latest_plan_still_leaves_ssh_alone(
    lab: Lab, start: Start, listener: socket.socket
) -> None:
    capture = start()
    assert capture.ask("guard") is True
    with lab.server.listen(ELSEWHERE_V4, 80) as server:
        server.settimeout(3)
        for routes in (_OFFICE, _EVERY):
            apply(capture, listener, routes)
        with ThreadPoolExecutor() as pool:
            hung_up = pool.submit(hang_up_on_one, server)
            assert capture.ask("connect", ELSEWHERE_V4, 80) == ""
            hung_up.result()
    capture.ask("undo")
    assert "mark_ours" in lab.client.run(["nft", "list", "ruleset"]).stdout


@WITH_OWNER_AND_WITHOUT
def test_where_a_foreign_table_crashes_libnftables_a_plan_is_replaced_all_the_same(
    lab: Lab, start: Start, listener: socket.socket, options: list[str]
) -> None:
    capture = start(*options)
    apply(capture, listener, _OFFICE)
    with captured(lab.client, listener, "10.9.8.7") as old, beside_what_crashes_libnftables(lab):
        apply(capture, listener, _LABS)
        assert goes_on(*old)
        assert is_captured(lab.client, listener, "172.16.8.7")
        assert not is_captured(lab.client, listener, "10.9.8.7")


def test_somebody_s_flush_of_plain_tables_does_not_keep_the_next_plan_from_coming(
    lab: Lab, start: Start, listener: socket.socket
) -> None:
    capture = start("--plain")
    apply(capture, listener, _OFFICE)
    lab.client.run(["nft", "flush", "ruleset"])
    apply(capture, listener, _LABS)
    assert is_captured(lab.client, listener, "172.16.8.7")


def test_thousands_of_routes_are_replaced_by_others(
    lab: Lab, start: Start, listener: socket.socket
) -> None:
    capture = start()
    for net in (10, 11):
        routes = [[f"{net}.{n >> 8}.{n & 255}.0/25", "remote", 0, 65535] for n in range(10_000)]
        assert json.dumps(apply(capture, listener, *routes)) == json.dumps(
            [listener.getsockname()[1], None, True]
        )
    assert is_captured(lab.client, listener, "11.1.1.1")
    assert not is_captured(lab.client, listener, "10.1.1.1")
