"""How another ``sshunt`` command of the same user speaks with one that is running.

    the command   {"do": "reconnect"}             one line of JSON
    the session   {"ok": true, "says": "..."}     one line, or {"error": "a sentence"}; then the end

    the command   {"do": "about"}
    the session   {"ok": true, "host": "gate", "says": "gate, 10.0.0.0/8: connected",
                   "ways": [["203.0.113.7", 22]]}       what it is connected to; see neighbours

They meet at an abstract socket (unix(7)) named ``\\0sshunt/<uid>/<session>``. The kernel forgets it
together with its process: whatever is killed, no file is left behind. But such a name has no owner
and no mode, anybody may bind it or connect to it. So both ends ask the kernel who the other is
(SO_PEERCRED), and say nothing to anybody but this user and root. Names that others hold, and those
behind which nobody answers the call, are passed over when all sessions are asked.

The name belongs to a network namespace: a command finds the sessions of its own. Where there are
no abstract sockets (not Linux), a session does without; it works, it can't be spoken with.

Invariants: whoever calls, what is held is bounded (CALLERS, REQUEST_BYTES) and so is the time
(DEADLINE_S); a bad caller harms only itself; when accepting fails it pauses and never spins, and
so it does after other users' calls, of which there may be as many as they like.

Not here: what the verbs do (remote.upkeep, commands); what is typed (commands.reconnect).
"""

import asyncio
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sshunt.errors import ExitCode, UserError
from sshunt.relay.accepting import Acceptor
from sshunt.tell.report import PeersBypassed, RemoteConnected, RemoteLost, Report
from sshunt.tell.sentences import targets_text
from sshunt.tell.session_name import abstract_name

#: Longest request, which is a verb, and longest answer, which is a few figures: one send to a fresh
#: socket takes it whole.
REQUEST_BYTES = 1024
ANSWER_BYTES = 64 * 1024

#: The time for the whole of a conversation, at either end. Both are on one machine; seconds are for
#: one that swaps.
DEADLINE_S = 5.0

#: Callers that may be heard at a time. Commands say what they want at once, and are answered.
CALLERS = 8

#: Callers that may wait to be accepted, those of other users among them until they are hung up on.
BACKLOG = 64

#: The pause in accepting when it fails: out of descriptors, mostly.
ACCEPT_PAUSE_S = 1.0

#: Endpoints that a session names, at most. It has left alone a few.
MOST_ENDPOINTS = 64

#: Characters of a sentence from the other side that are shown.
SENTENCE_CHARS = 500

#: The advice where no session runs.
START_ONE = "start one: sshunt -r HOST TARGET..."

_SESSION = re.compile(r"[0-9a-f]{8}")

#: A listening session's line in /proc/net/unix: number, references, protocol, flags
#: (__SO_ACCEPTCON: it listens; the sockets it has accepted bear the same name), type, state, inode,
#: name with @ for NUL. A name may be any bytes, line ends too: what looks like a line of this form
#: may be another user's invention.
_TABLE_LINE = r"^\S+ \S+ \S+ 00010000 \S+ \S+ +\d+ @sshunt/{uid}/([0-9a-f]{{8}})$"

Answer = Callable[[str], Mapping[str, object]]


class MessageError(Exception):
    """What the other side says is no message of ours."""


class UnknownPeerError(UserError):
    """Whoever has the session's name, it was not shown to be a session of this user's."""


class NotCalledError(UnknownPeerError):
    """... because it has no room for another caller, or we have none."""


