"""SYNs that were logged and dropped: told to the client, and answered as it says. Root; Linux.

    logged twice -> told to client --OPENED--> sent again, with our mark: redirected, accepted
           |         ^            --REFUSED-> a reset or an ICMP error, as the destination's
           |         |                        or nothing: the program's kernel sends it once more
           +--> waits for its turn            (after 1, 3, 7 ... seconds), and it is a new one
           +--> no room: not answered

It is logged as it was made, and once more, redirected, where this host's firewall has let it arrive
(capture.nft_held): one that is logged once is the firewall's business. Both have the same source
address and initial sequence number; the port may have been changed.

The latest copy is what is sent again: its timestamp is right (RFC 7323). A copy of one that has
been sent again already, because that was lost, is sent again at once. One with other numbers on the
same ports is another connection; the one before it is gone.

**What is never waited for.** Destinations that are silent fill the table and nothing else: one that
is new takes the place of the oldest. MOST_AT_ADDRESS and MOST_AT_PORT limit how many are asked for
over there; the others wait for their turn, or, since their destination has answered a moment ago,
are let go at once, as the rules would (``known``).

**Whether somebody still waits** the client sees for programs of this host. A forwarded one's
program is on another host: it is gone when its SYN is not sent again for twice as long as it should
take.

**What a client may have of it.** The bytes that are sent are those that were logged, or answers to
them, to their sender. A word that a destination has failed (segments.retraction) is only said of
one that we have let go to a moment ago, and it leaves this host nowhere.

Not here: what is logged (capture.nft_held), whether somebody is there (the client).
"""

import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from sshunt.capture.nft_held import GROUPS, KNOWN_S, SNAP_BYTES
from sshunt.capture.plan import Connect, Plan
from sshunt.helper.injected import raw_socket
from sshunt.helper.nflog import Logged, LogGroup
from sshunt.helper.packet_protocol import SYN_KINDS, PacketError
from sshunt.helper.part import Out, Part
from sshunt.helper.segments import (
    SegmentError,
    Syn,
    Unreachable,
    again,
    decode_syn_untrusted,
    refusal,
    retraction,
    unreachable,
)
from sshunt.helper.syn_messages import (
    FAILED,
    GONE,
    HELD,
    OPENED,
    REFUSED,
    Answer,
    Held,
    decode_failed_untrusted,
    decode_number_untrusted,
    decode_refused_untrusted,
    encode_held,
    encode_number,
)
from sshunt.model import Endpoint

#: The most SYNs that are held. Each takes about 1 KiB.
MOST_HELD = 4096

#: The longest time that one is. The far side gives up after a minute.
LONGEST_S = 75.0

#: The most of them that the client is asked about at the same time, to one address and to one port.
MOST_AT_ADDRESS = 256
MOST_AT_PORT = 64

#: How long a SYN that was sent again is remembered, should it have been lost. Its program sends
#: the next copy after a second.
REMEMBERED_S = 3.0

#: The longest pause before a first copy (RFC 6298: one second, three in older systems).
FIRST_PAUSE_S = 3.0

#: Packets that are read before others have their turn.
_READS_A_TURN = 64

_IPPROTO_RAW = 255
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")  # in_pktinfo: interface, two addresses

_UNREACHABLE = {
    Answer.HOST_UNREACHABLE: Unreachable.HOST,
    Answer.NETWORK_UNREACHABLE: Unreachable.NETWORK,
    Answer.PROHIBITED: Unreachable.PROHIBITED,
}

_Ends: TypeAlias = tuple[Endpoint, Endpoint]
_K = TypeVar("_K")


class _Entry:
    """A SYN that is held."""

    __slots__ = ("came_at", "expected_s", "is_told", "latest_at", "logged", "number", "syn")

    def __init__(self, number: int, syn: Syn, logged: Logged, now: float) -> None:
        self.number = number
        self.syn = syn
        self.logged = logged
        self.came_at = self.latest_at = now
        self.expected_s = FIRST_PAUSE_S  # until the next copy
        self.is_told = False

    @property
    def ends(self) -> _Ends:
        return self.syn.source, self.syn.destination

    @property
    def is_forwarded(self) -> bool:
        return self.logged.in_index != 0

    def take_copy(self, syn: Syn, logged: Logged, now: float) -> None:
        self.expected_s = max(FIRST_PAUSE_S, 2 * (now - self.latest_at))
        self.syn, self.logged, self.latest_at = syn, logged, now

    def is_gone(self, now: float) -> bool:
        if now - self.came_at > LONGEST_S:
            return True
        return self.is_forwarded and now - self.latest_at > 2 * self.expected_s


