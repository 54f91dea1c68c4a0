"""The two descriptors of one lane: ssh's pipes at the client, the same pipes at the agent.

Reading: one large buffer for all lanes of the process; frames are parsed in place and everything in
it has been used or copied when the next read begins. The rest of a large payload that its stream
waits for does not come through the buffer where the system has splice(2): it moves from ssh's pipe
to the socket as references to pages. When that does not work just now (the socket is full, an
earlier piece waits), reading goes on the first way. Writing: what the session hands out goes into
one writev, but for payloads that are in pipes of their own (piped), which are teed; what the lane's
pipe did not take is kept (a backlog of less than one transmit) and nothing more is asked of the
session until it is gone.

Both wait for readiness, or for the next tick while very much moves (ticks).

Not here: when a lane is given up (remote.keeper), what the bytes mean (mux).
"""

import os
import stat
from typing import List, Optional, Sequence, Tuple, Union

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.frames import DATA_HEAD_BYTES
from sshunt.mux.limits import TRANSMIT_BUFFERS, TRANSMIT_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.linux import can_splice, splice
from sshunt.relay.piped import REFUSALS, PipedPayload, widen_pipe
from sshunt.relay.reactor import READ_BYTES, Reactor
from sshunt.relay.sockets import OUT_OF_RESOURCES
from sshunt.relay.ticks import BUSY_BYTES

#: Reads in one round of the event loop: while ssh goes on filling the pipe, the round's own cost is
#: saved; the other descriptors wait no longer than a few megabytes take.
READS_PER_ROUND = 16

#: The time that using what one read brought should not exceed ...
LONG_S = 0.02

#: ... or less is read the next time; and the least that a read is for then.
LEAST_READ_BYTES = 4096

#: How many headers' worth of other frames there may be between two large payloads before they are
#: read all at once again.
BULK_READS = 4

#: A splice that brings less holds a page, until it has left the socket, for too few bytes: the rest
#: of that frame is read. Or a peer that sends bytes one by one would have us hold a page for each.
LEAST_SPLICE_BYTES = 4096

#: Writes in one round: as much as a pipe holds, several times.
WRITES_PER_ROUND = 8

#: OpenSSH's window of a session's channel (channels.h: CHAN_SES_WINDOW_DEFAULT, 64 x 32 KiB). What
#: a lane had more in flight would wait in ssh, in front of all that comes after it.
CHANNEL_WINDOW_BYTES = 2 * 1024 * 1024

#: Size asked for ssh's pipes; the default is 64 KiB. 1 MiB is what an ordinary user may have.
PIPE_BYTES = 1024 * 1024

#: What a direction waits for: nothing, that its descriptor is ready, the next tick.
IDLE, READINESS, TICK = 0, 1, 2

#: What the session hands out, and what is left of it after a partial write.
_Piece = Union[bytes, memoryview, Payload]


class LaneOwner:
    """Who has the session that a lane belongs to."""

    def dispatch(self) -> bool:
        """The session has events, whose payloads lie in the read buffer: use them now."""
        raise NotImplementedError

    def lane_ended(self, lane: "LaneIO", reason: str, *, broke_protocol: bool = False) -> None:
        """``lane`` is over, and is to be closed."""
        raise NotImplementedError


