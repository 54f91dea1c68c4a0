"""A socket of a program and a socket of a host, joined without a session between them.

    program == near socket --recv, send--> far socket == host
                           <--------------

What one side says is written to the other; what that does not take waits here, and meanwhile the
first is not read: so a reader that has stopped stops its writer, and READ_BYTES wait here at most,
for each direction. An end (FIN) is passed on once all before it is written, and when both have come
the sockets are closed. A side that dies, or is reset, has the other reset, too.

    CONNECTING  there is no far socket yet, or it is not connected; the near one is not read, but
                it is noticed if its program resets it
    JOINED      both directions move
    over        both sockets are closed

Here and not in relay/, all of which is shipped: the far side has no program of its own.

Not here: connecting (direct.dial). Not done: the kernel could move the bytes (piped); what stays on
this host is hardly bulk.
"""

import errno
import socket
from collections.abc import Callable
from functools import partial

from sshunt.relay.flow import Connection, Relay, Relays
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import DEAD, READING, WRITE
from sshunt.relay.sockets import close_with_reset, error_of, reset_code, set_priority

#: One read: what may wait in each direction.
READ_BYTES = 128 * 1024

#: Reads of one direction in one round of the event loop; then others have their turn.
READS_PER_ROUND = 8


class Splices(Relays):
    """The spliced connections of a process. Owns their sockets. ``on_over`` hears of each that is
    over: two descriptors are free.
    """

    def __init__(self, reactor: Reactor, on_over: Callable[[], None]) -> None:
        self._reactor = reactor
        self._on_over = on_over
        self.relays: set[Splice] = set()

    def join(self, connection: Connection, near: socket.socket) -> "Splice":
        """As in Relays."""
        splice = Splice(self._reactor, connection, near, self._ended)
        self.relays.add(splice)
        splice.wait()
        return splice

    def close(self) -> None:
        """Reset all of them."""
        for splice in list(self.relays):
            splice.abort(0)

    def _ended(self, splice: "Splice") -> None:
        self.relays.discard(splice)
        self._on_over()


class _Side:
    """One socket, what still has to be written to it, and what is known of it."""

    __slots__ = ("can_read", "fd", "has_ended", "is_shut", "pending", "sock", "watched")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.pending: memoryview | None = None
        self.can_read = False  # it may have something
        self.has_ended = False  # it says nothing more
        self.is_shut = False  # it has been told that nothing more comes
        self.watched: int | None = None  # the events asked for; None: it is not in the set


