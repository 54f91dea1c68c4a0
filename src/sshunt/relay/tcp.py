"""One TCP connection of this host, tied to one stream of the session.

The relay owns its socket. It reads while the stream has room and stops while it has not, so the
kernel's own flow control reaches the sending program. What it receives it writes at once; what
the socket does not take it keeps, and only what was written is reported as consumed: that returns
the credit. So at most a window waits here, and a stopped reader stalls nothing but itself.

    socket EOF      -> finish          FIN        -> shutdown(SHUT_WR), once everything is written
    socket error    -> reset(code)     RESET      -> the socket is closed with a RST
    both halves over -> close

How reading goes on, and what is done when the readiness set tells something meanwhile (it tells
changes, once: what is not wanted just now is noted, and asked for again when it is):

                                                       told: readable    told: it has died
    EVENT   the socket was empty: when the set tells   read on           read on, to the error
    SOON    there is more: at the next tick, or in     noted             reset (not for EPIPE: what
            the next round of the event loop                             it said is still there)
    ROOM    the stream has no room: when it has        noted             the same
    NEVER   not yet, or not any more                   noted             the same

The far side's socket may have data to write before it is connected, even before it exists (while a
name is looked up): that waits, too (backlog).

One object for both halves, for they share what is hard: the events that the set is asked for, and
the socket's death, which a write may meet first and only reading explains. What concerns writing
alone is in backlog.
"""

import errno
import socket
from typing import Optional, Tuple

from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.backlog import Backlog
from sshunt.relay.flow import Relay
from sshunt.relay.piped import PipedPayload
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import DEAD, ENDED, READ, READING, URGENT, WRITE
from sshunt.relay.sockets import close_with_reset, error_of, reset_code, set_priority
from sshunt.relay.ticks import BUSY_BYTES

#: A connection's first reads are small, so that thousands of small ones cost little memory ...
FIRST_READ_BYTES = 16 * 1024

#: ... and this once they are filled: reads below 128 KiB cost a fifth of the throughput.
READ_BYTES = 256 * 1024

#: Full reads in one round of the event loop; the stream's room ends it earlier in most cases.
READS_PER_ROUND = 2

#: How reading goes on.
EVENT, SOON, ROOM, NEVER = 0, 1, 2, 3

#: The events of one that reads short although it has more: up to an urgent byte, or before its
#: end.
_HAS_MORE = URGENT | ENDED | DEAD


class RelayOwner:
    """Who has the session that a relay's stream belongs to."""

    @property
    def wants_pipes(self) -> bool:
        """True if what is read in bulk should stay in the kernel."""
        raise NotImplementedError

    def note_full(self) -> None:
        """A socket has more than its stream has room for."""
        raise NotImplementedError

    def relay_ended(self, relay: Relay) -> None:
        """``relay`` is over; its stream has no owner any more."""
        raise NotImplementedError


