"""The two descriptors of one lane: ssh's pipes at the client, the same pipes at the agent.

Reading: one large buffer for all lanes of the process; frames are parsed in place and everything in
it has been used or copied when the next read begins. The rest of a large payload that its stream
waits for does not come through the buffer where the system has splice(2): it moves from ssh's pipe
to the socket as references to pages. When that does not work just now (the socket is full, an
earlier piece waits), reading goes on the first way. Writing: what the session hands out goes into
one writev; what the pipe did not take is kept (a backlog of less than one transmit) and nothing
more is asked of the session until it is gone.

Not here: when a lane is given up (client), what the bytes mean (mux).
"""

import errno
import fcntl
import os
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple, Union

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.frames import DATA_HEAD_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.streams import Stream
from sshunt.relay.promise import PromisedPayload
from sshunt.relay.sockets import reset_code

if TYPE_CHECKING:
    from sshunt.relay.tcp import TcpRelay
    from sshunt.relay.tunnel import Tunnel

#: What one read takes at most: a whole pipe.
READ_BYTES = 1024 * 1024

#: Reads in one round of the event loop: while ssh goes on filling the pipe, the round's own cost is
#: saved; the other descriptors wait no longer than a few megabytes take.
READS_PER_ROUND = 16

#: Using what one read brought should not take longer ...
LONG_S = 0.02

#: ... or less is read the next time, down to this.
LEAST_READ_BYTES = 4096

#: Writes in one round: as much as a pipe holds, several times.
WRITES_PER_ROUND = 8

#: Size asked for ssh's pipes; the default is 64 KiB. 1 MiB is what an ordinary user may have.
PIPE_BYTES = 1024 * 1024

#: Payloads of this size are worth a system call of their own to leave them in the kernel.
SPLICED_BYTES = 32 * 1024

_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK; splice(2)

_F_SETPIPE_SZ = 1031  # Linux; named in fcntl only since Python 3.10


#: What the session hands out, and what is left of it after a partial write.
_Piece = Union[bytes, memoryview, Payload]


