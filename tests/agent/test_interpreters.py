"""The real bundle under every Python found: started by sh, it answers, relays, detaches, ends."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from sshunt.agent.rendezvous import meeting_name
from sshunt.errors import ExitCode
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_REFUSED, FlowTarget
from sshunt.mux.frames import Destination
from sshunt.mux.hello import (
    ACCEPTED,
    AGENT,
    FEATURE_DETACHED,
    REFUSED_SESSION_GONE,
    REFUSED_VERSION,
)
from sshunt.mux.payload import Payload
from sshunt.relay.reactor import COPY, SPLICE
from sshunt.transport import bootstrap
from sshunt.transport.bootstrap import (
    EXIT_FAILED,
    EXIT_NO_PYTHON,
    EXIT_OLD_PYTHON,
    argv,
    upload,
)
from sshunt.transport.bundle import agent_bundle
from sshunt.transport.ssh_diagnosis import diagnose
from tests.agent.far_side import (
    VERSIONS,
    Lane,
    eventually,
    interpreters,
    lane_hello,
    marked,
    python2,
)
from tests.unit.agent.test_server import an_agent

INTERPRETERS = interpreters()


@pytest.fixture(params=[version for version in VERSIONS if version in INTERPRETERS])
def python(request: pytest.FixtureRequest) -> str:
    return INTERPRETERS[str(request.param)]


@pytest.fixture
def token() -> bytes:
    return os.urandom(32)


def no_trace_of(token: bytes) -> bool:
    return not Path(f"/tmp/sshunt-{meeting_name(token)}").exists()


def run_ours(python: str, script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """One of the programs beside this file, with our source to import."""
    here = Path(__file__).resolve().parent
    source = str(here.parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [python, str(here / script), *words]
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=90, check=False
    )


def test_the_agent_answers_relays_and_ends_with_the_goodbye(python: str, token: bytes) -> None:
    lane = Lane(lane_hello(token), python=python)
    answer = lane.greet()
    assert (answer.role, answer.status, answer.token) == (AGENT, ACCEPTED, token)
    assert answer.features & FEATURE_DETACHED

    with socket.create_server(("127.0.0.1", 0)) as office:
        port = office.getsockname()[1]
        stream = lane.session.open(Destination(frames.TCP, "127.0.0.1", port))
        lane.session.write(stream, Payload(b"question"), 0.0)
        lane.write(lane.outgoing())
        office.settimeout(20)
        with office.accept()[0] as caller:
            assert caller.recv(100) == b"question"
            caller.sendall(b"answer")
        lane.exchange(until=lambda: lane.received() == b"answer")

    lane.write(lane.goodbye())
    assert lane.wait() == (0, "")
    eventually(lambda: marked(lane.mark) == [], "the agent's end")
    assert no_trace_of(token)


@pytest.mark.parametrize(("way", "said"), [(COPY, "written read"), (SPLICE, "teed spliced")])
def test_bulk_arrives_whole_on_every_way_of_payload(python: str, way: int, said: str) -> None:
    done = run_ours(python, "bulk.py", str(way))
    assert (done.stdout.strip(), done.stderr) == (f"whole {said}", "")


def test_names_are_looked_up_by_udp_and_by_tcp(python: str) -> None:
    done = run_ours(python, "names.py")
    assert (done.stdout, done.stderr) == ("udp True tcp True left 0\n", "")


def test_datagrams_batches_errors_and_other_ports_pass_by_udp(python: str) -> None:
    done = run_ours(python, "datagrams.py")
    said = f"(b'one', 0) True failed {FLOW_REFUSED} stranger other (b'', 0) left 0\n"
    assert (done.stdout, done.stderr) == (said * 2, "")


def test_hosts_are_asked_by_icmp_and_by_ping(python: str) -> None:
    done = run_ours(python, "echoes.py")
    own = "0 63 7 b'data' 129 63 7 b'data' 0 63 7 b'' 129 63 7 b''"
    assert (done.stdout, done.stderr) == (f"{own} failed 8 1 0 63 7 b'data' left 0\n", "")


#: An agent that asks, at this port, somebody who never answers; and a look-up that takes its time.
SLOW_NAMES = """
import time
from sshunt.direct import dial
from sshunt.relay import dns
dns.PORT = {port}
dns.settings = lambda: dns.Settings(("127.0.0.1",))
dial._getaddrinfo = lambda host, port: time.sleep(0.5) or []
"""
QUERY = bytes.fromhex("123401000001000000000000") + b"\x01a\x07example\0\0\x01\0\x01"


def test_an_agent_that_ends_while_it_looks_up_names_does_so_in_order(python: str) -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = silent.getsockname()
        by_udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        by_udp.bind(address)
        before = SLOW_NAMES.format(port=address[1])
        agent = stack.enter_context(an_agent(python=python, before=before))
        session = agent.session
        flow = session.datagrams.open(FlowTarget(frames.DNS, ".", 0, 7), 0.0)
        session.datagrams.send(flow, QUERY, 0.0)
        stream = session.open(Destination(frames.DNS, ".", 53))
        session.write(stream, Payload(len(QUERY).to_bytes(2, "big") + QUERY), 0.0)
        session.open(Destination(frames.TCP, "slow.example", 80))
        agent.until(lambda: True)
        for sock in (silent, by_udp):
            sock.settimeout(20)
        assert by_udp.recv(100) == QUERY
        with silent.accept()[0]:
            session.say_goodbye(frames.GOODBYE_DONE, "")
            agent.until(lambda: not session.lanes[agent.lane].outstanding)
            assert agent.end() == 0


def test_a_second_lane_finds_the_agent_that_outlived_the_first(python: str, token: bytes) -> None:
    first = Lane(lane_hello(token, grace_s=20), python=python)
    first.greet()
    agents = first.agents()
    assert len(agents) == 1
    assert first.end() == (0, "")  # nobody holds the first command's pipes, stderr included

    second = Lane(lane_hello(token, lane=2, create=False), python=python)
    assert second.greet().status == ACCEPTED
    assert second.agents() == []
    assert first.agents() == agents
    second.write(second.goodbye())
    assert second.wait() == (0, "")
    eventually(lambda: marked(first.mark) == [], "the agent's end")
    assert no_trace_of(token)


#: What may stand first on PATH and call itself python3.
OF_NO_USE = {
    "a shim that finds nothing": "echo 'python3: command not found' >&2; exit 127",
    "what can't be run": "exit 126",
    "one that fails while it starts": "exit 1",
    "one that crashes": "kill -SEGV $$",
    "one without zlib": f"""exec {sys.executable} -E -S -c '
