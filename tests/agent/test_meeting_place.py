"""Who may come near an agent: this user with the session's token. Nobody else, nor by any file.

Several tests need a user without a past: they run the far side as an uid that exists nowhere, whose
private directory is /tmp/sshunt-<uid>.
"""

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshunt.agent.rendezvous import GO, PROOF_MAGIC, socket_name
from sshunt.agent.stub import EXIT_AGENT_DIED
from sshunt.mux.hello import ACCEPTED, FEATURE_DETACHED, REFUSED_SESSION_GONE
from tests.agent.far_side import Lane, eventually, kill, lane_hello, marked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be other users")

#: Far above people and containers.
_uids = itertools.count(2_000_000_000 + os.getpid() % 100_000 * 100)


@pytest.fixture
def token() -> bytes:
    return os.urandom(32)


@pytest.fixture
def uid() -> Iterator[int]:
    uid = next(_uids)
    yield uid
    leftover = Path(f"/tmp/sshunt-{uid}")
    if leftover.is_symlink() or leftover.is_file():
        leftover.unlink()
    shutil.rmtree(leftover, ignore_errors=True)


def as_user(uid: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")


def place_of(uid: int) -> Path:
    return Path(f"/tmp/sshunt-{uid}")


def say_goodbye(lane: Lane) -> None:
    lane.write(lane.goodbye())
    assert lane.wait()[0] == 0
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_the_place_is_private_and_its_names_tell_nobody_the_token(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token), prefix=as_user(uid))
    lane.greet()
    found = place_of(uid).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (uid, 0o700)
    [name] = os.listdir(place_of(uid))
    assert name == socket_name(token)
    assert token.hex()[:8] not in name
    say_goodbye(lane)
    assert not place_of(uid).exists()


def test_another_user_can_neither_reach_nor_end_the_agent(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    [agent] = lane.agents()
    path = place_of(uid) / socket_name(token)
    other = as_user(next(_uids))
    reach = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    for attempt in (["python3", "-c", reach], ["kill", str(agent)], ["rm", "-rf", str(path)]):
        done = subprocess.run([*other, *attempt], capture_output=True, check=False, text=True)
        assert done.returncode != 0, attempt
        assert "ermi" in done.stderr, attempt  # "Permission denied", "not permitted"
    assert path.exists()
    assert lane.agents() == [agent]
    say_goodbye(lane)


def test_even_root_with_the_token_is_not_taken_for_the_user(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(place_of(uid) / socket_name(token)))
        try:
            peer.sendall(PROOF_MAGIC + token)
            assert peer.recv(1) != GO
        except (BrokenPipeError, ConnectionResetError):
            pass  # hung up on even before the proof
    say_goodbye(lane)


@pytest.mark.parametrize("kind", ["another user's", "open to others", "a link", "a file"])
def test_a_place_that_is_not_private_is_not_used(uid: int, token: bytes, kind: str) -> None:
    place = place_of(uid)
    if kind == "a link":
        place.symlink_to("/var")
    elif kind == "a file":
        place.touch()
    else:
        place.mkdir(mode=0o700)
        if kind == "open to others":
            os.chown(place, uid, uid)
            place.chmod(0o755)
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    answer = lane.greet()
    assert answer.status == ACCEPTED
    assert not answer.features & FEATURE_DETACHED
    assert lane.agents() == []  # the stub is the agent
    lane.hang_up()
    eventually(lambda: marked(lane.mark) == [], "the end with the lane")
    lane.wait()
    if place.is_dir() and not place.is_symlink():
        assert os.listdir(place) == []
    shutil.rmtree(place, ignore_errors=True)


def test_the_second_choice_is_the_runtime_directory(uid: int, token: bytes) -> None:
    place_of(uid).mkdir(mode=0o700)  # root's
    runtime = Path(f"/run/sshunt-test-{uid}")
    runtime.mkdir(mode=0o700)
    os.chown(runtime, uid, uid)
    try:
        env = {"XDG_RUNTIME_DIR": str(runtime)}
        lane = Lane(lane_hello(token), prefix=as_user(uid), env=env)
        assert lane.greet().features & FEATURE_DETACHED
        assert (runtime / f"sshunt-{uid}" / socket_name(token)).is_socket()
        say_goodbye(lane)
        assert os.listdir(runtime) == []
    finally:
        shutil.rmtree(runtime)


def test_a_parent_where_others_may_rename_is_not_used(uid: int, token: bytes) -> None:
    place_of(uid).mkdir(mode=0o700)
    runtime = Path(f"/run/sshunt-test-{uid}")
    runtime.mkdir()
    runtime.chmod(0o777)
    try:
        env = {"XDG_RUNTIME_DIR": str(runtime)}
        lane = Lane(lane_hello(token), prefix=as_user(uid), env=env)
        assert not lane.greet().features & FEATURE_DETACHED
        assert lane.end()[0] == 0
        assert os.listdir(runtime) == []
    finally:
        shutil.rmtree(runtime)


def test_a_lane_with_another_token_finds_nobody(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    other = Lane(lane_hello(os.urandom(32), create=False), prefix=as_user(uid))
    assert other.greet().status == REFUSED_SESSION_GONE
    other.wait()
    assert len(os.listdir(place_of(uid))) == 1
    say_goodbye(lane)


def test_two_first_lanes_at_once_start_one_agent(uid: int, token: bytes) -> None:
    lanes = [
        Lane(lane_hello(token, lane=number, grace_s=20), prefix=as_user(uid))
        for number in range(1, 5)
    ]
    assert [lane.greet().status for lane in lanes] == [ACCEPTED] * 4
    assert sum(len(lane.agents()) for lane in lanes) == 1
    lanes[0].write(lanes[0].goodbye())
    assert [lane.wait()[0] for lane in lanes] == [0] * 4
    eventually(lambda: not place_of(uid).exists(), "the place is removed")


def test_an_agent_that_is_killed_leaves_no_file_and_ends_its_stubs(uid: int, token: bytes) -> None:
    lanes = [
        Lane(lane_hello(token, lane=number, grace_s=20), prefix=as_user(uid)) for number in (1, 2)
    ]
    for lane in lanes:
        lane.greet()
    [agent] = [pid for lane in lanes for pid in lane.agents()]
    assert place_of(uid).exists()
    kill(agent)
    assert EXIT_AGENT_DIED in [lane.wait()[0] for lane in lanes]  # one of them cleaned up
    assert not place_of(uid).exists()


def test_a_stub_and_agent_killed_together_are_swept_up_by_the_next_start(
    uid: int, token: bytes
) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    for pid in marked(lane.mark):
        kill(pid)
    lane.wait()
    assert os.listdir(place_of(uid)) == [socket_name(token)]

    token = os.urandom(32)
    other = Lane(lane_hello(token), prefix=as_user(uid))
    other.greet()
    assert os.listdir(place_of(uid)) == [socket_name(token)]
    say_goodbye(other)


def test_a_stub_whose_lane_ends_leaves_a_living_agent_alone(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    agents = lane.agents()
    assert lane.end() == (0, "")
    assert os.listdir(place_of(uid)) == [socket_name(token)]
    assert lane.agents() == agents
    other = Lane(lane_hello(token, lane=2, create=False), prefix=as_user(uid))
    other.greet()
    say_goodbye(other)
    eventually(lambda: not place_of(uid).exists(), "the place is removed")
