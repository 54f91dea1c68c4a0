"""One stream: a sending half and a receiving half of one TCP connection.

DATA carries absolute offsets and FIN the final one, so a half is a window sliding over one long
byte sequence and every frame may come twice, late or by another lane.

    sending half                          receiving half

      OPEN --FINISH--> FINISHING            OPEN --FIN_KNOWN--> FIN_KNOWN
        |                  |                  |                     |
      RESET           FIN_LEFT              RESET               ALL_READ
        v                  v                  v                     v
     CLOSED <--RESET-- FINISHED            CLOSED <--RESET---- FINISHED

FINISHED --FIN_LOST--> FINISHING when the lane that carried the FIN died. A RESET, sent or received,
closes both halves at once. What is not in the tables is an error of the caller.

The sender keeps what was written and not yet put on a lane (a bounded queue of payloads), and what
a dead lane gave back. The receiver hands out payloads strictly in order; what arrives early it
keeps, within the window it granted. Invariants: sent <= limit granted by then; handed out is a
prefix of what was sent, all of it once FIN was handed out; kept bytes <= window.

Not here: how early pieces are kept (early), which stream sends next (scheduler), what is
unacknowledged (lanes).
"""

from collections import deque
from heapq import heappop, heappush
from typing import Any, Deque, Dict, List, Optional, Tuple

from sshunt.mux.early import EarlyPieces, PieceCount
from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.limits import (
    ENTRY_BYTES,
    LEAST_QUEUE_BYTES,
    MAX_WINDOW_BYTES,
    READ_AHEAD_BYTES,
    SEND_QUEUE_BYTES,
    SEND_QUEUE_PAYLOADS,
    SESSION_QUEUE_BYTES,
)
from sshunt.mux.payload import Payload
from sshunt.mux.windows import ReceiveWindow

OPEN = "OPEN"
FINISHING = "FINISHING"
FIN_KNOWN = "FIN_KNOWN"
FINISHED = "FINISHED"
CLOSED = "CLOSED"

#: The machine of a sender: {state: {input: next state}}; everything absent is an error.
SENDER_TRANSITIONS: Dict[str, Dict[str, str]] = {
    OPEN: {"FINISH": FINISHING, "RESET": CLOSED},
    FINISHING: {"FIN_LEFT": FINISHED, "RESET": CLOSED},
    FINISHED: {"FIN_LOST": FINISHING, "RESET": CLOSED},
    CLOSED: {"RESET": CLOSED},
}
RECEIVER_TRANSITIONS: Dict[str, Dict[str, str]] = {
    OPEN: {"FIN_KNOWN": FIN_KNOWN, "RESET": CLOSED},
    FIN_KNOWN: {"ALL_READ": FINISHED, "RESET": CLOSED},
    FINISHED: {"RESET": CLOSED},
    CLOSED: {"RESET": CLOSED},
}

#: Values of ``Stream.pinned_lane``: any lane may carry the stream; the OPEN has not left yet.
ANY_LANE = -1
NO_LANE = -2

#: Room below which a blocked writer is not woken: one good read.
WAKE_ROOM_BYTES = 64 * 1024


