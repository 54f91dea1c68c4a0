"""A peer that may send anything: the session works on or names an error of the peer, in bounded
memory, and never anything else.
"""

import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    FlowTarget,
    encode_datagram_head,
    encode_flow_end,
    encode_flow_error,
    encode_opening_head,
)
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.events import DatagramReceived, DataReceived, StreamRequested, StreamWritable
from sshunt.mux.frames import Destination
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import DATAGRAM_QUEUE_BYTES, EARLY_PIECES, MAX_WINDOW_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.windows import MOST_FORCED, PLACES

pytestmark = pytest.mark.fuzz

#: Small numbers meet; large ones try the edges.
numbers = st.one_of(
    st.integers(0, 8),
    st.sampled_from([262143, 262144, 262145, 1 << 24, frames.MAX_OFFSET, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
stream_numbers = st.one_of(st.integers(0, 6), st.integers(0, (1 << 32) - 1))


def frame(kind: int, stream: int, body: bytes) -> bytes:
    return struct.pack("!II", kind << 24 | len(body), stream) + body


hostile_frames = st.one_of(
    st.builds(
        lambda s, o, p: frame(frames.DATA, s, struct.pack("!Q", o) + p),
        stream_numbers,
        numbers,
        st.binary(min_size=1, max_size=50),
    ),
    st.builds(lambda s, o: frame(frames.FIN, s, struct.pack("!Q", o)), stream_numbers, numbers),
    st.builds(
        lambda s, o, n: frame(frames.WINDOW, s, struct.pack("!QI", o, n)),
        stream_numbers,
        numbers,
        st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1)),
    ),
    st.builds(
        lambda s: frames.encode_open(s, Destination(frames.TCP, "10.0.0.1", 80)), stream_numbers
    ),
    st.builds(lambda s, b: frame(frames.OPEN, s, b), stream_numbers, st.binary(min_size=11)),
    st.builds(lambda s: frame(frames.OPENED, s, b""), stream_numbers),
    st.builds(
        lambda s, c: frame(frames.RESET, s, struct.pack("!H", c)),
        stream_numbers,
        st.integers(0, 65535),
    ),
    st.builds(
        lambda p, h, c: frame(frames.LANE_ACK, 0, struct.pack("!QII", p, h, c)),
        st.one_of(st.integers(0, 3000), numbers),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, (1 << 32) - 1),
    ),
    st.builds(lambda s: frame(frames.PING, s, b""), stream_numbers),
    st.builds(lambda s: frame(frames.LANE_GONE, s, b""), stream_numbers),
    st.builds(lambda s, b: frame(frames.DATAGRAM, s, b), stream_numbers, st.binary(min_size=1)),
    st.builds(
        lambda f, n, b: encode_opening_head(f, FlowTarget(n, "10.0.0.1", 5), len(b)) + b,
        stream_numbers,
        st.integers(1, 6),
        st.binary(max_size=40),
    ),
    st.builds(lambda f, b: encode_datagram_head(f, len(b), 7, 3) + b, stream_numbers, st.binary()),
    st.builds(encode_flow_error, stream_numbers, st.integers(0, 20)),
    st.builds(encode_flow_end, stream_numbers, st.integers(0, 20)),
    st.builds(lambda b: frame(frames.GOODBYE, 0, b), st.binary(min_size=2)),
    st.binary(max_size=30),
)


class Victim:
    """A session with a relay that does what relays do, and a lane for each of the peer's lives."""

    def __init__(self, role: int) -> None:
        self.session = Session(role)
        self.now = 1.0
        self.lane = 0
        self.read = 0
        self._new_lane()
        for network in (frames.UDP, frames.DNS):
            flow = self.session.datagrams.open(FlowTarget(network, "10.0.0.1", 5), self.now)
            self.session.datagrams.send(flow, b"hello", self.now)
        for _ in range(3):
            stream = self.session.open(Destination(frames.TCP, "10.0.0.1", 80))
            self.session.write(stream, Payload(bytes(300)), self.now)

    def _new_lane(self) -> None:
        self.lane += 1
        self.session.add_lane(self.lane, self.now)

    def suffer(self, data: bytes) -> None:
        self.now += 0.02
        try:
            self.session.receive(self.lane, memoryview(data), self.now)
        except RemoteProtocolError:
            self._work()
            self.session.lose_lane(self.lane, self.now)
            self._new_lane()
        self._work()

    def _work(self) -> None:
        for event in self.session.take_events():
            if isinstance(event, StreamRequested):
                self.session.accept(event.stream)
                self.session.write(event.stream, Payload(b"banner"), self.now)
            elif isinstance(event, DataReceived):
                self.read += len(event.payload)
                self.session.consumed(event.stream, len(event.payload), self.now)
            elif isinstance(event, DatagramReceived):
                self.session.datagrams.send(event.flow, event.data, self.now)
            elif isinstance(event, StreamWritable):
                assert self.session.room_bytes(event.stream)
        self.session.transmit(self.lane, self.now)

    def check(self, fed_bytes: int) -> None:
        assert self.read <= fed_bytes
        steps: list[int] = []
        for stream in self.session.streams.values():
            window = stream.receiver.window
            assert stream.receiver.early_bytes <= MAX_WINDOW_BYTES
            assert len(stream.receiver._early or ()) <= EARLY_PIECES + 2
            assert stream.sender.limit <= stream.sender.next_offset + MAX_WINDOW_BYTES
            steps.append(window.step)
        assert self.session.table.early.pieces == sum(
            len(stream.receiver._early or ()) for stream in self.session.streams.values()
        )
        for step in range(1, len(PLACES)):
            taken = sum(each >= step for each in steps)
            assert taken == self.session.table.credit.taken[step] <= MOST_FORCED * PLACES[step]
        datagrams = self.session.datagrams
        assert datagrams.queued_bytes <= DATAGRAM_QUEUE_BYTES
        assert 0 <= datagrams.payload_bytes <= datagrams.queued_bytes
        assert len(datagrams.flows) <= 2 + fed_bytes // frames.HEADER_BYTES
        assert len(self.session.streams) <= 3 + fed_bytes // frames.HEADER_BYTES


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([CLIENT, AGENT]), st.lists(hostile_frames, max_size=40))
def test_a_hostile_peer_causes_nothing_but_errors_of_the_peer(
    role: int, attack: list[bytes]
) -> None:
    victim = Victim(role)
    fed_bytes = 0
    for data in attack:
        victim.suffer(data)
        fed_bytes += len(data)
        victim.check(fed_bytes)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([CLIENT, AGENT]), st.lists(hostile_frames, max_size=20))
def test_a_session_that_was_attacked_still_serves_an_honest_lane(
    role: int, attack: list[bytes]
) -> None:
    honest = {CLIENT: 65536, AGENT: 65537}[role]
    assume(struct.pack("!I", honest) not in b"".join(attack))  # it is a new stream
    victim = Victim(role)
    for data in attack:
        victim.suffer(data)
    session = victim.session
    session.add_lane(1_000_000, victim.now)
    raw = frames.encode_open(honest, Destination(frames.TCP, "10.0.0.1", 80))
    data = raw + frames.encode_data_head(honest, 0, 5) + b"hello"
    session.receive(1_000_000, memoryview(data), victim.now)
    heard = [event for event in session.take_events() if isinstance(event, DataReceived)]
    assert [bytes(event.payload.view) for event in heard] == [b"hello"]