class HeldSyns(Part):
    """See the module's head."""

    kinds = SYN_KINDS

    def __init__(self, out: Out) -> None:
        """Raises OSError if the kernel has no NFLOG, or no group is free."""
        self._out = out
        self._raw = Raw()
        try:
            self._log = LogGroup(GROUPS, SNAP_BYTES)
        except BaseException:
            self._raw.close()
            raise
        self.group = self._log.number
        self._number = 0
        # Logged once, and when; the oldest first.
        self._made: dict[tuple[str, int], tuple[float, Syn, Logged]] = {}
        self._knows = False  # the rules let go what goes to known destinations
        self._held: dict[_Ends, _Entry] = {}  # the oldest first
        self._by_number: dict[int, _Entry] = {}
        self._told: Counter[str | Endpoint] = Counter()  # by address, and by address and port
        self._waiting: dict[str, deque[_Entry]] = {}  # for their turn, by address
        # When they were let go to, and the sequence number; the oldest first.
        self._let_go: dict[_Ends, tuple[float, int]] = {}
        self._known: dict[Endpoint, tuple[float, int]] = {}

    # --- as a part ----------------------------------------------------------------------------

    def descriptors(self) -> Sequence[int]:
        """As in Part."""
        return (self._log.fileno(),)

    def on_readable(self, descriptor: int) -> None:
        """As in Part."""
        now = time.monotonic()
        for _ in range(_READS_A_TURN):
            packets = self._log.read()
            if not packets:
                return
            for logged in packets:
                with suppress(SegmentError):
                    self._hear(decode_syn_untrusted(logged.packet), logged, now)

    def on_message(self, kind: int, body: bytes) -> None:
        """As in Part."""
        if kind == OPENED:
            self._on_opened(decode_number_untrusted(body))
        elif kind == REFUSED:
            self._on_refused(*decode_refused_untrusted(body))
        elif kind == FAILED:
            self._on_failed(decode_failed_untrusted(body))
        else:
            raise PacketError(f"a message of kind {kind}")

    def on_plan(self, plan: Plan | None) -> None:
        """As in Part."""
        self._knows = plan is not None and plan.connect is Connect.AUTO
        if plan is None:  # nothing is redirected any more
            for entry in list(self._held.values()):
                self._give_up(entry)

    def on_tick(self, now: float) -> None:
        """As in Part."""
        for entry in [each for each in self._held.values() if each.is_gone(now)]:
            self._give_up(entry)
        for address in list(self._waiting):  # where the client could not be told
            self._tell_next(address)
        while self._made and self._made[next(iter(self._made))][0] < now - REMEMBERED_S:
            del self._made[next(iter(self._made))]
        _forget(self._let_go, now - REMEMBERED_S)
        _forget(self._known, now - KNOWN_S)

    # --- what comes ---------------------------------------------------------------------------

    def _hear(self, syn: Syn, logged: Logged, now: float) -> None:
        """Take it when it is logged for the second time."""
        which = syn.source[0], syn.sequence
        made = self._made.pop(which, None)
        if made is not None and made[1].destination != syn.destination:
            self._take(made[1], made[2], now)
            return
        self._made[which] = now, syn, logged
        if len(self._made) > MOST_HELD:
            del self._made[next(iter(self._made))]

    def _take(self, syn: Syn, logged: Logged, now: float) -> None:
        ends = syn.source, syn.destination
        let_go = self._let_go.get(ends)
        if let_go is not None and let_go[1] == syn.sequence:
            self._raw.let_go(syn)
            return
        entry = self._held.get(ends)
        if entry is not None:
            if entry.syn.sequence == syn.sequence:
                entry.take_copy(syn, logged, now)
                return
            self._give_up(entry)
        if len(self._held) >= MOST_HELD:
            self._give_up(next(iter(self._held.values())))
        self._number = (self._number + 1) & 0xFFFFFFFF
        entry = _Entry(self._number, syn, logged, now)
        self._held[ends] = entry
        self._by_number[entry.number] = entry
        if self._may_tell(entry):
            self._tell(entry)
        else:
            self._waiting.setdefault(syn.destination[0], deque()).append(entry)

    def _may_tell(self, entry: _Entry) -> bool:
        destination = entry.syn.destination
        full = self._told[destination[0]] >= MOST_AT_ADDRESS
        return not full and self._told[destination] < MOST_AT_PORT

    def _tell(self, entry: _Entry) -> None:
        source, destination = entry.ends
        held = Held(entry.number, entry.is_forwarded, source, destination)
        entry.is_told = True
        self._told[destination[0]] += 1
        self._told[destination] += 1
        if not self._out.send(HELD, encode_held(held)):
            self._take_out(entry)  # its next copy is told

    # --- what becomes of it -------------------------------------------------------------------

    def _on_opened(self, number: int) -> None:
        entry = self._by_number.get(number)
        if entry is None or not entry.is_told:
            return
        now = time.monotonic()
        destination = entry.syn.destination
        if self._knows and destination[0] in self._waiting:
            waiting = self._waiting[destination[0]]
            for other in [each for each in waiting if each.syn.destination == destination]:
                self._go(other, now)
        self._go(entry, now)

    def _go(self, entry: _Entry, now: float) -> None:
        self._raw.let_go(entry.syn)
        _remember(self._let_go, entry.ends, now, entry.syn.sequence)
        _remember(self._known, entry.syn.destination, now, entry.syn.sequence)
        self._remove(entry)

    def _on_refused(self, number: int, answer: Answer) -> None:
        entry = self._by_number.get(number)
        if entry is None or not entry.is_told:
            return
        if answer is Answer.RESET:
            self._raw.answer(entry.syn, refusal(entry.syn), entry.logged)
        elif answer is not Answer.NOTHING:
            error = unreachable(entry.syn, _UNREACHABLE[answer])
            self._raw.answer(entry.syn, error, entry.logged)
        self._remove(entry)

    def _on_failed(self, destination: Endpoint) -> None:
        if self._knows and self._known.pop(destination, None) is not None:
            self._raw.retract(destination)

    def _give_up(self, entry: _Entry) -> None:
        """Nobody waits for it any more."""
        if entry.is_told:
            self._out.send(GONE, encode_number(entry.number))
        self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        self._take_out(entry)
        self._tell_next(entry.syn.destination[0])

    def _take_out(self, entry: _Entry) -> None:
        del self._held[entry.ends]
        del self._by_number[entry.number]
        destination = entry.syn.destination
        if not entry.is_told:
            self._waiting[destination[0]].remove(entry)
            return
        for place in (destination[0], destination):
            self._told[place] -= 1
            if not self._told[place]:
                del self._told[place]

    def _tell_next(self, address: str) -> None:
        """One to this address has made room: let others have their turn."""
        waiting = self._waiting.get(address)
        while waiting:
            entry = next((each for each in waiting if self._may_tell(each)), None)
            if entry is None:
                return
            waiting.remove(entry)
            self._tell(entry)
        self._waiting.pop(address, None)

    def close(self) -> None:
        """Read and send nothing more."""
        self._log.close()
        self._raw.close()