class ControlServer:
    """Answers other commands of this user at ``place``, which it owns, until closed.

    ``answer`` gets a verb and returns what can be written as JSON, with a sentence for the person
    in "says"; it raises KeyError for a verb it does not know. Any other exception is a bug: the
    caller is told that there was one, the loop's exception handler gets it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, place: socket.socket | None, answer: Answer
    ) -> None:
        self._loop = loop
        self._answer = answer
        self._callers: dict[socket.socket, _Caller] = {}
        self._listener = _listening(place)
        self._acceptor: Acceptor | None = None
        if self._listener is not None:
            self._acceptor = Acceptor(
                loop,
                self._listener,
                self._let_in,
                per_round=BACKLOG,
                pause_s=ACCEPT_PAUSE_S,
                is_welcome=_is_trusted,
            )
            self._acceptor.start()

    def close(self) -> None:
        """Stop listening and hang up on whoever has not been answered. May be called twice."""
        if self._acceptor is not None:
            self._acceptor.close()
        for peer in list(self._callers):
            self._hang_up(peer)

    def _let_in(self, peer: socket.socket) -> None:
        if len(self._callers) >= CALLERS:
            self._answer_all()
        if len(self._callers) >= CALLERS:
            peer.close()
            return
        deadline = self._loop.call_later(DEADLINE_S, self._hang_up, peer)
        self._callers[peer] = _Caller(deadline, bytearray())
        self._loop.add_reader(peer, self._readable, peer)

    def _answer_all(self) -> None:
        """Those that have said what they want make room at once."""
        for peer in list(self._callers):
            try:
                self._readable(peer)
            except Exception as error:  # noqa: BLE001 (of ``answer``: not the affair of who calls now)
                self._loop.call_exception_handler({"message": "no answer", "exception": error})

    def _readable(self, peer: socket.socket) -> None:
        said = self._callers[peer].said
        try:
            data = peer.recv(REQUEST_BYTES + 1 - len(said))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        said += data
        if not data:
            self._hang_up(peer)
        elif b"\n" in said or len(said) > REQUEST_BYTES:
            self._reply(peer, bytes(said))

    def _reply(self, peer: socket.socket, said: bytes) -> None:
        """Answer, and hang up. What ``answer`` raises goes on to the loop, as from any callback."""
        self._forget(peer)  # first: ``answer`` may close this server, and still is heard
        line = _line({"error": "that was a bug of sshunt; the session says more of it"})
        try:
            line = self._answer_line(said)
        finally:
            with suppress(OSError):  # it did not wait for the answer
                peer.send(line)
            peer.close()

    def _answer_line(self, said: bytes) -> bytes:
        try:
            verb = decode_request_untrusted(said)
        except MessageError as error:
            return _line({"error": str(error)})
        try:
            answer = self._answer(verb)
        except KeyError:
            return _line({"error": f"it does not know {verb!r}"})
        line = _line({"ok": True, **answer})
        if len(line) > ANSWER_BYTES:
            raise ValueError(f"an answer to {verb!r} of {len(line)} bytes")
        return line

    def _hang_up(self, peer: socket.socket) -> None:
        self._forget(peer)
        peer.close()

    def _forget(self, peer: socket.socket) -> None:
        self._loop.remove_reader(peer)
        self._callers.pop(peer).deadline.cancel()


class _Caller(NamedTuple):
    """One that has not been answered, and what it has said so far."""

    deadline: asyncio.TimerHandle
    said: bytearray


def about(report: Report, remote: str) -> dict[str, object]:
    """The answer to "about", from what was last said of the only remote there is."""
    lost = isinstance(report.state(remote), RemoteLost)
    bypassed = report.latest(PeersBypassed, remote)
    connected = report.latest(RemoteConnected, remote)
    return {
        "host": connected.host if connected else remote,
        "says": says(report, remote, "connecting again" if lost else "connected"),
        "ways": () if lost or bypassed is None else bypassed.endpoints[:MOST_ENDPOINTS],
    }


def says(report: Report, remote: str, does: str) -> str:
    """One line for people: which session this is, and what it does."""
    connected = report.latest(RemoteConnected, remote)
    if connected is None:
        return f"{remote}: {does}"
    targets = targets_text(connected.routes, has_dns=connected.has_dns)
    return f"{connected.host}, {targets}: {does}"


def sessions() -> list[str]:
    """The sessions of this user that run here, sorted. Their names only: who is behind a name is
    for ``ask`` to find out.
    """
    try:
        table = Path("/proc/net/unix").read_bytes()
    except OSError:
        return []
    pattern = _TABLE_LINE.format(uid=os.geteuid()).encode()
    return sorted({name.decode() for name in re.findall(pattern, table, re.MULTILINE)})


def ask(session: str, verb: str, *, deadline_s: float | None = None) -> dict[str, object]:
    """What ``session`` answers to ``verb``. Waits for it, DEADLINE_S at most unless told otherwise;
    raises UserError.
    """
    return ask_whom(session, verb, deadline_s)[0]


def ask_whom(
    session: str, verb: str, deadline_s: float | None = None
) -> tuple[dict[str, object], int]:
    """The same, and the pid of who answered (0: in a place that has no number for it)."""
    if not _SESSION.fullmatch(session):
        raise _no_such(session)
    try:
        within_s = DEADLINE_S if deadline_s is None else deadline_s
        said, pid = _converse(session, _line({"do": verb}), within_s)
        answer = _decode_untrusted(said, ANSWER_BYTES)
    except TimeoutError:
        raise UserError(
            f"session {session} does not answer",
            "if it was stopped (Ctrl-Z), let it go on: fg; otherwise end it and start it anew",
            ExitCode.LOST,
        )
    except (OSError, MessageError) as error:
        raise UserError(
            f"session {session} gave no answer: {error}",
            "try again; if that does not help, end it and start it anew",
            ExitCode.LOST,
        )
    if answer.get("ok") is not True:
        raise UserError(
            f"session {session} refused: {sentence_untrusted(answer.get('error'))}",
            "if it is an sshunt of another version, end it and start it anew",
            ExitCode.LOST,
        )
    return answer, pid


def decode_request_untrusted(said: bytes) -> str:
    """The verb of a request; raises MessageError."""
    verb = _decode_untrusted(said, REQUEST_BYTES).get("do")
    if not isinstance(verb, str):
        raise MessageError("nothing to do")
    return verb


# --- the socket -------------------------------------------------------------------------------


def _listening(place: socket.socket | None) -> socket.socket | None:
    if place is None:
        return None
    try:
        place.listen(BACKLOG)
    except OSError:
        place.close()
        return None
    return place


def _is_trusted(peer: socket.socket) -> bool:
    """True if the other end is this user or root: as of its connect(2), or its listen(2)."""
    return _credentials(peer)[1] in (0, os.geteuid())


def _credentials(peer: socket.socket) -> tuple[int, int]:
    """The (pid, uid) at the other end. (``agent.rendezvous`` is shipped and ``helper.starter``
    runs as root: each has its own.)
    """
    size = struct.calcsize("3i")
    pid, uid, _gid = struct.unpack(
        "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return pid, uid


def _converse(session: str, request: bytes, within_s: float) -> tuple[bytes, int]:
    """What comes back for ``request``, and from which process. Raises UnknownPeerError if nobody of
    ours is there, TimeoutError after that time, another OSError or MessageError if there
    is no answer.
    """
    deadline_s = time.monotonic() + within_s
    said = b""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(within_s)
        try:
            peer.connect(abstract_name(session))
        except ConnectionRefusedError:
            raise _no_such(session)
        except OSError as error:  # its queue of callers is full: it can't even be called
            raise NotCalledError(
                f"session {session} gave no answer: {error}",
                "try again; if that does not help, end it and start it anew",
                ExitCode.LOST,
            )
        if not _is_trusted(peer):
            raise UnknownPeerError(
                f"the name of session {session} is held by another user, who was told nothing",
                "end your sshunt and start it anew: it will have another name",
                ExitCode.LOST,
            )
        peer.sendall(request)
        while b"\n" not in said and len(said) <= ANSWER_BYTES:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            peer.settimeout(left_s)
            data = peer.recv(ANSWER_BYTES + 1 - len(said))
            if not data:
                raise MessageError("it hung up")
            said += data
        return said, _credentials(peer)[0]


# --- what is said -----------------------------------------------------------------------------


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decode_untrusted(said: bytes, limit_bytes: int) -> dict[str, object]:
    """The JSON object that ``said`` is, one line of it; raises MessageError."""
    if len(said) > limit_bytes or said.find(b"\n") != len(said) - 1:
        raise MessageError("not one short line")
    try:
        message = json.loads(said.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or a thousand brackets
        raise MessageError("not a line of JSON")
    if not isinstance(message, dict):
        raise MessageError("not a JSON object")
    return message


def sentence_untrusted(text: object) -> str:
    """``text`` as it may be shown on a terminal. (``mux.text`` has the same for the protocol, of
    which nothing is known here.)
    """
    if not isinstance(text, str):
        return "(it does not say why)"
    return "".join(c if c.isprintable() else " " for c in text[:SENTENCE_CHARS])


#: Names told to somebody who gave another one.
_SHOWN = 8


def _no_such(session: str) -> UserError:
    running = sessions()
    more = ", ..." if len(running) > _SHOWN else ""
    shown = ", ".join(running[:_SHOWN]) + more
    hint = f"running: {shown}" if running else f"none is running; {START_ONE}"
    return UnknownPeerError(f"no session {session!r} of yours is running", hint, ExitCode.USAGE)