class LaneIO:
    """Reads and writes one lane of ``session``. Owns both descriptors (they may be one and the same
    socket) until ``close``.
    """

    __slots__ = (
        "_backlog",
        "_bulk_reads",
        "_can_splice",
        "_can_wait",
        "_is_open",
        "_lane",
        "_moved_bytes",
        "_owner",
        "_reactor",
        "_read_bytes",
        "_read_fd",
        "_reading",
        "_session",
        "_short_until",
        "_write_fd",
        "_writing",
        "is_pipe",
        "lane_id",
        "spliced_bytes",
        "teed_bytes",
        "up_at",
    )

    def __init__(
        self,
        reactor: Reactor,
        session: Session,
        owner: LaneOwner,
        lane_id: int,
        read_fd: int,
        write_fd: int,
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._owner = owner
        self._lane = session.lanes[lane_id]
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._backlog: List[_Piece] = []
        self._reading = READINESS
        self._writing = IDLE
        self._moved_bytes = 0  # written since the pipe was last full
        self._can_splice = True  # until the kernel says no
        self._short_until = 0  # position up to which splices are short, so that we read
        self._read_bytes = READ_BYTES  # less while what comes takes long to use
        self._bulk_reads = 0  # how many more reads expect the header of a large payload
        self._is_open = True
        self.lane_id = lane_id
        self.teed_bytes = 0  # sent from pipes
        self.spliced_bytes = 0  # received without coming through memory
        self.up_at = reactor.loop.time()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        sizes = [widen_pipe(fd, PIPE_BYTES) for fd in (read_fd, write_fd)]
        self._can_wait = min(sizes) >= PIPE_BYTES  # for a tick: a smaller pipe would run dry
        self.is_pipe = stat.S_ISFIFO(os.fstat(write_fd).st_mode)
        reactor.loop.add_reader(read_fd, reactor.batch, self._on_readable)

    @property
    def sent_bytes(self) -> int:
        """How many bytes the session has given to this lane."""
        return self._lane.sent

    @property
    def received_bytes(self) -> int:
        """How many bytes of this lane the session has processed."""
        return self._lane.received

    @property
    def has_backlog(self) -> bool:
        """True while the pipe is full."""
        return bool(self._backlog)

    def close(self) -> None:
        """Close both descriptors."""
        self._is_open = False
        loop = self._reactor.loop
        if self._reading == READINESS:
            loop.remove_reader(self._read_fd)
        if self._writing == READINESS:
            loop.remove_writer(self._write_fd)
        self._reading = self._writing = IDLE
        self._backlog = []
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)

    def receive(self, data: bytes) -> None:
        """Bytes of this lane that came in together with the HELLO."""
        if data and self._process(memoryview(data)) >= 0:
            self._reactor.wake_if_needed(self._session)

    def flush(self) -> None:
        """Write what the session has for this lane until there is nothing more or the pipe is full.

        A lane that turns out to be dead is reported to its owner.
        """
        session, loop, lane = self._session, self._reactor.loop, self._lane
        try:
            for _ in range(WRITES_PER_ROUND):
                if self._backlog:
                    break
                before = lane.sent
                pieces = session.transmit(self.lane_id, loop.time())
                if pieces:
                    self._write(pieces)
                if lane.sent - before < TRANSMIT_BYTES and len(pieces) < TRANSMIT_BUFFERS:
                    break  # that was all
            else:
                self._reactor.wake(self._session)
            if self._backlog:
                session.set_writable(self.lane_id, False)
                if self._writing == IDLE:
                    self._wait_for_room()
        except OSError as error:
            self._owner.lane_ended(self, os.strerror(error.errno or 0))

    def _write(self, pieces: Sequence[_Piece]) -> None:
        """Write as much as the pipe takes; the rest is the backlog."""
        self._backlog = []
        views: List[Union[bytes, memoryview]] = []
        for index, piece in enumerate(pieces):
            if isinstance(piece, PipedPayload):
                if piece.is_piped:
                    rest = self._write_views(views)
                    if rest or not self._tee(piece):
                        self._backlog = [*rest, *pieces[index:]]
                        return
                    views = []
                else:
                    views.append(piece.unsent)
            else:
                views.append(piece.view if isinstance(piece, Payload) else piece)
        self._backlog = self._write_views(views)

    def _write_views(self, views: List[Union[bytes, memoryview]]) -> List[_Piece]:
        """One writev; what it did not take."""
        if not views:
            return []
        try:
            written = os.writev(self._write_fd, views)
        except (BlockingIOError, InterruptedError):
            return list(views)
        self._moved_bytes += written
        if written == sum(map(len, views)):
            return []
        for index, view in enumerate(views):
            if written < len(view):
                return [memoryview(view)[written:], *views[index + 1 :]]
            written -= len(view)
        return []

    def _tee(self, piece: PipedPayload) -> bool:
        """Write a payload that is in a pipe; True if the lane's pipe took all of it."""
        try:
            sent = piece.send(self._write_fd)
            self._moved_bytes += sent
            self.teed_bytes += sent
        except (BlockingIOError, InterruptedError):
            pass
        except BrokenPipeError:
            raise
        except OSError as error:  # what else is wrong with the lane, writing tells
            if error.errno in REFUSALS and self.is_pipe:
                self._reactor.pipes.refuse()
            piece.keep()
        return not piece.unsent_bytes

    def _wait_for_room(self) -> None:
        """The pipe is full."""
        if not self._write_at_next_tick():
            self._writing = READINESS
            self._reactor.loop.add_writer(self._write_fd, self._reactor.batch, self._on_writable)

    def _write_at_next_tick(self) -> bool:
        """The pipe is full: wait for the tick if enough has just left for that."""
        moved, self._moved_bytes = self._moved_bytes, 0
        if moved < BUSY_BYTES or not self._can_wait:
            return False
        if not self._reactor.ticks.next(self._write_at_tick, moved):
            return False
        self._writing = TICK
        return True

    def _write_at_tick(self) -> None:
        if self._writing == TICK:
            self._writing = IDLE
            if self._write_backlog():
                self._wait_for_room()

    def _on_writable(self) -> None:
        is_full = self._write_backlog()
        if self._writing != READINESS:
            return  # the lane has ended
        if not is_full:
            self._writing = IDLE
        elif not self._write_at_next_tick():
            return
        self._reactor.loop.remove_writer(self._write_fd)

    def _write_backlog(self) -> bool:
        """There may be room again; True if there was not enough."""
        try:
            self._write(self._backlog)
        except OSError as error:
            self._owner.lane_ended(self, os.strerror(error.errno or 0))
            return False
        if self._backlog:
            return True
        self._session.set_writable(self.lane_id, True)
        self._reactor.wake(self._session)  # it fills the pipe again
        return False

    def _read_at_tick(self) -> None:
        if self._reading == TICK:
            self._reading = IDLE
            moved = self._read_on()
            if self._is_open and not self._read_at_next_tick(moved):
                self._reading = READINESS
                self._reactor.loop.add_reader(self._read_fd, self._reactor.batch, self._on_readable)

    def _on_readable(self) -> None:
        moved = self._read_on()
        if self._reading == READINESS and self._can_wait and self._read_at_next_tick(moved):
            self._reactor.loop.remove_reader(self._read_fd)

    def _read_at_next_tick(self, moved: int) -> bool:
        """Wait for the tick if enough has just come for that."""
        if moved < BUSY_BYTES or not self._reactor.ticks.next(self._read_at_tick, moved):
            return False
        self._reading = TICK
        return True

    def _read_on(self) -> int:
        """Read what is there; how many bytes that was."""
        lane = self._lane
        before = lane.received
        for _ in range(READS_PER_ROUND):
            delivery = self._direct_delivery()
            more = self._splice(*delivery) if delivery is not None else self._read()
            if not more:
                break
        self._reactor.wake_if_needed(self._session)
        return lane.received - before

    def _read(self) -> bool:
        """Read and use what is there; False if there is hardly more now."""
        # Behind a large payload mostly comes another: read no further than its header, so that the
        # payload itself can be spliced.
        limit = self._read_bytes
        if self._bulk_reads:
            limit = min(limit, self._lane.reader.data_left + DATA_HEAD_BYTES)
        buffer = memoryview(self._reactor.read_buffer)[:limit]
        try:
            size = os.readv(self._read_fd, [buffer])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._owner.lane_ended(self, os.strerror(error.errno or 0))
            return False
        if not size:
            self._owner.lane_ended(self, "")
            return False
        begin = self._reactor.loop.time()
        newest_bytes = self._process(buffer[:size])
        if newest_bytes < 0:
            return False
        if newest_bytes >= self._reactor.splice_from_bytes:
            self._bulk_reads = BULK_READS
        elif self._bulk_reads and size == limit:  # what was to be a header was not one
            self._bulk_reads -= 1
        if self._reactor.loop.time() - begin > LONG_S:
            # Thousands of tiny frames: take fewer at a time, others want their turn.
            self._read_bytes = max(size // 4, LEAST_READ_BYTES)
            return False
        if size == self._read_bytes:
            self._read_bytes = min(2 * size, READ_BYTES)
        return size == limit

    def _direct_delivery(self) -> Optional[Tuple[Stream, int]]:
        """The stream whose payload comes next, and its size, if it is worth a splice."""
        if not self._can_splice or self._lane.received < self._short_until:
            return None
        delivery = self._session.direct_delivery(self.lane_id)
        if delivery is None or delivery[1] < self._reactor.splice_from_bytes or not can_splice():
            return None
        if delivery[0].owner is None:
            return None
        return delivery if delivery[0].owner.direct_fd() >= 0 else None

    def _splice(self, stream: Stream, size: int) -> bool:
        """Move payload from the pipe to the stream's socket inside the kernel; False if there is
        hardly more now.
        """
        try:
            moved = splice(self._read_fd, stream.owner.direct_fd(), size)
        except (BlockingIOError, InterruptedError):
            return self._read()  # the pipe is empty or the socket is full: reading tells
        except OSError as error:
            if error.errno in REFUSALS:  # no pipe, or a socket that can't do it
                self._can_splice = False
            elif error.errno not in OUT_OF_RESOURCES:
                stream.owner.on_unwritable(error)
            return self._is_open and self._read()
        if not moved:
            return self._read()  # the end of the pipe
        self.spliced_bytes += moved
        self._session.delivered(self.lane_id, moved, self._reactor.loop.time())
        if moved < LEAST_SPLICE_BYTES and moved < size:
            self._short_until = self._lane.received + size - moved
        if stream.receiver.final is not None:
            self._owner.dispatch()
        return moved == size and self._is_open

    def _process(self, data: memoryview) -> int:
        """Use everything in ``data``. How large the last payload is that began in it; -1 if the
        lane has ended over it.
        """
        problem = ""
        newest_bytes = 0
        try:
            newest_bytes = self._session.receive(self.lane_id, data, self._reactor.loop.time())
        except RemoteProtocolError as error:
            problem = "the other side broke the protocol: %s" % error
        # Also what came before the error: its payloads lie in the buffer.
        self._owner.dispatch()
        if problem:
            self._owner.lane_ended(self, problem, broke_protocol=True)
        return newest_bytes if self._is_open else -1
