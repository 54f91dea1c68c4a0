"""What a process has once, however many sessions: the event loop and all that does I/O around it.

    readiness     the set of the relays' sockets
    ticks, alarm  its two timers
    pipes         the pool of pipes in which payload stays in the kernel
    read_buffer   into which every lane is read

Whatever happens in one round of the event loop, or in one ``batch``, is flushed once at its end: a
hundred small events share one writev per lane. Whoever gives a session something to do says so
(``wake``), and at the end of the batch each session that was touched is pumped, once.

Invariants: a session is pumped only while it is a member; no payload of the read buffer is kept
past the read that brought it.

Not here: what pumping is, which relay an event is for (tunnel), how bytes move (lane, tcp).
"""

import asyncio
from typing import Callable, Dict, Optional

from sshunt.mux.limits import DATA_BYTES
from sshunt.mux.session import Session
from sshunt.relay.alarm import Alarm
from sshunt.relay.piped import MOST_PIPES, PIPED_BYTES, Pipes
from sshunt.relay.readiness import note_failure, readiness
from sshunt.relay.ticks import Ticks

#: Ways of payload through this process: what fits, always through memory, always by the kernel.
AUTO, COPY, SPLICE = 0, 1, 2

#: What one read of a lane takes at most: a whole pipe.
READ_BYTES = 1024 * 1024

#: How much earlier than asked for asyncio's timers may come: by the resolution of its clock.
EARLY_S = 0.001


class Pumped:
    """Who has a session here."""

    def pump(self) -> None:
        """Handle the session's events and fill its lanes."""
        raise NotImplementedError


class Reactor:
    """One a process. ``way``: AUTO, COPY or SPLICE."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, way: int = AUTO) -> None:
        self.loop = loop
        self.way = way
        self.always_pipes = way == SPLICE
        least_bytes = 1 if way == SPLICE else PIPED_BYTES
        self.splice_from_bytes = DATA_BYTES + 1 if way == COPY else least_bytes
        self.pipes = Pipes(0 if way == COPY else MOST_PIPES, least_bytes, loop)
        self.ticks = Ticks(loop, self.batch)
        self.readiness = readiness(loop)
        self.read_buffer = bytearray(READ_BYTES)
        self._members: Dict[Session, Pumped] = {}
        self._deadlines: Dict[Session, Optional[float]] = {}  # of each member
        self._touched: Dict[Session, None] = {}  # to be flushed, in this order
        self._is_in_batch = False
        self._is_flush_due = False  # the event loop will call ``_flush_at_end_of_round``
        self._alarm = Alarm(loop, self._on_alarm)

    def add(self, session: Session, pumped: Pumped) -> None:
        """From now on ``pumped`` is pumped when ``session`` was touched, and when it is due."""
        self._members[session] = pumped
        self._deadlines[session] = None

    def remove(self, session: Session) -> None:
        """The session is over, and what it has sent needs no pipe any more; may be called twice."""
        self._members.pop(session, None)
        self._deadlines.pop(session, None)
        self._touched.pop(session, None)
        self.pipes.give_up(session)

    def batch(self, work: Callable[[], None]) -> None:
        """Do ``work``, and flush at once what it gave rise to: that saves a round of the event
        loop.
        """
        self._is_in_batch = True
        try:
            work()
        finally:
            self._is_in_batch = False
            if self._touched:
                self._flush()

    def wake(self, session: Session) -> None:
        """Flush the session at the end of this batch, or of this round of the event loop."""
        if session not in self._touched:
            self._touched[session] = None
            if not (self._is_in_batch or self._is_flush_due):
                self._is_flush_due = True
                self.loop.call_soon(self._flush_at_end_of_round)

    def wake_if_needed(self, session: Session) -> None:
        """The same, if there is something to flush by now; most of what arrives needs no answer."""
        if session not in self._touched:
            now = self.loop.time()
            if session.has_work(now):
                self.wake(session)
            else:
                self.remind(session, session.next_deadline(now))

    def remind(self, session: Session, at: Optional[float]) -> None:
        """Pump the session at ``at``, too, of ``loop.time()``; None: there is no need to."""
        # Nothing is new most of the time; and of a session that is over, nothing is wanted.
        if self._deadlines.get(session, at) == at:
            return
        self._deadlines[session] = at
        if at is None and len(self._deadlines) > 1:
            at = self._soonest()
        self._alarm.set(at)

    def close(self) -> None:
        """Watch, wake and hold nothing any more. The sessions have gone before."""
        self._members.clear()
        self._deadlines.clear()
        self._touched.clear()
        self.readiness.close()
        self.ticks.close()
        self._alarm.close()
        self.pipes.close()

    def _flush_at_end_of_round(self) -> None:
        self._is_flush_due = False
        if self._touched:  # else a batch has done it meanwhile
            self._flush()

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        for session in touched:
            pumped = self._members.get(session)
            if pumped is None:
                continue  # it ended in this very batch
            try:
                pumped.pump()
            # The other sessions have nothing else that would wake them.
            except Exception as error:  # noqa: BLE001
                note_failure(self.loop, error)

    def _on_alarm(self) -> None:
        latest = self.loop.time() + EARLY_S
        for session, at in self._deadlines.items():
            if at is not None and at <= latest:
                self._deadlines[session] = None  # pumping says when the next one is
                self._touched[session] = None
        self._flush()
        self._alarm.set(self._soonest())

    def _soonest(self) -> Optional[float]:
        return min((at for at in self._deadlines.values() if at is not None), default=None)
