"""Who may come near an agent: this user with the session's token. Nobody else, nor by any file.

Several tests need a user without a past: they run the far side as an uid that exists nowhere.
"""

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sshunt.agent.rendezvous import GO, PROOF_MAGIC, meeting_name
from sshunt.agent.stub import EXIT_AGENT_DIED
from sshunt.mux.hello import ACCEPTED, FEATURE_DETACHED, REFUSED_OTHER, REFUSED_SESSION_GONE
from tests.agent.far_side import Lane, eventually, kill, lane_hello, marked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be other users")

#: Far above people and containers.
_uids = itertools.count(2_000_000_000 + os.getpid() % 100_000 * 100)


#: What begins a program with a /tmp of its own.
ITS_OWN_TMP = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs -o mode=1777 tmpfs /tmp; exec "$@"',
    "sh",
)


@pytest.fixture
def token() -> bytes:
    return os.urandom(32)


@pytest.fixture
def uid() -> Iterator[int]:
    uid = next(_uids)
    yield uid
    for leftover in places_of(uid):
        shutil.rmtree(leftover, ignore_errors=True)


def as_user(uid: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")


def place_of(token: bytes) -> Path:
    return Path(f"/tmp/sshunt-{meeting_name(token)}")


def places_of(uid: int) -> list[Path]:
    return [path for path in Path("/tmp").glob("sshunt-*") if path.lstat().st_uid == uid]


@contextmanager
def in_the_way(token: bytes, *, abstract: bool = True) -> Iterator[None]:
    """Somebody else, who can't know the token, has every name that an agent would take."""
    place_of(token).mkdir(mode=0o700)  # root's
    with socket.socket(socket.AF_UNIX) as squatter:
        if abstract:
            squatter.bind(f"\0sshunt-{meeting_name(token)}")
            squatter.listen()
        try:
            yield
        finally:
            place_of(token).rmdir()


def say_goodbye(lane: Lane) -> None:
    lane.write(lane.goodbye())
    assert lane.wait()[0] == 0
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_the_place_is_private_and_its_names_tell_nobody_the_token(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token), prefix=as_user(uid))
    lane.greet()
    [place] = places_of(uid)
    assert place == place_of(token)
    assert place.stat().st_mode & 0o777 == 0o700
    assert os.listdir(place) == ["agent"]
    assert token.hex()[:8] not in place.name
    say_goodbye(lane)
    assert places_of(uid) == []


