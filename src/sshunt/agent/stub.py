"""The stub: what an ssh command really runs. It brings ssh's pipes to the agent and waits.

    start      fork the agent (twice, with setsid: nobody's child, no terminal). It inherits this
               lane's descriptors and one end of a socketpair; later lanes come through its socket.
    hand over  prove the token to a running agent, then pass descriptors 0 and 1 to it.
    wait       let go of 0 and 1, copy what the agent says to stderr, until the agent closes.

The agent then reads and writes ssh's own pipes, so a byte takes no extra hop, and the stub exists
only because sshd takes the end of its command for the end of the channel.

Invariants: after the hand-over nothing here holds the lane's pipes; the agent holds none of sshd's
pipes except those of its lanes (sshd waits for all of them, stderr included). A stub that sees its
agent die without cleaning up cleans up for it: the agent may have been killed with -9.

Not here: who is answered what (main), the meeting place (rendezvous).
"""

import array
import os
import signal
import socket
import sys
import time
from typing import Callable, Tuple

from sshunt.agent.rendezvous import GO, PROOF_MAGIC, find, meeting_name, remove_dead
from sshunt.mux.hello import Hello

#: Exit statuses, beyond 0 (the lane ended in order). Never 1 or another one that a Python may end
#: with by itself: see ``transport.bootstrap``, which has 94 to 98 for what happens before.
EXIT_FAILED = 95  # no HELLO, or a bug
EXIT_AGENT_DIED = 99

#: An agent closes its last lanes, then its listener, then removes its socket. This long may lie
#: between the first and the last before we call it dead.
TIDY_DEADLINE_S = 0.4

#: What becomes the agent: called in the new process with the lane's two descriptors and the control
#: socket of its stub.
AgentLife = Callable[[int, int, socket.socket], None]


class NotWelcomeError(Exception):
    """The agent is alive and did not take this lane."""


def start_agent(life: AgentLife) -> socket.socket:
    """Fork the agent; returns the stub's end of the control socket. Raises OSError.

    In the agent's process this calls ``life`` and never returns.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        child = os.fork()
    except OSError:
        ours.close()
        its.close()
        raise
    if child == 0:
        ours.close()
        _become_agent(life, its)
    its.close()
    os.waitpid(child, 0)  # the go-between; it exits at once
    return ours


def hand_over(peer: socket.socket, hello: Hello) -> None:
    """Pass descriptors 0 and 1 to the agent behind ``peer``; raises NotWelcomeError or OSError."""
    if not _prove(peer, hello.token):
        raise NotWelcomeError("the agent did not accept the proof of the session token")
    message = hello.encode()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]).tobytes())
    sent = peer.sendmsg([message], [rights])
    if sent < len(message):
        # Not with nothing left: even that is a send, and fails where the agent has refused the lane
        # and hung up already. The client would be told twice.
        peer.sendall(message[sent:])


def wait(control: socket.socket, token: bytes) -> int:
    """Let go of ssh's pipes, wait for the lane's end; returns this process' exit status."""
    _become_null(0, 1)
    control.settimeout(None)
    while True:
        try:
            text = control.recv(4096)
        except ConnectionResetError:
            break  # it died with something of ours unread
        if not text:
            break
        write_all(2, text)
    control.close()
    return EXIT_AGENT_DIED if _tidy_up_after(token) else 0


def take_pipes() -> Tuple[int, int]:
    """Descriptors 0 and 1 under other numbers, which no child inherits: (to read, to write)."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    _become_null(0, 1)
    return read_fd, write_fd


def let_go_of_stderr() -> None:
    """In the agent: the first lane's sshd must not wait for us when that lane is over."""
    sys.stderr.flush()
    _become_null(2)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to a blocking descriptor; nobody listening any more is no error."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        pass


def _become_agent(life: AgentLife, control: socket.socket) -> None:
    """The go-between and the agent. Never returns: a forked child must not run its parent's end."""
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            os.umask(0o077)
            os.chdir("/")
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            read_fd, write_fd = take_pipes()
            life(read_fd, write_fd, control)
        status = 0
    finally:
        os._exit(status)


def _become_null(*fds: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def _tidy_up_after(token: bytes) -> bool:
    """True if the agent is dead and left its socket behind, which is then removed."""
    deadline = time.monotonic() + TIDY_DEADLINE_S
    name = meeting_name(token)
    while True:
        try:
            if _answers(find(name), token) or time.monotonic() > deadline:
                return False  # the agent lives: only this lane ended
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                remove_dead(name)
                return True
        except OSError:
            return False  # it has removed its socket, or is too busy to be dead
        time.sleep(0.05)


def _prove(peer: socket.socket, token: bytes) -> bool:
    """True if the agent behind ``peer`` accepts the token. Raises OSError."""
    peer.sendall(PROOF_MAGIC + token)
    return peer.recv(1) == GO


def _answers(peer: socket.socket, token: bytes) -> bool:
    """True if there is life behind ``peer``; the kernel closes a dead agent's sockets one by one,
    and for a moment one can still connect to it.
    """
    try:
        return _prove(peer, token)
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        peer.close()