import sys
sys.modules["zlib"] = None
exec(sys.argv[1])' "$4"
""",
}


def named_python3(folder: Path, text: str) -> None:
    folder.joinpath("python3").write_text(f"#!/bin/sh\n{text}\n")
    folder.joinpath("python3").chmod(0o755)


@pytest.mark.parametrize("kind", OF_NO_USE)
def test_the_next_python_is_tried_when_the_first_is_of_no_use(
    kind: str, token: bytes, tmp_path: Path
) -> None:
    named_python3(tmp_path, OF_NO_USE[kind])
    tmp_path.joinpath("python").symlink_to(sys.executable)
    lane = Lane(lane_hello(token), env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert lane.greet().status == ACCEPTED
    lane.write(lane.goodbye())
    assert lane.wait()[0] == 0


def test_the_systems_own_python_is_tried_last(token: bytes, tmp_path: Path) -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("this system has none")
    for name in ("sh", "dirname"):
        tmp_path.joinpath(name).symlink_to(str(shutil.which(name)))
    named_python3(tmp_path, "exit 127")
    lane = Lane(lane_hello(token), env={"PATH": str(tmp_path)})
    assert lane.greet().status == ACCEPTED
    lane.write(lane.goodbye())
    assert lane.wait()[0] == 0


def test_when_no_python_is_of_use_each_is_named_with_its_reason(tmp_path: Path) -> None:
    named_python3(tmp_path, OF_NO_USE["one without zlib"])
    tmp_path.joinpath("py").write_text("#!/bin/sh\nexit 127\n")
    tmp_path.joinpath("py").chmod(0o755)
    for name, why in (("python3", "lacks zlib"), ("py", "does not run (status 127)")):
        path = tmp_path / name
        done = subprocess.run(argv(str(path)), capture_output=True, text=True, check=False)
        assert done.returncode == EXIT_OLD_PYTHON
        assert done.stderr == f"sshunt: {path} {why}, and Python 3.6 or newer is needed\n"


def test_a_python_without_a_needed_module_names_it(token: bytes, tmp_path: Path) -> None:
    named_python3(tmp_path, OF_NO_USE["one without zlib"].replace("zlib", "asyncio"))
    lane = Lane(lane_hello(token), env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    lane.write(upload(agent_bundle(), lane.hello))
    status, said = lane.wait()
    error = diagnose(status, said.splitlines(), b"")
    assert error.exit_code == ExitCode.NO_PYTHON
    assert "asyncio" in error.message


def test_without_an_agent_a_lane_that_must_find_one_is_told_so(python: str, token: bytes) -> None:
    lane = Lane(lane_hello(token, create=False), python=python)
    answer = lane.greet()
    assert (answer.status, answer.token) == (REFUSED_SESSION_GONE, token)
    assert "gone" in answer.sentence
    assert lane.wait() == (0, "")
    assert marked(lane.mark) == []


def test_a_client_from_the_future_is_told_which_versions_are_spoken(
    python: str, token: bytes
) -> None:
    future = lane_hello(token)._replace(version_min=7, version_max=9)
    lane = Lane(future, python=python)
    answer = lane.greet()
    assert answer.status == REFUSED_VERSION
    assert "7 to 9" in answer.sentence
    assert lane.wait() == (0, "")
    assert no_trace_of(token)


def test_bytes_behind_the_hello_reach_the_agent(token: bytes) -> None:
    lane = Lane(lane_hello(token))
    lane.greet(behind=lane.goodbye(), confirm=False)
    assert lane.wait() == (0, "")
    eventually(lambda: marked(lane.mark) == [], "the agent's end")


def test_an_agent_asked_to_terminate_removes_its_socket(token: bytes) -> None:
    lane = Lane(lane_hello(token, grace_s=20))
    lane.greet()
    [agent] = lane.agents()
    os.kill(agent, 15)
    assert lane.wait()[0] == 0
    assert no_trace_of(token)


def test_the_agent_keeps_no_terminal_no_folder_and_none_of_the_commands_pipes(
    token: bytes,
) -> None:
    lane = Lane(lane_hello(token, grace_s=20))
    lane.greet()
    [agent] = lane.agents()
    proc = Path("/proc", str(agent))
    pipes = {os.fstat(p.fileno()).st_ino for p in (lane.process.stdin, lane.process.stdout) if p}
    held = [os.stat(fd) for fd in (proc / "fd").iterdir()]
    held_pipes = {found.st_ino for found in held if stat.S_ISFIFO(found.st_mode)}
    stderr = lane.process.stderr
    assert os.readlink(proc / "cwd") == "/"
    assert held_pipes == pipes
    assert stderr is not None
    assert os.fstat(stderr.fileno()).st_ino not in held_pipes
    assert [os.readlink(proc / "fd" / n) for n in "012"] == ["/dev/null"] * 3
    status = (proc / "status").read_text()
    assert "Umask:\t0077" in status
    soft, hard = (proc / "limits").read_text().split("Max open files")[1].split()[:2]
    assert soft == hard
    lane.write(lane.goodbye())
    assert lane.wait() == (0, "")


# --- which Python -----------------------------------------------------------------------------


def folder_with(folder: Path, **programs: str) -> dict[str, str]:
    """An environment whose PATH has ``programs`` {name: interpreter} and nothing else."""
    for name, target in programs.items():
        folder.joinpath(name).write_text(f'#!/bin/sh\nexec {target} "$@"\n')
        folder.joinpath(name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.fixture
def no_python_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without one."""
    monkeypatch.setattr(bootstrap, "CANDIDATES", ("python3", "python"))


