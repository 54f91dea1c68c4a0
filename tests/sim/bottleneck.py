"""One bottleneck between two sessions under a virtual clock: what the pacer is tested against.

A lane over a link with a rate, a delay and an endless queue, in segments as TCP sends them. What
the pacer must find out is what the test sets: nothing is lost, nothing waits for a processor, so
every figure follows from the code alone and is the same in every run. ::

    bulk -> Session -> [ queue -> rate -> delay ] -> Session -> read at once
            Session <- [ delay <- rate <- queue ] <- Session

Others' traffic can be let into a direction (``intrude``); it takes its place in the queue. Beside
the bulk there may be floods of datagrams (``flood``), and a program that talks by TCP (``talk``).
"""

from collections.abc import Callable

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.events import DatagramReceived, DataReceived, StreamRequested, StreamWritable
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from tests.sim.network import Clock

SEGMENT_BYTES = 1448

#: What a program says at a time that talks.
WORD_BYTES = 20

TARGET = Destination(frames.TCP, "10.9.8.7", 80)
ECHO = FlowTarget(frames.UDP, "10.9.8.7", 7)
DNS = FlowTarget(frames.DNS, ".", 0)
DISCARD = FlowTarget(frames.UDP, "10.9.8.7", 9)


class Link:
    """One direction. ``rate_bytes_s`` and ``delay_s`` may be changed at any time."""

    def __init__(self, clock: Clock, rate_bytes_s: float, delay_s: float) -> None:
        self.rate_bytes_s, self.delay_s = rate_bytes_s, delay_s
        self._clock = clock
        self._free_at = 0.0
        self._last_arrival = 0.0

    @property
    def queue_s(self) -> float:
        """How long a byte that is sent now will wait before it leaves."""
        return max(self._free_at - self._clock.now, 0.0)

    def intrude(self, size: int) -> None:
        """Others' bytes enter the queue."""
        self._free_at = max(self._free_at, self._clock.now) + size / self.rate_bytes_s

    def stand_still(self, seconds: float) -> None:
        """What is sent from now on arrives as much later. (What is under way goes on.)"""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self._last_arrival = max(self._last_arrival, self._clock.now) + seconds

    def carry(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Send ``data``; it arrives in segments, in order."""
        for at in range(0, len(data), SEGMENT_BYTES):
            segment = data[at : at + SEGMENT_BYTES]
            self.intrude(len(segment))
            self._last_arrival = max(self._free_at + self.delay_s, self._last_arrival)
            self._clock.at(self._last_arrival, _Arrival(deliver, segment))


class _Arrival:
    def __init__(self, deliver: Callable[[bytes], None], data: bytes) -> None:
        self._deliver, self._data = deliver, data

    def __call__(self) -> None:
        self._deliver(self._data)


class End:
    """One side: a session, its bulk streams, its half of each lane."""

    def __init__(self, role: int, clock: Clock) -> None:
        self.session = Session(role)
        self.received_bytes = 0
        self.echoes_s: list[float] = []
        self.answers_s: list[float] = []  # of a resolver
        self.words_s: list[float] = []  # of the program that talks
        self.flooded: dict[int, int] = {}  # bytes of floods that arrived, by flow
        self.other: End
        self._clock = clock
        self._out: dict[int, Link] = {}
        self._bulk: set[Stream] = set()
        self._echo: DatagramFlow | None = None
        self._words: Stream | None = None
        self._timer_at = float("inf")

    def add_lane(self, number: int, out: Link) -> None:
        self._out[number] = out
        self.session.add_lane(number, self._clock.now)

    def push(self, stream: Stream) -> None:
        """Write to ``stream`` for ever, as fast as there is room."""
        self._bulk.add(stream)
        self._fill(stream)
        self.pump()

    def stop(self, stream: Stream) -> None:
        self._bulk.discard(stream)

    def echo(self) -> None:
        """Send a datagram that the other side sends back; see ``echoes_s``."""
        now = self._clock.now
        if self._echo is None:
            self._echo = self.session.datagrams.open(ECHO, now)
        self.session.datagrams.send(self._echo, b"%.9f" % now, now)
        self.pump()

    def ask(self) -> None:
        """Ask a question that the other side answers at once; see ``answers_s``."""
        datagrams, now = self.session.datagrams, self._clock.now
        datagrams.send(datagrams.open(DNS, now), b"%.9f" % now, now)
        self.pump()

    def talk(self) -> None:
        """Write a few bytes to a stream of its own that the other side sends back; see
        ``words_s``.
        """
        if self._words is None:
            self._words = self.session.open(TARGET._replace(port=7))
        self.session.write(self._words, Payload(b"%20.9f" % self._clock.now), self._clock.now)
        self.pump()

    def flood(self, mbit_s: float, size: int, segment_bytes: int = 0) -> None:
        """Send datagrams of ``size`` bytes at this rate from now on, whatever becomes of them."""
        flow = self.session.datagrams.open(DISCARD, self._clock.now)
        every_s = size * 8 / (mbit_s * 1e6)

        def send() -> None:
            self.session.datagrams.send(flow, bytes(size), self._clock.now, segment_bytes)
            self.pump()
            self._clock.after(every_s, send)

        send()

    def receive(self, lane: int, data: bytes) -> None:
        self.session.receive(lane, memoryview(data), self._clock.now)
        self.pump()

    def pump(self) -> None:
        now = self._clock.now
        self._dispatch()
        for number in self.session.lanes_to_fill(now):
            link = self._out[number]
            while pieces := self.session.transmit(number, now):
                data = b"".join(p if isinstance(p, bytes) else bytes(p.view) for p in pieces)
                link.carry(data, _Receiver(self.other, number))
                self._dispatch()
        due = self.session.next_deadline(now)
        if due is not None and due < self._timer_at:
            self._timer_at = due
            self._clock.at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = float("inf")
        self.pump()

    def _fill(self, stream: Stream) -> None:
        while stream in self._bulk and (room := self.session.room_bytes(stream)):
            self.session.write(stream, Payload(bytes(min(room, 65536))), self._clock.now)

    def _dispatch(self) -> None:
        for event in self.session.take_events():
            if isinstance(event, DataReceived) and len(event.payload) == WORD_BYTES:
                self._on_word(event)
            elif isinstance(event, DataReceived):
                self.received_bytes += len(event.payload)
                self.session.consumed(event.stream, len(event.payload), self._clock.now)
            elif isinstance(event, StreamRequested):
                self.session.accept(event.stream)
            elif isinstance(event, StreamWritable):
                self._fill(event.stream)
            elif isinstance(event, DatagramReceived) and event.flow.target == DISCARD:
                number = event.flow.number
                self.flooded[number] = self.flooded.get(number, 0) + len(event.data)
            elif isinstance(event, DatagramReceived) and event.flow.target == DNS:
                if event.flow.is_ours:
                    self.answers_s.append(self._clock.now - float(event.data))
                else:
                    self.session.datagrams.send(event.flow, event.data, self._clock.now)
            elif isinstance(event, DatagramReceived):
                sent_at = float(event.data)
                if event.flow is not self._echo:
                    self.session.datagrams.send(event.flow, event.data, self._clock.now)
                else:
                    self.echoes_s.append(self._clock.now - sent_at)

    def _on_word(self, event: DataReceived) -> None:
        now = self._clock.now
        word = bytes(event.payload.view)
        self.session.consumed(event.stream, len(word), now)
        if event.stream is self._words:
            self.words_s.append(now - float(word))
        else:
            self.session.write(event.stream, Payload(word), now)


class _Receiver:
    def __init__(self, end: End, lane: int) -> None:
        self._end, self._lane = end, lane

    def __call__(self, data: bytes) -> None:
        self._end.receive(self._lane, data)


class Bottleneck:
    """Client and agent, ``lanes`` lanes over one link each way. Rates in Mbit/s, times in ms."""

    def __init__(
        self, *, up_mbit_s: float, down_mbit_s: float, rtt_ms: float, lanes: int = 1
    ) -> None:
        self.clock = Clock()
        self.up = Link(self.clock, up_mbit_s * 1e6 / 8, rtt_ms / 2000)
        self.down = Link(self.clock, down_mbit_s * 1e6 / 8, rtt_ms / 2000)
        self.client = End(CLIENT, self.clock)
        self.agent = End(AGENT, self.clock)
        self.client.other, self.agent.other = self.agent, self.client
        for number in range(1, lanes + 1):
            self.add_lane(number)

    def add_lane(self, number: int) -> None:
        self.client.add_lane(number, self.up)
        self.agent.add_lane(number, self.down)

    def upload(self) -> Stream:
        """A stream on which the client sends bulk from now on."""
        stream = self.client.session.open(TARGET)
        self.client.push(stream)
        return stream

    def download(self) -> Stream:
        """A stream on which the agent sends bulk from now on; the agent's end of it."""
        number = self.client.session.open(TARGET).id
        self.client.pump()
        self.run(1.0)
        stream = self.agent.session.streams[number]
        self.agent.push(stream)
        return stream

    def run(self, seconds: float, *, echo_every_s: float = 0.05, talks: bool = False) -> "Seen":
        """Let time go by; what was to be seen meanwhile. ``talks``: not only by datagrams."""
        begin = self.clock.now
        up, down = self.agent.received_bytes, self.client.received_bytes
        queues: list[float] = []
        echoes = len(self.client.echoes_s)

        for heard in (self.client.words_s, self.client.answers_s):
            heard.clear()
        before = dict(self.agent.flooded)

        def look() -> None:
            queues.append(self.up.queue_s)
            self.client.echo()
            if talks:
                self.client.talk()
                self.client.ask()
            if self.clock.now + echo_every_s < begin + seconds:
                self.clock.after(echo_every_s, look)

        ended = False

        def end() -> None:
            nonlocal ended
            ended = True

        self.clock.at(begin, look)
        self.clock.at(begin + seconds, end)
        while not ended and self.clock.run_next():
            pass
        return Seen(
            up_mbit_s=(self.agent.received_bytes - up) * 8 / seconds / 1e6,
            down_mbit_s=(self.client.received_bytes - down) * 8 / seconds / 1e6,
            queues_s=queues,
            echoes_s=self.client.echoes_s[echoes:],
            words_s=list(self.client.words_s),
            answers_s=list(self.client.answers_s),
            floods_mbit_s=[
                (size - before.get(number, 0)) * 8 / seconds / 1e6
                for number, size in sorted(self.agent.flooded.items())
            ],
        )


class Seen:
    """What ``run`` saw."""

    def __init__(
        self,
        *,
        up_mbit_s: float,
        down_mbit_s: float,
        queues_s: list[float],
        echoes_s: list[float],
        words_s: list[float],
        answers_s: list[float],
        floods_mbit_s: list[float],
    ) -> None:
        self.up_mbit_s, self.down_mbit_s = up_mbit_s, down_mbit_s
        self.queues_s = queues_s
        self.echoes_s = echoes_s
        self.words_s = words_s
        self.answers_s = answers_s
        self.floods_mbit_s = floods_mbit_s

    def echo_ms(self, percent: int) -> float:
        """A percentile of the echoes that came back."""
        return percentile_ms(self.echoes_s, percent)


def percentile_ms(seconds: list[float], percent: int) -> float:
    """In milliseconds; there must be some."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1e3