def _remember(table: dict[_K, tuple[float, int]], key: _K, when: float, number: int) -> None:
    table.pop(key, None)
    table[key] = when, number
    if len(table) > MOST_HELD:
        del table[next(iter(table))]


def _forget(table: dict[_K, tuple[float, int]], before: float) -> None:
    while table and table[next(iter(table))][0] < before:
        del table[next(iter(table))]


class Raw:
    """Sends whole packets, with our mark."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._four = raw_socket(socket.AF_INET, _IPPROTO_RAW)
        try:
            self._six: socket.socket | None = raw_socket(socket.AF_INET6, _IPPROTO_RAW)
        except OSError:  # a host without IPv6
            self._six = None

    def let_go(self, syn: Syn) -> None:
        """Send it to where it leads; the rules know better."""
        self._send(again(syn), syn.destination[0], 0)

    def answer(self, syn: Syn, packet: bytes, logged: Logged) -> None:
        """Send ``packet`` to where the SYN came from, as if it came by the interface by which that
        left: a socket may be bound to it.
        """
        self._send(packet, syn.source[0], logged.out_index)

    def retract(self, destination: Endpoint) -> None:
        """Tell the rules that this destination is not there any more."""
        self._send(retraction(destination), destination[0], 0)

    def close(self) -> None:
        """Send no more."""
        self._four.close()
        if self._six is not None:
            self._six.close()

    def _send(self, packet: bytes, address: str, interface: int) -> None:
        # What a firewall drops is EPERM; one that is lost is sent again by its program.
        with suppress(OSError):
            if ":" in address:
                if self._six is not None:
                    self._six.sendto(packet, socket.MSG_DONTWAIT, (address, 0))
            elif interface:
                by = _PKTINFO.pack(interface, bytes(4), bytes(4))
                ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, by)]
                self._four.sendmsg([packet], ancillary, socket.MSG_DONTWAIT, (address, 0))
            else:
                self._four.sendto(packet, socket.MSG_DONTWAIT, (address, 0))
