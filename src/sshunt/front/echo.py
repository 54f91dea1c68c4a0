"""Where echo requests (ping, traceroute) come from: those of programs that the rules have logged.

    ASKED from the packet process --> a flow for (source, identifier, destination) --> carrier
    REPLY or ERROR to it <----------- what the far side's ICMP messages say <----------

A program is not told of anything that only we know: while the connection is lost, where the far
side has no room or may not ask, and for what is beyond RATE, there is no answer, as from a network
that loses packets. A reply whose data differs from what was sent is no answer either: the packet
process has only the right one to give.

Invariants: MOST_FLOWS at most, of which the one that was silent for longest goes first; each has
MOST_WAITING requests of which the answer is still of use.

Not here: which requests are captured (capture.echo_rules), how the answers are made
(helper.echoes), who asks over there (direct.echo).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from sshunt.front.echo_datagrams import Answer, decode_answer_untrusted, encode_request
from sshunt.helper.echo_messages import (
    ASKED,
    ERROR,
    ERRORS,
    REPLY,
    Asked,
    Failed,
    Replied,
    decode_asked,
    encode_failed,
    encode_replied,
)
from sshunt.relay.echo import CHILDREN
from sshunt.relay.flow import ECHO, FLOW_NOT_PERMITTED, Association, Flow, Outlet
from sshunt.tell.report import EchoesByPing, EchoesNotPermitted, Report

#: Flows at a time, as many as the far side takes: somebody who looks for living hosts asks 254.
MOST_FLOWS = 512

#: How long a flow is of use without a request, s.
IDLE_S = 60.0

#: Requests a second of one flow, and how many may come at once: "ping -f" is bounded, and what
#: traceroute sends at once is not.
RATE = 100.0

#: Requests of a flow whose answers are still waited for.
MOST_WAITING = 256


class _Waiting(NamedTuple):
    number: int  # the packet process'
    data: bytes


class Echoes:
    """Owns the flows. ``say`` is how the packet process hears (kind, body), ``carry`` who takes an
    association and returns its outlet, ``now`` a clock, s.
    """

    def __init__(
        self,
        say: Callable[[int, bytes], None],
        carry: Callable[[Association], Outlet],
        now: Callable[[], float],
        report: Report,
    ) -> None:
        self._say = say
        self._carry = carry
        self._now = now
        self._report = report
        self._flows: OrderedDict[tuple[str, int, str], _Asker] = OrderedDict()
        self._next_source = 1
        self._told: set[type] = set()

    def __len__(self) -> int:
        return len(self._flows)

    def hear(self, kind: int, body: bytes) -> None:
        """The packet process says something."""
        if kind != ASKED:
            return
        asked = decode_asked(body)
        key = asked.source, asked.identifier, asked.destination
        flow = self._flows.get(key)
        if flow is None:
            flow = self._begin(key)
        else:
            self._flows.move_to_end(key)
        flow.ask(asked, self._now())

    def close(self) -> None:
        """Ask nobody, and answer nobody any more."""
        for flow in list(self._flows.values()):
            flow.close()
        self._flows.clear()

    def _begin(self, key: tuple[str, int, str]) -> "_Asker":
        if len(self._flows) >= MOST_FLOWS:
            _, oldest = self._flows.popitem(last=False)
            oldest.close()
        flow = _Asker(self, key, self._next_source, self._now())
        self._next_source = self._next_source % 0xFFFFFFFF + 1
        self._flows[key] = flow
        return flow

    # --- for the flows ------------------------------------------------------------------------

    def carry(self, flow: "_Asker") -> Outlet:
        """Where its requests leave."""
        return self._carry(flow)

    def answer(self, number: int, flow: "_Asker", answer: Answer, data_bytes: int | None) -> None:
        """Have the program's request answered: a reply with so much of its data, or an error."""
        if data_bytes is not None:
            self._say(REPLY, encode_replied(Replied(number, answer.hops, data_bytes)))
            return
        offender = answer.offender or flow.flow.destination[0]
        version = 6 if ":" in offender else 4
        if answer.code in ERRORS[version].get(answer.type, ()):
            failed = Failed(number, answer.type, answer.code, answer.value, offender)
            self._say(ERROR, encode_failed(failed))

    def forget(self, flow: "_Asker") -> None:
        """It is over."""
        self._flows.pop(flow.key, None)

    def note(self, event: type[EchoesByPing | EchoesNotPermitted]) -> None:
        """Something that people should know, once."""
        if event not in self._told:
            self._told.add(event)
            self._report.say(event())


class _Asker(Association):
    """One program's requests to one host."""

    __slots__ = ("_echoes", "_left", "_left_at", "_outlet", "_waiting", "key")

    def __init__(self, echoes: Echoes, key: tuple[str, int, str], source: int, now: float) -> None:
        address, identifier, destination = key
        flow = Flow(ECHO, (destination, 0), (address, identifier))
        super().__init__(flow, IDLE_S, source=source)
        self.key = key
        self._echoes = echoes
        self._outlet: Outlet | None = None
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()  # by sequence number
        self._left, self._left_at = RATE, now  # requests that may come at once

    def ask(self, asked: Asked, now: float) -> None:
        """One more request."""
        self._left = min(self._left + (now - self._left_at) * RATE, RATE)
        self._left_at = now
        if self._left < 1:
            return
        self._left -= 1
        self._waiting.pop(asked.sequence, None)
        self._waiting[asked.sequence] = _Waiting(asked.number, asked.data)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
        if self._outlet is None:
            self._outlet = self._echoes.carry(self)
        self._outlet.send(encode_request(asked))

    def close(self) -> None:
        """Nothing that comes back is wanted."""
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.close()

    def deliver(self, datagram: bytes, segment_bytes: int = 0) -> None:
        """As in Association; what makes no sense is ignored."""
        answer = decode_answer_untrusted(datagram, self.flow.destination[0])
        waiting = None if answer is None else self._waiting.pop(answer.sequence, None)
        if answer is None or waiting is None:
            return
        size = None
        if answer.is_reply:
            size = len(answer.data)
            if answer.data != waiting.data[:size]:
                return
        self._echoes.answer(waiting.number, self, answer, size)

    def failed(self, code: int, value: int = 0) -> None:
        """As in Association."""
        if (code, value) == (FLOW_NOT_PERMITTED, CHILDREN):
            self._echoes.note(EchoesByPing)

    def ended(self, code: int) -> None:
        """As in Association; the next request begins it anew."""
        self._outlet = None
        self._echoes.forget(self)
        if code == FLOW_NOT_PERMITTED:
            self._echoes.note(EchoesNotPermitted)