@pytest.mark.usefixtures("no_python_of_the_system")
def test_no_python_at_all_is_one_sentence_and_its_status(tmp_path: Path, token: bytes) -> None:
    lane = Lane(lane_hello(token), env=folder_with(tmp_path))
    status, said = lane.wait()
    assert status == EXIT_NO_PYTHON
    assert said.startswith("sshunt: found no Python here")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("no_python_of_the_system")
def test_only_a_python_2_is_named_with_its_version(tmp_path: Path, token: bytes) -> None:
    old = python2()
    if old is None:
        pytest.skip("no Python 2.7 on this machine")
    lane = Lane(lane_hello(token), env=folder_with(tmp_path, python=old))
    status, said = lane.wait()
    assert status == EXIT_OLD_PYTHON
    assert "Python 2.7" in said
    assert said.count("\n") == 1


def test_an_old_and_a_broken_python_are_passed_over_with_the_upload_untouched(
    tmp_path: Path, token: bytes
) -> None:
    old = python2()
    if old is None:
        pytest.skip("no Python 2.7 on this machine")
    env = folder_with(tmp_path, python3=old, python=INTERPRETERS[max(INTERPRETERS, key=len)])
    lane = Lane(lane_hello(token, create=False), env=env)
    assert lane.greet().status == REFUSED_SESSION_GONE
    lane.wait()
    tmp_path.joinpath("python3").write_text("#!/nowhere/python\n")
    lane = Lane(lane_hello(token, create=False), env=env)
    assert lane.greet().status == REFUSED_SESSION_GONE
    lane.wait()


def test_modules_lying_in_the_current_folder_are_not_imported(tmp_path: Path, token: bytes) -> None:
    for name in ("os", "zlib", "socket", "typing"):
        tmp_path.joinpath(f"{name}.py").write_text("raise SystemExit('a stray module')\n")
    enter = ("env", f"--chdir={tmp_path}")
    lane = Lane(lane_hello(token, create=False), prefix=enter)
    assert lane.greet().status == REFUSED_SESSION_GONE
    lane.wait()


def test_garbage_instead_of_a_hello_ends_with_a_sentence(token: bytes) -> None:
    lane = Lane(lane_hello(token))
    blob = upload(agent_bundle(), lane.hello)
    lane.write(blob[: -len(lane.hello.encode())] + b"GET / HTTP/1.0\r\n\r\n")
    status, said = lane.wait()
    assert status == EXIT_FAILED
    assert said.startswith("sshunt: the client did not introduce itself")