def wake_room_bytes(credit: int) -> int:
    """The same where the peer gives ``credit`` bytes: its window is at least as large, and it
    grants more when half of that was consumed. With more than a quarter left unused, it never came.
    """
    return min(WAKE_ROOM_BYTES, max(credit // 4, 1))


def next_state(table: Dict[str, Dict[str, str]], state: str, event: str) -> str:
    """The state after ``event``; raises LocalProtocolError if the table has none."""
    try:
        return table[state][event]
    except KeyError:
        raise LocalProtocolError("%s is not possible in state %s" % (event, state))


class QueueTotal:
    """What all senders of a session have queued, ENTRY_BYTES for each payload included, and what
    each of them may have for that. ``each_bytes``: what one may have while there is room; where
    nothing leaves, MAX_WINDOW_BYTES.
    """

    __slots__ = ("each_bytes", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.each_bytes = SEND_QUEUE_BYTES

    def room_bytes(self, stream: "Stream") -> int:
        """How much the stream's writer may write now; 0 (and ``blocked``) if it has to wait."""
        sender = stream.sender
        left = SESSION_QUEUE_BYTES - self.size_bytes
        if sender.is_stuck:
            share = min(left // 2, READ_AHEAD_BYTES)
        else:
            share = left // 2 if self.each_bytes == MAX_WINDOW_BYTES else left // 8
            if share >= self.each_bytes:
                return sender.room_bytes(self.each_bytes)
        return sender.room_bytes(max(share, LEAST_QUEUE_BYTES))


class Sender:
    """The sending half. Offsets count from 0; ``limit`` is the peer's credit, absolute."""

    __slots__ = (
        "_lost",
        "_queue",
        "_serial",
        "_total",
        "_wake_room_bytes",
        "blocked",
        "is_stuck",
        "limit",
        "next_offset",
        "queued_bytes",
        "state",
        "stuck_s",
    )

    def __init__(self, limit: int, total: Optional[QueueTotal] = None) -> None:
        self.state = OPEN
        self.limit = limit
        self._serial = 0  # of the newest grant
        self._total = total or QueueTotal()
        self.next_offset = 0  # of the first byte that was never put on a lane
        self.queued_bytes = 0  # written and never put on a lane
        self.stuck_s = 0.0  # without credit, so far as the session has looked
        self.is_stuck = False  # for STUCK_S: the writer may go on without
        self.blocked = False  # the writer was told that there is no room and waits to be woken
        self._wake_room_bytes = wake_room_bytes(limit)
        self._queue: Optional[Deque[Payload]] = None
        #: What dead lanes gave back: a heap by offset, of which no two are the same.
        self._lost: Optional[List[Tuple[int, Payload]]] = None

    def room_bytes(self, queue_bytes: int = SEND_QUEUE_BYTES) -> int:
        """How much the writer may write now, with ``queue_bytes`` queued at most; 0 (and
        ``blocked``) if less than a good read.
        """
        if self.state is not OPEN:
            return 0  # reset by the peer perhaps, and the writer has not heard of it yet
        credit = queue_bytes if self.is_stuck else self.limit - self.next_offset
        least = min(self._wake_room_bytes, queue_bytes // 4)
        if self._queue:
            queue_bytes -= ENTRY_BYTES * len(self._queue)
        room = (credit if credit < queue_bytes else queue_bytes) - self.queued_bytes
        if room < least or (self._queue and len(self._queue) >= SEND_QUEUE_PAYLOADS):
            self.blocked = True
            return 0
        return room

    def write(self, payload: Payload) -> None:
        """Queue ``payload``, of which the sender becomes the owner."""
        size = len(payload)
        if self.state is not OPEN or not size:
            raise LocalProtocolError("write of %d bytes in state %s" % (size, self.state))
        if self._queue is None:
            self._queue = deque()
        self._queue.append(payload)
        self.queued_bytes += size
        self._total.size_bytes += size + ENTRY_BYTES

    def finish(self) -> None:
        """Nothing more will be written."""
        self.state = next_state(SENDER_TRANSITIONS, self.state, "FINISH")

    def grant(self, limit: int, serial: int) -> None:
        """The peer lets us send up to ``limit``; an older grant changes nothing, a newer one may
        lower the limit.
        """
        if serial > self._serial:
            self._serial = serial
            self.limit = max(limit, self.next_offset)
            self.stuck_s, self.is_stuck = 0.0, False
            self._wake_room_bytes = wake_room_bytes(self.limit - self.next_offset)

    @property
    def sendable_bytes(self) -> int:
        """Bytes that could go on a lane now, lost ones included. (For choosing, not exact.)"""
        fresh = min(self.queued_bytes, self.limit - self.next_offset)
        if not self._lost:
            return fresh
        return fresh + sum(len(payload) for _, payload in self._lost)

    @property
    def has_work(self) -> bool:
        """True if ``take`` would return something."""
        if self.state is CLOSED:
            return False
        if self._lost:
            return True
        if self.queued_bytes:
            return self.limit > self.next_offset
        return self.state is FINISHING

    def take(self, size: int) -> Optional[Tuple[int, Optional[Payload]]]:
        """The next (offset, payload of at most ``size`` bytes) for a lane; payload None is FIN.

        None at all if there is nothing that may leave.
        """
        if self._lost:
            offset, payload = self._lost[0]
            if len(payload) > size:
                head = payload.cut(size)
                self._lost[0] = (offset + size, payload)
                return offset, head
            return heappop(self._lost)
        offset = self.next_offset
        if not self.queued_bytes or self._queue is None:
            if self.state is not FINISHING:
                return None
            self.state = next_state(SENDER_TRANSITIONS, self.state, "FIN_LEFT")
            return offset, None
        credit = self.limit - offset
        if credit <= 0:
            return None
        if credit < size:
            size = credit
        payload = self._queue[0]
        length = len(payload)
        if length > size:
            payload = payload.cut(size)
        else:
            self._queue.popleft()
            size = length
            self._total.size_bytes -= ENTRY_BYTES
        self.next_offset += size
        self.queued_bytes -= size
        self._total.size_bytes -= size
        return offset, payload

    def give_back(self, offset: int, payload: Payload) -> None:
        """A lane died with this payload unacknowledged: it goes before everything new."""
        if self.state is CLOSED:
            payload.release()
            return
        payload.rewind()
        if self._lost is None:
            self._lost = []
        heappush(self._lost, (offset, payload))

    def give_back_fin(self) -> None:
        """A lane died with the FIN unacknowledged."""
        if self.state is FINISHED:
            self.state = next_state(SENDER_TRANSITIONS, self.state, "FIN_LOST")

    def reset(self) -> None:
        """Drop everything."""
        self.state = next_state(SENDER_TRANSITIONS, self.state, "RESET")
        for payload in self._queue or ():
            payload.release()
            self._total.size_bytes -= ENTRY_BYTES
        self._total.size_bytes -= self.queued_bytes
        for _, payload in self._lost or ():
            payload.release()
        self._queue = self._lost = None
        self.queued_bytes = 0


class Receiver:
    """The receiving half: puts payloads in order and checks the peer against the credit it has.

    ``count``: of the early pieces that all receivers of the session keep.
    """

    __slots__ = ("_count", "_early", "final", "next_offset", "state", "window")

    def __init__(self, window: ReceiveWindow, count: Optional[PieceCount] = None) -> None:
        self.state = OPEN
        self.window = window
        self.next_offset = 0  # everything before it was handed out
        self.final: Optional[int] = None
        self._count = count or PieceCount()
        self._early: Optional[EarlyPieces] = None

    def receive(self, offset: int, payload: Payload) -> List[Payload]:
        """Take one DATA payload; the payloads that are now in order, to be handed out.

        Raises RemoteProtocolError when the peer has no credit for it or goes beyond its own FIN.
        """
        end = offset + len(payload)
        if end > self.window.limit and not self.window.admit(end):
            raise RemoteProtocolError("data up to %d, granted %d" % (end, self.window.limit))
        if self.final is not None and end > self.final:
            raise RemoteProtocolError("data up to %d, final offset %d" % (end, self.final))
        if self.state is CLOSED or end <= self.next_offset:
            payload.release()
            return []  # all of it came before
        if offset < self.next_offset:
            payload.cut(self.next_offset - offset).release()
            offset = self.next_offset
        if offset > self.next_offset:
            if self._early is None:
                self._early = EarlyPieces(self._count)
            self._early.add(offset, payload)
            return []
        self.next_offset = end
        if self._early is None:
            return [payload]
        ready = self._early.take(end)
        self.next_offset += sum(map(len, ready))
        if not len(self._early):
            self._early = None
        return [payload] + ready

    def waits_for(self, offset: int, size: int) -> bool:
        """True if exactly these bytes are the next to be handed out, and the peer may send them."""
        end = offset + size
        return (
            offset == self.next_offset
            and self._early is None
            and self.state is not CLOSED
            and end <= (self.window.limit if self.final is None else self.final)
        )

    def advance(self, size: int) -> None:
        """The next ``size`` bytes, which it waits for, went to their destination another way."""
        self.next_offset += size

    def finish(self, final: int) -> None:
        """The peer says where the stream ends; raises RemoteProtocolError if that can't be."""
        if self.state is CLOSED:
            return
        if self.final is not None:
            if final != self.final:
                raise RemoteProtocolError("two final offsets, %d and %d" % (self.final, final))
            return
        if not self.arrived <= final <= self.window.top:
            raise RemoteProtocolError("final offset %d" % final)
        self.final = final
        self.state = next_state(RECEIVER_TRANSITIONS, self.state, "FIN_KNOWN")

    def take_fin(self) -> bool:
        """True once: when everything up to the final offset has been handed out."""
        if self.state is not FIN_KNOWN or self.next_offset != self.final:
            return False
        self.state = next_state(RECEIVER_TRANSITIONS, self.state, "ALL_READ")
        return True

    @property
    def is_over(self) -> bool:
        """True if everything was handed out and has reached its destination, or was dropped."""
        if self.state is FINISHED:
            return self.window.consumed == self.final
        return self.state is CLOSED

    def reset(self) -> None:
        """Drop everything."""
        self.state = next_state(RECEIVER_TRANSITIONS, self.state, "RESET")
        if self._early is not None:
            self._early.release()
        self._early = None

    @property
    def arrived(self) -> int:
        """The offset behind the last byte that has come, whatever is missing before it."""
        return self._early.end if self._early is not None else self.next_offset

    @property
    def early_bytes(self) -> int:
        """Bytes kept because something before them is missing."""
        return self._early.size_bytes if self._early is not None else 0


class Stream:
    """Both halves of one connection, and where it may travel.

    ``pinned_lane`` is the lane that carried the OPEN until that is acknowledged (no other may carry
    the stream, lest its data overtake it), then ANY_LANE. ``owner`` belongs to the relay.
    """

    __slots__ = (
        "pinned_lane",
        "id",
        "opened",
        "owner",
        "quantum_left",
        "receiver",
        "recent_at",
        "recent_bytes",
        "scheduled",
        "sender",
        "window_serial",
        "window_waits",
    )

    def __init__(self, sender: Sender, receiver: Receiver, pinned_lane: int) -> None:
        self.id = receiver.window.number
        self.sender = sender
        self.receiver = receiver
        self.pinned_lane = pinned_lane
        self.opened = False  # the connection is up, and the opener told if it wants to hear of it
        self.owner: Any = None
        self.window_serial = 0  # of the last WINDOW that left
        self.window_waits = False  # another one waits for a lane
        # The scheduler's notes.
        self.scheduled = False
        self.quantum_left = 0
        self.recent_at = -1.0
        self.recent_bytes = 0

    @property
    def is_over(self) -> bool:
        """True if neither side has anything more to say, and all that was said was consumed."""
        return self.sender.state in (FINISHED, CLOSED) and self.receiver.is_over

    def reset(self) -> None:
        """Close both halves at once."""
        self.sender.reset()
        self.receiver.reset()