class Splice(Relay):
    """See the module's head. ``on_over`` hears of its end, once."""

    __slots__ = (
        "_connection",
        "_far",
        "_is_connecting",
        "_is_over",
        "_near",
        "_on_over",
        "_reactor",
    )

    def __init__(
        self,
        reactor: Reactor,
        connection: Connection,
        near: socket.socket,
        on_over: Callable[["Splice"], None],
    ) -> None:
        self._reactor = reactor
        self._connection = connection
        self._near = _Side(near)
        self._far: _Side | None = None
        self._on_over = on_over
        self._is_connecting = True
        self._is_over = False

    def wait(self) -> None:
        """Watch whether the program resets its connection meanwhile."""
        self._add(self._near, 0)

    @property
    def is_over(self) -> bool:
        """As in Relay."""
        return self._is_over

    @property
    def is_connecting(self) -> bool:
        """As in Relay."""
        return self._is_connecting

    @property
    def is_abandoned(self) -> bool:
        """As in Relay."""
        try:
            return self._near.sock.recv(1, socket.MSG_PEEK) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    @property
    def sock(self) -> socket.socket:
        """As in Relay."""
        if self._far is None:
            raise ValueError("the relay has no socket yet")
        return self._far.sock

    def connect(self, sock: socket.socket) -> None:
        """As in Relay."""
        self._far = _Side(sock)
        self._add(self._far, READING | WRITE)

    def take_connection(self, sock: socket.socket) -> None:
        """As in Relay."""
        self._far = _Side(sock)
        if self._add(self._far, READING):
            self._come_up(self._far)

    def abort(self, code: int) -> None:
        """As in Relay: both sides are reset."""
        if self._is_over:
            return
        self._is_over = True
        for side in (self._near, self._far):
            if side is not None and side.watched is not None:
                self._reactor.readiness.forget(side.fd)
        if self._far is not None:
            close_with_reset(self._far.sock)
        if self._is_connecting:
            self._is_connecting = False
            self._connection.refused(code)
        else:
            close_with_reset(self._near.sock)
        self._on_over(self)

    # --- events -------------------------------------------------------------------------------

    def _add(self, side: _Side, events: int) -> bool:
        if self._is_over:  # the program was faster
            side.sock.close()
            return False
        try:
            self._reactor.readiness.add(side.fd, partial(self._on_event, side), events)
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return False
        side.watched = events
        return True

    def _on_event(self, side: _Side, events: int) -> None:
        far = self._far
        if self._is_connecting:
            if side is far:
                self._on_connecting(far, events)
            elif events & DEAD and error_of(side.sock):
                self.abort(0)  # nobody is there to be told
            return
        if far is None or self._is_over:
            return
        other = far if side is self._near else self._near
        if events & ~WRITE:
            side.can_read = True
        if events & WRITE:
            self._move(other, side)
        self._move(side, other)
        if events & DEAD and not self._is_over and (side.can_read or side.has_ended):
            # It will not be read now, so reading does not tell. EPIPE is no news of one that still
            # has something to be read: see TcpRelay._on_unwanted.
            error = error_of(side.sock)
            if error and (side.has_ended or error != errno.EPIPE):
                self.abort(reset_code(error))

    def _on_connecting(self, far: _Side, events: int) -> None:
        error = error_of(far.sock)
        if error:
            self.abort(reset_code(error))
        elif events & WRITE:
            set_priority(far.sock, 0)  # see DIALED_PRIORITY
            self._come_up(far)

    def _come_up(self, far: _Side) -> None:
        self._is_connecting = False
        self._connection.opened()
        near = self._near
        near.can_read = far.can_read = True  # most programs have said something by now
        self._move(near, far)
        if not self._is_over:
            self._move(far, near)

    # --- bytes --------------------------------------------------------------------------------

    def _move(self, source: _Side, sink: _Side) -> None:
        """Move what ``source`` says to ``sink`` until one of them has had enough."""
        for _ in range(READS_PER_ROUND):
            if self._is_over or (sink.pending is not None and not self._write(sink, source)):
                break
            if source.has_ended:
                self._end(sink)
                break
            if not source.can_read:
                break
            try:
                data = source.sock.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                source.can_read = False
                break
            except OSError as error:
                self.abort(reset_code(error.errno or 0))
                return
            if data:
                sink.pending = memoryview(data)
            else:
                source.has_ended = True
        else:
            self._reactor.loop.call_soon(self._move, source, sink)  # the others want their turn
        if not self._is_over:
            self._watch(source, sink)
            self._watch(sink, source)

    def _write(self, sink: _Side, source: _Side) -> bool:
        """Write what waits for ``sink``; False if it does not take all of it."""
        pending = sink.pending
        try:
            sent = sink.sock.send(pending) if pending is not None else 0
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._on_unwritable(sink, source, reset_code(error.errno or 0))
            return False
        if pending is not None and sent < len(pending):
            sink.pending = pending[sent:]
            return False
        sink.pending = None
        return True

    def _on_unwritable(self, sink: _Side, source: _Side, code: int) -> None:
        """``sink`` takes nothing more. It may have said why before it hung up: that is passed on
        before the reset, as far as it is taken at once.
        """
        try:
            last_words = sink.sock.recv(READ_BYTES)
            if source.pending is None and last_words:
                source.sock.send(last_words)
        except OSError:
            pass  # there were none, or nobody hears them
        self.abort(code)

    def _end(self, sink: _Side) -> None:
        """Everything is written, and nothing more comes."""
        if not sink.is_shut:
            sink.is_shut = True
            try:
                sink.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # it has hung up, too, and reading tells how
                    self.abort(reset_code(error.errno or 0))
                    return
        near, far = self._near, self._far
        if far is not None and near.is_shut and far.is_shut:
            self._is_over = True
            for side in (near, far):
                self._reactor.readiness.forget(side.fd)
                side.sock.close()
            self._on_over(self)

    def _watch(self, side: _Side, other: _Side) -> None:
        """Ask for the events of ``side`` that are wanted now."""
        is_level = self._reactor.readiness.is_level
        events = 0 if side.has_ended or (is_level and other.pending is not None) else READING
        if side.pending is not None:
            events |= WRITE
        if not is_level:  # changes are told only once: what is not wanted does no harm
            events |= side.watched or 0
        if events != side.watched:
            side.watched = events
            self._reactor.readiness.change(side.fd, events)