class TcpRelay(Relay):
    """Moves bytes between ``sock`` (non-blocking) and ``stream``, one of ``session``, until both
    are over.
    """

    __slots__ = (
        "_backlog",
        "_fd",
        "_fin_received",
        "_fin_sent",
        "_owner",
        "_pending_events",
        "_reactor",
        "_read_bytes",
        "_reading",
        "_session",
        "_sock",
        "_unwritable_code",
        "_watched",
        "connected",
        "stream",
    )

    _sock: socket.socket  # where there is one

    def __init__(
        self, reactor: Reactor, session: Session, owner: RelayOwner, stream: Stream
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._owner = owner
        self._fd = -1  # of our socket; there is none yet
        self._backlog: Optional[Backlog] = None  # received, not yet written
        self._read_bytes = FIRST_READ_BYTES if not reactor.always_pipes else READ_BYTES
        self._reading = NEVER
        self._watched = 0  # the events asked for
        self._unwritable_code = 0  # of the reset that is to follow what the peer has said; 0: none
        self._pending_events = 0  # those of _HAS_MORE that may still be true
        self._fin_received = False
        self._fin_sent = False
        self.connected = False
        self.stream = stream
        stream.owner = self

    @property
    def sock(self) -> socket.socket:
        """The relay's own socket; raises ValueError before there is one."""
        if self._fd < 0:
            raise ValueError("the relay has no socket yet")
        return self._sock

    @property
    def is_over(self) -> bool:
        """As in Relay."""
        return self.stream.owner is not self

    @property
    def is_connecting(self) -> bool:
        """True while the far side's socket is neither connected nor given up."""
        return not self.connected and self.stream.owner is self

    @property
    def is_abandoned(self) -> bool:
        """True if the other end has hung up without having sent anything that still waits."""
        return self._fin_received and self._backlog is None

    # --- from the socket ----------------------------------------------------------------------

    def start(self, sock: socket.socket) -> None:
        """``sock`` is connected, and ours now: read from it, write what has come for it."""
        self._sock = sock
        self._fd = sock.fileno()
        if self._add(READING):
            self._begin()
        if self.connected:
            self._read_on()  # most programs have said something by now

    def connect(self, sock: socket.socket) -> None:
        """``sock`` is connecting, and ours now: tell the far side how it ends."""
        self._sock = sock
        self._fd = sock.fileno()
        self._add(READING | WRITE)

    def _add(self, events: int) -> bool:
        """Have our socket watched; False if that can't be, and the connection is over."""
        if self.stream.owner is not self:  # with its session
            close_with_reset(self._sock)
            return False
        self._watched = events
        try:
            self._reactor.readiness.add(self._fd, self._on_event, events)
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return False
        return True

    def take_connection(self, sock: socket.socket) -> None:
        """``sock`` is the connection that the far side asked for: tell it, and start."""
        self._accept()
        self.start(sock)

    def _accept(self) -> None:
        self._session.accept(self.stream)
        self._reactor.wake(self._session)

    def _begin(self) -> None:
        self.connected = True
        self._reading = EVENT
        if self._backlog is not None or self._fin_received:
            self._write_backlog()

    def _on_event(self, events: int) -> None:
        """The readiness set tells something of our socket."""
        if not self.connected:
            self._on_connected(events)
        if events & ~WRITE and self.connected:
            self._pending_events |= events & _HAS_MORE
            if self._reading == EVENT:
                self._read_on()
            else:
                self._on_unwanted(events)
        if events & WRITE and self.connected:
            if self._backlog is None:
                if self._reactor.readiness.is_level:
                    self._watch(self._watched & ~WRITE)
            elif not (events & DEAD and self._reading == SOON):  # it would fail too soon
                self._write_backlog()

    def _on_connected(self, events: int) -> None:
        error = error_of(self._sock)
        if error:
            self.abort(reset_code(error))
        elif events & WRITE:
            self._come_up()

    def _come_up(self) -> None:
        """What we have been connecting is connected."""
        set_priority(self._sock, 0)  # see DIALED_PRIORITY
        self._accept()
        self._begin()

    def _on_unwanted(self, events: int) -> None:
        """There is something to read, but not now. Has the connection died?

        EPIPE is no such news: the peer had ended its half, all of which is here to be read, and its
        kernel knows nothing of the connection any more. Linux forgets one that was closed after a
        minute (tcp(7), tcp_fin_timeout), however slowly its last bytes are read.
        """
        error = error_of(self._sock) if events & DEAD else 0
        if error and error != errno.EPIPE:
            self.abort(reset_code(error))
        elif self._watched & READ:
            self._watch(self._watched & ~READING)

    def _want(self, events: int) -> None:
        if self._watched & events != events:
            self._watch(self._watched | events)

    def _watch(self, events: int) -> None:
        self._watched = events
        self._reactor.readiness.change(self._fd, events)

    def _read_on(self) -> None:
        """Read until there is nothing more, or enough for now."""
        for _ in range(READS_PER_ROUND):
            if not self._read():
                return
        self._reading = SOON
        if not self._reactor.ticks.next(self._on_soon):
            self._reactor.loop.call_soon(self._on_soon)

    def _on_soon(self) -> None:
        if self._reading == SOON:
            self._read_on()

    def on_writable(self) -> None:
        """The stream has room again: read until it has none or the socket is empty.

        So while the lane is what limits us, the loop need not watch this socket at all.
        """
        while self.connected and not self._fin_sent and self._read():
            pass

    def _read(self) -> bool:
        """Move one read from the socket to the stream. True: another would bring more; False: how
        it goes on is settled.
        """
        room = self._session.room_bytes(self.stream)
        if not room:
            self._wait_for_room()
            return False
        try:
            payload, count, size = self._receive(room)
        except (BlockingIOError, InterruptedError):
            self._on_empty()
            return False
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return False
        if not count:
            self._on_end()
            return False
        self._session.write(self.stream, payload, self._reactor.loop.time())
        self._reactor.wake(self._session)
        if self._pending_events & DEAD:
            # What the peer said before it reset the connection leaves before we find that out.
            self._reading = SOON
            self._reactor.loop.call_soon(self._on_soon)
            return False
        if count == size:
            self._read_bytes = READ_BYTES
            return True
        if self._pending_events:
            return True
        if count >= BUSY_BYTES and self._reactor.ticks.next(self._on_soon):
            self._reading = SOON
            return False
        if isinstance(payload, PipedPayload):
            return True  # a pipe's limit is pieces, however small: there may be more
        self._read_later()  # the socket is empty now
        return False

    def _wait_for_room(self) -> None:
        """The stream has none: ``on_writable`` comes when there is some."""
        self._reading = ROOM
        self._owner.note_full()
        if self._pending_events & DEAD:  # told once, and it may be long until we read again
            self._on_unwanted(self._pending_events)

    def _on_empty(self) -> None:
        """The socket has nothing just now."""
        if self._unwritable_code:
            self.abort(self._unwritable_code)
            return
        self._pending_events &= ~URGENT
        self._read_later()

    def _on_end(self) -> None:
        """The socket will bring nothing more."""
        if self._unwritable_code:  # the failed write took the error with it
            self.abort(self._unwritable_code)
            return
        self._fin_sent = True
        self._reading = NEVER
        self._session.finish(self.stream, self._reactor.loop.time())
        self._reactor.wake(self._session)
        self._close_if_over()

    def _read_later(self) -> None:
        self._reading = EVENT
        if self._watched & READING != READING:
            self._watch(self._watched | READING)

    def _receive(self, room: int) -> Tuple[Payload, int, int]:
        """What the socket has, how much that is, and how much could have come: in a pipe if that is
        likely to be much. Raises OSError, BlockingIOError if it has nothing.
        """
        if self._read_bytes == READ_BYTES and self._owner.wants_pipes:
            size = min(room, self._session.frame_bytes)  # more would only be cut
            payload = self._reactor.pipes.receive(self._fd, size, self._session)
            if payload is not None:
                return payload, len(payload), size
        size = self._read_bytes if self._read_bytes < room else room
        data = self._sock.recv(size)
        return Payload(data), len(data), size

    # --- from the session ---------------------------------------------------------------------

    def on_data(self, payload: Payload) -> None:
        """The next bytes for the socket. They lie in the lane's buffer: write them or copy them."""
        view = payload.view
        if self._unwritable_code:
            self._session.consumed(self.stream, len(view), self._reactor.loop.time())
            return
        if self._backlog is not None or self._fd < 0:
            self._keep(view)
            return
        sent = 0
        try:
            sent = self._sock.send(view)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if self.connected or error.errno != errno.ENOTCONN:  # BSD's word for "not yet"
                self.on_unwritable(error)
                return
        if sent and not self.connected:  # a near host has answered by now
            self._come_up()
        if sent < len(view):
            self._keep(view[sent:])
        if sent:
            self._session.consumed(self.stream, sent, self._reactor.loop.time())

    def direct_fd(self) -> int:
        """The socket's descriptor if bytes may go straight to it, else -1: some wait already."""
        if not self.connected or self._backlog is not None:
            return -1
        return -1 if self._unwritable_code else self._fd

    def on_unwritable(self, error: OSError) -> None:
        """The socket takes nothing more. The peer may have said why before it hung up, and that is
        still there to be read: it goes on its way before the reset.
        """
        code = reset_code(error.errno or 0)
        waits = self._reading == ROOM
        if not self.connected or self._fin_sent or (waits and error.errno != errno.EPIPE):
            self.abort(code)
            return
        self._unwritable_code = code
        self._backlog = None
        self._pending_events |= DEAD
        if not waits:
            self._reading = SOON
            self._reactor.loop.call_soon(self._on_soon)

    def on_fin(self) -> None:
        """The far side sends nothing more."""
        self._fin_received = True
        if self.connected and self._backlog is None:
            self._shut_down()

    def on_opened(self) -> None:
        """The far side's connection is up; nothing has waited for it: data goes with the OPEN."""

    def on_reset(self, _code: int) -> None:
        """The far side ended the stream: so does our socket, the same way."""
        self._drop()

    def abort(self, code: int) -> None:
        """Our socket failed: tell the far side, close. Nothing happens if the relay is over."""
        if self.stream.owner is self:
            self._session.reset(self.stream, code)
            self._reactor.wake(self._session)
            self._drop()

    # --- inside -------------------------------------------------------------------------------

    def _keep(self, view: memoryview) -> None:
        """The socket does not take these now."""
        if self._backlog is None:
            self._backlog = Backlog()
        self._backlog.keep(view)
        if self.connected:
            self._want(WRITE)

    def _write_backlog(self) -> None:
        if self._backlog is not None:
            try:
                written = self._backlog.write(self._sock)
            except OSError as error:
                self.on_unwritable(error)
                return
            if written:
                self._session.consumed(self.stream, written, self._reactor.loop.time())
                self._reactor.wake_if_needed(self._session)
            if self._backlog:
                self._want(WRITE)
                return
            self._backlog = None
        if self._fin_received:
            self._shut_down()

    def _shut_down(self) -> None:
        if not self._fin_sent:  # else close() says the same
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # the peer reset it meanwhile
                self.on_unwritable(error)
                return
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._fin_sent and self._fin_received and self._backlog is None:
            self._reactor.readiness.forget(self._fd)
            self._sock.close()
            self.connected = False
            self._over()

    def _drop(self) -> None:
        self.connected = False
        self._reading = NEVER
        self._backlog = None
        if self._fd >= 0:
            self._reactor.readiness.forget(self._fd)
            close_with_reset(self._sock)
        self._over()

    def _over(self) -> None:
        self.stream.owner = None
        self._owner.relay_ended(self)
