"""Connections that are held at their SYN until the far side has connected.

    HELD --> carried, as any connection --opened--> OPENED: the program is let go, and what it
               |                                    connects to us by is paired with the far end
               |                        --refused-> REFUSED: it fails as the far side did, or is
               |                                    not answered, and its kernel tries again
               +--- nobody waits any more --------> the far side hears of it; no answer

The packet process tells us of SYNs, and does to them what we say (helper.held_syns). A connection
that is accepted is one of these if it comes from the same source and leads to the same destination.
The kernel may have given it another source port, if one to another destination had the same port
lately (all are to our listener, after all); then it is the one that waits longest for that
destination: far ends of one destination, of which nobody has used any, are as good as each other.
If none comes within PAIRED_WITHIN_S, the far end is given up.

A socket that is bound to an interface can't be redirected (capture.nft): what it sends leaves by
that interface. So it is refused at once.

What is down for a while is not the destination's fault: while the link is lost, SYNs are held like
connections, and what we can't do now is not answered.

**Whether somebody waits** nobody tells: a program that gives up, or dies, sends nothing. So those
of this host are looked for among its sockets (host.connecting) once they have waited for a second,
and every second; of forwarded ones the packet process sees that they are not sent again (GONE).

Our own probe (arrival) is let go at once, and what our own ssh connects is refused, as it would be
once it were accepted (redirect).

Invariants: all that is held by the packet process is here, or will be given up there by its age;
each far end is paired once or given up.

Not here: what the packet process does; who carries a connection (route.router).
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from sshunt.front.arrival import Arrivals
from sshunt.helper.syn_messages import (
    FAILED,
    GONE,
    HELD,
    OPENED,
    REFUSED,
    Answer,
    Held,
    decode_held,
    decode_number_untrusted,
    encode_failed,
    encode_number,
    encode_refused,
)
from sshunt.host.connecting import Connecting, Ends
from sshunt.model import Endpoint
from sshunt.mux import frames
from sshunt.relay.flow import ABORTED, NO_RESOURCES, TCP, Connection, Flow, LateConnection, Relay
from sshunt.relay.sockets import close_with_reset

#: How long the program that was let go may take to connect to us. Over lo it takes a fraction of a
#: millisecond; one that was lost is sent again after a second.
PAIRED_WITHIN_S = 2.0

#: How old one is when its program is looked for the first time.
LOOKED_FOR_AFTER_S = 1.0

_ANSWER = {
    frames.RESET_REFUSED: Answer.RESET,
    frames.RESET_ABORTED: Answer.RESET,
    frames.RESET_OTHER: Answer.RESET,
    frames.RESET_HOST_UNREACHABLE: Answer.HOST_UNREACHABLE,
    frames.RESET_NET_UNREACHABLE: Answer.NETWORK_UNREACHABLE,
    frames.RESET_NOT_PERMITTED: Answer.PROHIBITED,
}


class HeldSyns:
    """See the module's head.

    ``say`` is for the packet process, ``carry`` for whoever carries connections. ``is_ours`` is
    asked with a program's port and its destination. ``connecting`` knows the sockets of this host
    that wait to be connected, and is ours to close.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        say: Callable[[int, bytes], None],
        carry: Callable[[Connection], object],
        arrivals: Arrivals,
        is_ours: Callable[[int, Endpoint], bool],
        connecting: Connecting,
    ) -> None:
        self._loop = loop
        self._say = say
        self._carry = carry
        self._arrivals = arrivals
        self._is_ours = is_ours
        self._connecting = connecting
        self._held: dict[int, HeldSyn] = {}  # by number, until they are answered
        self._by_ends: dict[Ends, HeldSyn] = {}  # those, and those that were let go
        self._let_go: deque[tuple[float, HeldSyn]] = deque()  # with their deadlines
        self._let_go_to: dict[Endpoint, dict[HeldSyn, None]] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None  # not later than the first deadline

    def __len__(self) -> int:
        return len(self._held)

    def hear(self, kind: int, body: bytes) -> None:
        """The packet process says something."""
        if kind == HELD:
            self._on_held(decode_held(body))
        elif kind == GONE:
            held = self._held.get(decode_number_untrusted(body))
            if held is not None:
                self._give_up(held)

    def take(self, sock: socket.socket, destination: Endpoint) -> bool:
        """True if this connection was held; it is ours then."""
        if not self._by_ends:
            return False
        try:
            address, port = sock.getpeername()[:2]
        except OSError:  # it is gone already, and what it was is given up in time
            return False
        held = self._by_ends.get((_unscoped(address, port), destination))
        if held is None:
            held = next(iter(self._let_go_to.get(destination, ())), None)
        if held is None:
            return False
        self._forget(held)
        if self._held.pop(held.number, None) is not None:  # its copy was: others had an answer
            self._say(REFUSED, encode_refused(held.number, Answer.NOTHING))
        held.pair(sock)
        return True

    def failed(self, destination: Endpoint) -> None:
        """Programs are told that they are connected to ``destination``, and nobody is there."""
        self._say(FAILED, encode_failed(destination))

    def look(self) -> None:
        """To be called every second: give up what nobody waits for."""
        before = self._loop.time() - LOOKED_FOR_AFTER_S
        of_here = [each for each in self._held.values() if not each.is_forwarded]
        old = [each for each in of_here if each.since <= before]
        if not old:
            return
        with suppress(OSError):
            waiting = self._connecting.all()
            for held in old:
                if held.ends not in waiting:
                    self._say(REFUSED, encode_refused(held.number, Answer.NOTHING))
                    self._give_up(held)

    def close(self) -> None:
        """Give up all far ends; programs are not answered. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for held in list(self._by_ends.values()):
            self._give_up(held)
        self._connecting.close()

    # --- what happens -------------------------------------------------------------------------

    def _on_held(self, told: Held) -> None:
        ends = told.source, told.destination
        before = self._by_ends.get(ends)
        if before is not None:  # another connection from the same port, or it was lost
            self._give_up(before)
        of_here = not told.is_forwarded
        if of_here and self._arrivals.expects(told.source[1], told.destination):
            self._say(OPENED, encode_number(told.number))
        elif of_here and (self._is_bound(ends) or self._is_ours(told.source[1], ends[1])):
            self._say(REFUSED, encode_refused(told.number, Answer.RESET))
        else:
            held = HeldSyn(self, told, self._loop.time())
            self._held[held.number] = held
            self._by_ends[ends] = held
            self._carry(held)

    def on_opened(self, held: "HeldSyn") -> None:
        """The far end of ``held`` is up."""
        if self._held.pop(held.number, None) is None:
            return
        self._say(OPENED, encode_number(held.number))
        self._let_go_to.setdefault(held.flow.destination, {})[held] = None
        deadline = self._loop.time() + PAIRED_WITHIN_S
        self._let_go.append((deadline, held))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def on_refused(self, held: "HeldSyn", code: int) -> None:
        """There is none."""
        if self._held.pop(held.number, None) is not None:
            self._say(REFUSED, encode_refused(held.number, _ANSWER.get(code, Answer.NOTHING)))
        self._forget(held)

    def _give_up(self, held: "HeldSyn") -> None:
        self._held.pop(held.number, None)
        self._forget(held)
        held.give_up()

    def _forget(self, held: "HeldSyn") -> None:
        """It is paired, or over."""
        if self._by_ends.get(held.ends) is held:
            del self._by_ends[held.ends]
        others = self._let_go_to.get(held.flow.destination)
        if others is not None and others.pop(held, held) is None and not others:
            del self._let_go_to[held.flow.destination]

    def _on_timer(self) -> None:
        """Give up those that have not come, and forget those that did."""
        self._timer = None
        now = self._loop.time()
        while self._let_go and self._let_go[0][0] <= now:
            _, held = self._let_go.popleft()
            if self._by_ends.get(held.ends) is held:
                self._give_up(held)
        if self._let_go:
            self._timer = self._loop.call_at(self._let_go[0][0], self._on_timer)

    def _is_bound(self, ends: Ends) -> bool:
        with suppress(OSError):
            return self._connecting.is_bound(ends)
        return False


class HeldSyn(LateConnection):
    """One connection that is held."""

    __slots__ = ("_is_over", "_owner", "_relay", "is_forwarded", "number", "since")

    def __init__(self, owner: HeldSyns, told: Held, since: float) -> None:
        super().__init__(Flow(TCP, told.destination, told.source), wants_opened=True)
        self._owner = owner
        self._relay: Relay | None = None
        self._is_over = False
        self.number = told.number
        self.is_forwarded = told.is_forwarded
        self.since = since

    @property
    def ends(self) -> Ends:
        """Whence it comes, and where it leads."""
        return self.flow.source or ("", 0), self.flow.destination

    @property
    def is_over(self) -> bool:
        """As in LateConnection."""
        return self._is_over

    def begun(self, relay: Relay) -> None:
        """As in LateConnection."""
        self._relay = relay

    def opened(self) -> None:
        """As in Connection."""
        self._owner.on_opened(self)

    def refused(self, code: int) -> None:
        """As in Connection."""
        self._is_over = True
        self._relay = None
        self._owner.on_refused(self, code)

    def relay(self) -> Relay:
        """As in Connection. Of those who ask for it none can wait for a socket: its route is gone,
        and its next copy goes where it would without us.
        """
        self.refused(NO_RESOURCES)
        return _Nobody()

    def pair(self, sock: socket.socket) -> None:
        """``sock`` is it."""
        self._is_over = True
        if self._relay is None:
            close_with_reset(sock)
        else:
            self._relay.take_connection(sock)
            self._relay = None

    def give_up(self) -> None:
        """Nobody waits for it."""
        self._is_over = True
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.abort(ABORTED)


class _Nobody(Relay):
    """A near end that is over."""

    __slots__ = ()

    @property
    def is_over(self) -> bool:
        return True

    @property
    def is_connecting(self) -> bool:
        return False

    @property
    def is_abandoned(self) -> bool:
        return True

    def connect(self, sock: socket.socket) -> None:
        sock.close()

    def take_connection(self, sock: socket.socket) -> None:
        sock.close()

    def abort(self, code: int) -> None:
        pass


def _unscoped(address: str, port: int) -> Endpoint:
    return address.partition("%")[0], port