def test_another_user_can_neither_reach_nor_end_the_agent(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    [agent] = lane.agents()
    path = place_of(token) / "agent"
    other = as_user(next(_uids))
    reach = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    for attempt in (["python3", "-c", reach], ["kill", str(agent)], ["rm", "-rf", str(path)]):
        done = subprocess.run([*other, *attempt], capture_output=True, check=False, text=True)
        assert done.returncode != 0, attempt
        assert "ermi" in done.stderr, attempt  # "Permission denied", "not permitted"
    assert path.exists()
    assert lane.agents() == [agent]
    say_goodbye(lane)


@pytest.mark.parametrize("address", ["/tmp/sshunt-{}/agent", "\0sshunt-{}"])
def test_even_root_with_the_token_is_not_taken_for_the_user(
    uid: int, token: bytes, address: str
) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(address.format(meeting_name(token)))
        try:
            peer.sendall(PROOF_MAGIC + token)
            assert peer.recv(1) != GO
        except (BrokenPipeError, ConnectionResetError):
            pass  # hung up on even before the proof
    say_goodbye(lane)


def test_other_users_files_in_tmp_keep_no_agent_from_its_directory(uid: int, token: bytes) -> None:
    mallory = as_user(next(_uids))
    made = Path(f"/tmp/sshunt-{uid}")
    subprocess.run([*mallory, "mkdir", made], check=True)
    try:
        lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
        assert lane.greet().features & FEATURE_DETACHED
        assert places_of(uid) == [place_of(token)]
        say_goodbye(lane)
    finally:
        made.rmdir()


def test_an_agent_needs_one_of_its_two_names_and_without_any_is_refused(
    uid: int, token: bytes
) -> None:
    with in_the_way(token):
        # The abstract name may be that of another stub of ours that is just starting an agent.
        lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
        assert lane.greet().status == REFUSED_OTHER
        lane.wait()
    with in_the_way(token, abstract=False):
        lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
        assert lane.greet().features & FEATURE_DETACHED  # by its abstract name
        say_goodbye(lane)


@pytest.mark.parametrize("where", ["a directory", "an abstract name"])
def test_somebody_else_who_answers_in_an_agent_s_place_is_not_believed(
    uid: int, token: bytes, where: str
) -> None:
    path = f"\0sshunt-{meeting_name(token)}"
    if where == "a directory":
        place_of(token).mkdir(mode=0o755)
        path = f"{place_of(token)}/agent"
    try:
        with socket.socket(socket.AF_UNIX) as squatter:
            squatter.bind(path)
            squatter.listen()
            lane = Lane(lane_hello(token, create=False), prefix=as_user(uid))
            assert lane.greet().status == REFUSED_SESSION_GONE
            lane.wait()
            if where == "an abstract name":
                squatter.accept()[0].close()
            squatter.setblocking(False)
            with pytest.raises(BlockingIOError):
                squatter.accept()
    finally:
        shutil.rmtree(place_of(token), ignore_errors=True)


def test_repeated_calls_at_the_abstract_name_are_slowed_down(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    called = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            try:
                caller.connect(f"\0sshunt-{meeting_name(token)}")
                called += 1
            except BlockingIOError:
                time.sleep(0.001)
    assert called < 400
    other = Lane(lane_hello(token, lane=2, create=False), prefix=as_user(uid))
    assert other.greet().status == ACCEPTED  # by the directory
    say_goodbye(other)
    lane.wait()


def test_a_login_with_another_tmp_finds_the_agent(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    other = Lane(lane_hello(token, lane=2, create=False), prefix=(*ITS_OWN_TMP, *as_user(uid)))
    assert other.greet().status == ACCEPTED
    say_goodbye(other)
    lane.wait()


def test_a_login_with_another_tmp_finds_an_agent_that_is_being_flooded(
    uid: int, token: bytes
) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    argv = [*as_user(uid + 1), "/usr/bin/python3", "-c", _CALLS_FOR_EVER, meeting_name(token)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"full\n"
            prefix = (*ITS_OWN_TMP, *as_user(uid))
            other = Lane(lane_hello(token, lane=2, create=False), prefix=prefix)
            assert other.greet().status == ACCEPTED
        finally:
            caller.kill()
    say_goodbye(other)
    lane.wait()


_CALLS_FOR_EVER = """
import socket, sys
said = False
while True:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        try:
            peer.connect("\\0sshunt-" + sys.argv[1])
        except BlockingIOError:
            if not said:
                print("full", flush=True)
            said = True
"""


def test_a_squatter_on_a_dead_agents_name_does_not_hide_that_it_is_gone(
    uid: int, token: bytes
) -> None:
    name = f"\0sshunt-{meeting_name(token)}"
    with socket.socket(socket.AF_UNIX) as squatter, socket.socket(socket.AF_UNIX) as caller:
        squatter.bind(name)
        squatter.listen(0)
        caller.connect(name)  # nobody else can call now
        lane = Lane(lane_hello(token, create=False), prefix=as_user(uid))
        assert lane.greet().status == REFUSED_SESSION_GONE
        lane.wait()


def test_an_agent_whose_place_was_removed_is_found(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    shutil.rmtree(place_of(token))
    other = Lane(lane_hello(token, lane=2, create=False), prefix=as_user(uid))
    assert other.greet().status == ACCEPTED
    say_goodbye(other)
    lane.wait()
    assert places_of(uid) == []


def test_the_second_choice_is_the_runtime_directory(uid: int, token: bytes) -> None:
    runtime = Path(f"/run/sshunt-test-{uid}")
    runtime.mkdir(mode=0o700)
    os.chown(runtime, uid, uid)
    try:
        with in_the_way(token, abstract=False):
            env = {"XDG_RUNTIME_DIR": str(runtime)}
            lane = Lane(lane_hello(token), prefix=as_user(uid), env=env)
            assert lane.greet().features & FEATURE_DETACHED
            assert (runtime / place_of(token).name / "agent").is_socket()
            say_goodbye(lane)
            assert os.listdir(runtime) == []
    finally:
        shutil.rmtree(runtime)


def test_a_parent_where_others_may_rename_is_not_used(uid: int, token: bytes) -> None:
    runtime = Path(f"/run/sshunt-test-{uid}")
    runtime.mkdir()
    runtime.chmod(0o777)
    try:
        with in_the_way(token, abstract=False):
            env = {"XDG_RUNTIME_DIR": str(runtime)}
            lane = Lane(lane_hello(token), prefix=as_user(uid), env=env)
            assert lane.greet().status == ACCEPTED
            assert os.listdir(runtime) == []
            say_goodbye(lane)
    finally:
        shutil.rmtree(runtime)


def test_a_lane_with_another_token_finds_nobody(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    other = Lane(lane_hello(os.urandom(32), create=False), prefix=as_user(uid))
    assert other.greet().status == REFUSED_SESSION_GONE
    other.wait()
    assert len(places_of(uid)) == 1
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
    eventually(lambda: places_of(uid) == [], "the place is removed")


def test_an_agent_that_is_killed_leaves_no_file_and_ends_its_stubs(uid: int, token: bytes) -> None:
    lanes = [
        Lane(lane_hello(token, lane=number, grace_s=20), prefix=as_user(uid)) for number in (1, 2)
    ]
    for lane in lanes:
        lane.greet()
    [agent] = [pid for lane in lanes for pid in lane.agents()]
    assert places_of(uid) != []
    kill(agent)
    assert EXIT_AGENT_DIED in [lane.wait()[0] for lane in lanes]  # one of them cleaned up
    assert places_of(uid) == []


def test_a_stub_and_agent_killed_together_are_swept_up_by_the_next_start(
    uid: int, token: bytes
) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    for pid in marked(lane.mark):
        kill(pid)
    lane.wait()
    assert places_of(uid) == [place_of(token)]

    token = os.urandom(32)
    other = Lane(lane_hello(token), prefix=as_user(uid))
    other.greet()
    assert places_of(uid) == [place_of(token)]
    say_goodbye(other)


def test_a_stub_whose_lane_ends_leaves_a_living_agent_alone(uid: int, token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20), prefix=as_user(uid))
    lane.greet()
    agents = lane.agents()
    assert lane.end() == (0, "")
    assert places_of(uid) == [place_of(token)]
    assert lane.agents() == agents
    other = Lane(lane_hello(token, lane=2, create=False), prefix=as_user(uid))
    other.greet()
    say_goodbye(other)
    eventually(lambda: places_of(uid) == [], "the place is removed")
