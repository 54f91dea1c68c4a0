"""One TCP connection of this host, tied to one stream of the session.

The relay owns its socket. It reads while the stream has room and stops while it has not, so the
kernel's own flow control reaches the sending program. What it receives it writes at once; what
the socket does not take it keeps, and only what was written is reported as consumed: that returns
the credit. So at most a window waits here, and a stopped reader stalls nothing but itself.

    socket EOF      -> finish          FIN        -> shutdown(SHUT_WR), once everything is written
    socket error    -> reset(code)     RESET      -> the socket is closed with a RST
    both halves over -> close

The far side's socket may have data to write before it is connected, even before it exists (while a
name is looked up): that waits in the same queue.
"""

import fcntl
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Deque, Optional

from sshunt.mux.payload import Payload
from sshunt.mux.streams import Stream
from sshunt.relay.promise import PromisedPayload
from sshunt.relay.sockets import close_with_reset, reset_code

if TYPE_CHECKING:
    from sshunt.relay.tunnel import Tunnel

#: A connection's first reads are small, so that thousands of small ones cost little memory ...
FIRST_READ_BYTES = 16 * 1024

#: ... and grow when they are filled: reads below 128 KiB cost a fifth of the throughput.
READ_BYTES = 256 * 1024


#: From this size on, bytes are worth two system calls of their own to stay in the kernel.
PROMISED_BYTES = 32 * 1024

_INT = struct.Struct("i")

#: Full reads in one round of the event loop; the stream's room ends it earlier in most cases.
READS_PER_ROUND = 2

#: What waits for a socket is kept in pieces of at least this size.
JOINED_BYTES = 64 * 1024