def widen_pipe(fd: int) -> None:
    """Ask for a larger pipe. Not a pipe, not Linux, over the user's quota: it stays as it is."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


class LaneIO:
    """Reads and writes one lane. Owns both descriptors (they may be one and the same socket)."""

    __slots__ = (
        "_backlog",
        "_can_splice",
        "_in_bulk",
        "_read_bytes",
        "_read_fd",
        "_tunnel",
        "_write_fd",
        "_writing",
        "lane_id",
        "tag",
    )

    def __init__(self, tunnel: "Tunnel", lane_id: int, read_fd: int, write_fd: int) -> None:
        self._tunnel = tunnel
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._backlog: List[_Piece] = []
        self._writing = False  # registered with the loop
        self._can_splice = hasattr(os, "splice")  # Linux, Python 3.10
        self._read_bytes = READ_BYTES  # less while what comes takes long to use
        self._in_bulk = False  # the last payload was large
        self.lane_id = lane_id
        self.tag: Optional[object] = None  # what the owner of the tunnel ties to this lane
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        widen_pipe(read_fd)
        widen_pipe(write_fd)
        tunnel.loop.add_reader(read_fd, self._on_readable)

    @property
    def has_backlog(self) -> bool:
        """True while the pipe is full."""
        return bool(self._backlog)

    def close(self) -> None:
        """Close both descriptors."""
        loop = self._tunnel.loop
        loop.remove_reader(self._read_fd)
        if self._writing:
            loop.remove_writer(self._write_fd)
            self._writing = False
        self._backlog = []
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)

    def receive(self, data: bytes) -> None:
        """Bytes of this lane that came in together with the HELLO."""
        if data and self._process(memoryview(data)):
            self._tunnel.wake_if_needed()

    def flush(self) -> None:
        """Write what the session has for this lane until there is nothing more or the pipe is full.

        A lane that turns out to be dead is reported to the tunnel.
        """
        session, loop = self._tunnel.session, self._tunnel.loop
        try:
            for _ in range(WRITES_PER_ROUND):
                if self._backlog:
                    break
                pieces = session.transmit(self.lane_id, loop.time())
                if not pieces:
                    break
                self._write(pieces)
            else:
                self._tunnel.wake()
            session.lanes[self.lane_id].is_blocked = bool(self._backlog)
            if self._backlog and not self._writing:
                self._writing = True
                loop.add_writer(self._write_fd, self._on_writable)
        except OSError as error:
            self._tunnel.lane_ended(self, os.strerror(error.errno or 0))

    def collect(self, relay: "TcpRelay") -> None:
        """Read what the backlog still has to move from the relay's socket."""
        for piece in self._backlog:
            if isinstance(piece, PromisedPayload) and piece.relay is relay and not piece.is_kept:
                piece.keep()

    def _write(self, pieces: Sequence[_Piece]) -> bool:
        """Write as much as the pipe takes; the rest is the backlog. False if it took nothing."""
        self._backlog = []
        views: List[Union[bytes, memoryview]] = []
        wrote = False
        for index, piece in enumerate(pieces):
            if isinstance(piece, PromisedPayload) and not piece.is_kept:
                rest, took = self._write_views(views)
                wrote = wrote or took
                views = []
                if not rest:
                    moved = self._move(piece)
                    wrote = wrote or moved > 0
                    if not len(piece):
                        continue
                # The piece at hand is part of it: its socket may have to be read meanwhile.
                self._backlog = [*rest, *pieces[index:]]
                return wrote
            views.append(piece.view if isinstance(piece, Payload) else piece)
        rest, took = self._write_views(views)
        self._backlog = rest
        return wrote or took

    def _write_views(self, views: List[Union[bytes, memoryview]]) -> Tuple[List[_Piece], bool]:
        """One writev; what it did not take, and whether it took anything."""
        if not views:
            return [], False
        try:
            written = os.writev(self._write_fd, views)
        except (BlockingIOError, InterruptedError):
            return list(views), False
        if written == sum(map(len, views)):
            return [], True
        for index, view in enumerate(views):
            if written < len(view):
                return [memoryview(view)[written:], *views[index + 1 :]], True
            written -= len(view)
        return [], True

    def _move(self, piece: PromisedPayload) -> int:
        """Move promised bytes from their socket to the pipe; how many it took."""
        moved = 0
        while len(piece):
            try:
                size = os.splice(
                    piece.relay.sock.fileno(), self._write_fd, len(piece), flags=_SPLICE_FLAGS
                )
            except (BlockingIOError, InterruptedError):
                break
            if not size:
                break
            moved += size
            piece.moved(size)
        return moved

    def _on_writable(self) -> None:
        backlog = self._backlog
        try:
            if not self._write(backlog) and isinstance(backlog[0], PromisedPayload):
                # The pipe has room, so it is the socket that gives nothing: read it.
                backlog[0].keep()
        except OSError as error:
            self._tunnel.lane_ended(self, os.strerror(error.errno or 0))
            return
        if not self._backlog:
            self._tunnel.session.lanes[self.lane_id].is_blocked = False
            # Stay registered while the pipe goes on being full: flush fills it again.
            self._tunnel.pump()
            if self._writing and not self._backlog:
                self._writing = False
                self._tunnel.loop.remove_writer(self._write_fd)

    def _on_readable(self) -> None:
        for _ in range(READS_PER_ROUND):
            passage = self._passage()
            more = self._splice(*passage) if passage is not None else self._read()
            if not more:
                break
        self._tunnel.wake_if_needed()

    def _read(self) -> bool:
        """Read and use what is there; False if there is hardly more now."""
        # Behind a large payload mostly comes another: read no further than its header, so that the
        # payload itself can be spliced.
        reader = self._tunnel.session.lanes[self.lane_id].reader
        limit = self._read_bytes
        if self._in_bulk:
            limit = min(limit, reader.data_left + DATA_HEAD_BYTES)
        buffer = memoryview(self._tunnel.read_buffer)[:limit]
        try:
            size = os.readv(self._read_fd, [buffer])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._tunnel.lane_ended(self, os.strerror(error.errno or 0))
            return False
        if not size:
            self._tunnel.lane_ended(self, "")
            return False
        begin = self._tunnel.loop.time()
        if not self._process(buffer[:size]):
            return False
        if reader.data_left >= SPLICED_BYTES:
            self._in_bulk = True
        elif size == limit:  # what was to be its header was not one
            self._in_bulk = False
        if self._tunnel.loop.time() - begin > LONG_S:
            # Thousands of tiny frames: take fewer at a time, others want their turn.
            self._read_bytes = max(size // 4, LEAST_READ_BYTES)
            return False
        if size == self._read_bytes:
            self._read_bytes = min(2 * size, READ_BYTES)
        return size == limit

    def _passage(self) -> Optional[Tuple[Stream, int]]:
        """The stream whose payload comes next, and its size, if it is worth a splice."""
        if not self._can_splice:
            return None
        passage = self._tunnel.session.passage(self.lane_id)
        if passage is None or passage[1] < SPLICED_BYTES or passage[0].owner is None:
            return None
        return passage if passage[0].owner.passage() >= 0 else None

    def _splice(self, stream: Stream, size: int) -> bool:
        """Move payload from the pipe to the stream's socket inside the kernel; False if there is
        hardly more now.
        """
        tunnel = self._tunnel
        try:
            moved = os.splice(self._read_fd, stream.owner.passage(), size, flags=_SPLICE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return self._read()  # the pipe is empty or the socket is full: reading tells
        except OSError as error:
            if error.errno == errno.EINVAL:  # no pipe, or a socket that can't do it
                self._can_splice = False
            else:
                stream.owner.abort(reset_code(error.errno or 0))
            return self._read()
        if not moved:
            return self._read()  # the end of the pipe
        tunnel.session.passed(self.lane_id, moved, tunnel.loop.time())
        if stream.receiver.final is not None:
            tunnel.dispatch()
        return moved == size

    def _process(self, data: memoryview) -> bool:
        """Use everything in ``data``; False if the lane has ended over it."""
        problem = ""
        try:
            self._tunnel.session.receive(self.lane_id, data, self._tunnel.loop.time())
        except RemoteProtocolError as error:
            problem = "the other side broke the protocol: %s" % error
        # Also what came before the error: its payloads lie in the buffer.
        self._tunnel.dispatch()
        if problem:
            self._tunnel.lane_ended(self, problem)
        return self._tunnel.lanes.get(self.lane_id) is self