class TcpRelay:
    """Moves bytes between ``sock`` (non-blocking) and ``stream`` until both are over."""

    __slots__ = (
        "_fin_received",
        "_fin_sent",
        "_head_sent",
        "_paused",
        "_pending",
        "_promised",
        "_read_bytes",
        "_reading",
        "_sock",
        "_tunnel",
        "_writing",
        "connected",
        "stream",
    )

    def __init__(self, tunnel: "Tunnel", stream: Stream) -> None:
        self._tunnel = tunnel
        self._sock: Optional[socket.socket] = None
        self._pending: Optional[Deque[bytearray]] = None  # received, not yet written
        self._head_sent = 0  # bytes of the first of them that were written
        self._read_bytes = FIRST_READ_BYTES
        self._reading = False  # registered with the loop
        self._writing = False  # registered with the loop
        self._paused = False  # watched for errors only
        self._promised = 0  # bytes that stay in the socket until a lane moves them
        self._fin_received = False
        self._fin_sent = False
        self.connected = False
        self.stream = stream
        stream.owner = self
        tunnel.relays.add(self)

    @property
    def sock(self) -> socket.socket:
        """The relay's own socket; raises ValueError before there is one."""
        if self._sock is None:
            raise ValueError("the relay has no socket yet")
        return self._sock

    @property
    def is_connecting(self) -> bool:
        """True while the far side's socket is neither connected nor given up."""
        return not self.connected and self.stream.owner is self

    @property
    def is_abandoned(self) -> bool:
        """True if the other end has hung up without having sent anything that still waits."""
        return self._fin_received and self._pending is None

    # --- from the socket ----------------------------------------------------------------------

    def start(self, sock: socket.socket) -> None:
        """``sock`` is connected, and ours now: read from it, write what has come for it."""
        self._sock = sock
        self.connected = True
        self._read_later()
        if self._pending is not None or self._fin_received:
            self._write_pending()

    def wait_for_connection(self, sock: socket.socket) -> None:
        """``sock`` is connecting, and ours now: tell the far side how it goes."""
        self._sock = sock
        self._writing = True
        self._tunnel.loop.add_writer(sock.fileno(), self._on_connected)

    def _on_connected(self) -> None:
        sock = self.sock
        self._write_no_more()
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.abort(reset_code(error))
            return
        self.take_connection(sock)

    def take_connection(self, sock: socket.socket) -> None:
        """``sock`` is the connection that the far side asked for: tell it, and start."""
        self._tunnel.session.accept(self.stream)
        self._tunnel.wake()
        self.start(sock)

    def _on_readable(self) -> None:
        for _ in range(READS_PER_ROUND):
            if not self._read():
                break

    def on_writable(self) -> None:
        """The stream has room again: read until it has none or the socket is empty.

        So while the lane is what limits us, the loop need not watch this socket at all.
        """
        while self.connected and not self._fin_sent and self._read():
            pass

    def _read(self) -> bool:
        """Move one read from the socket to the stream; False if another would bring little."""
        room = self._tunnel.session.room_bytes(self.stream)
        if not room:
            self._pause()  # on_writable comes when there is room
            return False
        if self._promised:
            return False  # on_moved comes when it is kept
        if self._read_bytes == READ_BYTES and self._tunnel.moves_payload and self._promise(room):
            return False
        size = self._read_bytes
        try:
            data = self.sock.recv(size if size < room else room)
        except (BlockingIOError, InterruptedError):
            self._read_later()
            return False
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return False
        if data:
            self._tunnel.write(self.stream, Payload(data))
            if len(data) < size:
                self._read_later()
                return False  # the socket is empty now
            self._read_bytes = READ_BYTES
            return True
        self._fin_sent = True
        self._read_no_more()
        if not self._fin_received:
            self._tunnel.paused.soon(self._watch_half_closed)
        self._tunnel.finish(self.stream)
        self._close_if_over()
        return False

    def _promise(self, room: int) -> bool:
        """Leave the next bytes in the socket until their turn comes; False if they are few."""
        waiting: int = _INT.unpack(fcntl.ioctl(self.sock, termios.FIONREAD, _INT.pack(0)))[0]
        size = min(waiting, room)
        if size < PROMISED_BYTES:
            return False
        self._promised = size
        self._pause()
        self._tunnel.write(self.stream, PromisedPayload(self, size))
        return True

    def on_moved(self, size: int) -> None:
        """``size`` promised bytes have left the socket."""
        self._promised -= size
        if not self._promised:
            self.on_writable()

    # --- from the session ---------------------------------------------------------------------

    def on_data(self, payload: Payload) -> None:
        """The next bytes for the socket. They lie in the lane's buffer: write them or copy them."""
        view = payload.view
        if self._pending is not None or not self.connected:
            self._keep(view)
            return
        try:
            sent = self.sock.send(view)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return
        if sent < len(view):
            self._keep(view[sent:])
        if sent:
            self._tunnel.session.consumed(self.stream, sent, self._tunnel.loop.time())

    def passage(self) -> int:
        """The socket's descriptor if bytes may go straight to it, else -1: some wait already."""
        if self._sock is None or not self.connected or self._pending is not None:
            return -1
        return self._sock.fileno()

    def on_fin(self) -> None:
        """The far side sends nothing more."""
        self._fin_received = True
        if self.connected and self._pending is None:
            self._shut_down()

    def on_reset(self) -> None:
        """The far side ended the stream: so does our socket, the same way."""
        self._drop()

    def abort(self, code: int) -> None:
        """Our socket failed: tell the far side, close."""
        self._tunnel.session.reset(self.stream, code)
        self._tunnel.wake()
        self._drop()

    # --- inside -------------------------------------------------------------------------------

    def _keep(self, view: memoryview) -> None:
        """Copy what the socket did not take. Small pieces are joined, so that a peer that sends
        bytes one by one can't make each cost an object.
        """
        if self._pending is None:
            self._pending = deque()
        if self._pending and len(self._pending[-1]) < JOINED_BYTES:
            self._pending[-1] += view
        else:
            self._pending.append(bytearray(view))
        if self.connected and not self._writing:
            self._writing = True
            self._tunnel.loop.add_writer(self.sock.fileno(), self._write_pending)

    def _write_pending(self) -> None:
        sock, pending = self.sock, self._pending
        written = 0
        try:
            while pending:
                with memoryview(pending[0]) as head:
                    sent = sock.send(head[self._head_sent :])
                written += sent
                self._head_sent += sent
                if self._head_sent < len(pending[0]):
                    break
                pending.popleft()
                self._head_sent = 0
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.abort(reset_code(error.errno or 0))
            return
        if written:
            self._tunnel.consumed(self.stream, written)
        if pending:
            if not self._writing:
                self._writing = True
                self._tunnel.loop.add_writer(self.sock.fileno(), self._write_pending)
            return
        self._pending = None
        self._write_no_more()
        if self._fin_received:
            self._shut_down()

    def _shut_down(self) -> None:
        if not self._fin_sent:  # else close() says the same
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # the peer reset it meanwhile
                self.abort(reset_code(error.errno or 0))
                return
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._fin_sent and self._fin_received and self._pending is None:
            self._unwatch()
            self.sock.close()
            self._tunnel.forget(self)

    def _drop(self) -> None:
        self.connected = False  # nothing is read any more
        if self._promised:
            self._tunnel.collect(self)
        self._unwatch()
        self._pending = None
        if self._sock is not None:
            close_with_reset(self._sock)
        self._tunnel.forget(self)

    def _read_later(self) -> None:
        if not self._reading:
            if self._paused:
                self._paused = False
                self._tunnel.paused.unwatch(self.sock)
            self._reading = True
            self._tunnel.loop.add_reader(self.sock.fileno(), self._on_readable)

    def _pause(self) -> None:
        """Read no more; look only whether the socket dies meanwhile."""
        self._read_no_more()
        if not self._paused:
            self._paused = True
            self._tunnel.paused.watch(self.sock, self._on_error)

    def _watch_half_closed(self) -> None:
        """Most connections are over a moment after their first half; this one is not."""
        if self.stream.owner is self:
            self._pause()

    def _on_error(self, error_number: int) -> None:
        self.abort(reset_code(error_number))

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._tunnel.loop.remove_reader(self.sock.fileno())

    def _write_no_more(self) -> None:
        if self._writing:
            self._writing = False
            self._tunnel.loop.remove_writer(self.sock.fileno())

    def _unwatch(self) -> None:
        if self._paused:
            self._paused = False
            self._tunnel.paused.unwatch(self.sock)
        self._read_no_more()
        self._write_no_more()
