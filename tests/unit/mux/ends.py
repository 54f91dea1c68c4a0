"""Two sessions and the lanes between them, for tests that read as a conversation.

Not a network: nothing moves unless a test says so, and ``now`` stands still unless a test moves it.
What each side puts on a lane waits in ``wires`` until ``deliver`` gives it to the other side, all
of it or a part, so that a test can show what one end does before the other has heard of it.
"""

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget
from sshunt.mux.events import DataReceived, Event, StreamRequested
from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination, Frame, FrameReader
from sshunt.mux.hello import AGENT, CLIENT
from sshunt.mux.limits import DATA_BYTES, INITIAL_WINDOW_BYTES, LANE_IN_FLIGHT_BYTES, TRANSMIT_BYTES
from sshunt.mux.outgoing import Piece
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import ANY_LANE, Receiver, Sender, Stream
from sshunt.mux.windows import ReceiveWindow, SessionCredit

WEB = Destination(frames.TCP, "10.1.2.3", 80)
VOICE = FlowTarget(frames.UDP, "10.1.2.3", 5004)


def receiver_of(limit: int, number: int = 1) -> Receiver:
    """A receiving half that has granted ``limit`` bytes."""
    window = ReceiveWindow(SessionCredit(), number)
    window.limit = window.top = limit
    return Receiver(window)


def stream_of(number: int, credit: int, pinned_lane: int = ANY_LANE) -> Stream:
    """A stream that may send ``credit`` bytes."""
    return Stream(Sender(credit), receiver_of(1000, number), pinned_lane)


def join(pieces: list[Piece]) -> bytes:
    """What a writev of ``pieces`` would put on the lane."""
    return b"".join(piece if isinstance(piece, bytes) else bytes(piece.view) for piece in pieces)


def read_frames(data: bytes) -> list[Frame]:
    """The frames in ``data``, which has nothing but whole ones."""
    return FrameReader().feed(memoryview(data))


def kinds(data: bytes) -> list[int]:
    """The types of the frames in ``data``."""
    return [frame[0] for frame in read_frames(data)]


def body(payload: Payload | bytes) -> bytes:
    """The bytes of a frame's last field."""
    return payload if isinstance(payload, bytes) else bytes(payload.view)


class Ends:
    """A client, an agent, and lanes 1 .. ``lanes`` between them."""

    def __init__(self, lanes: int = 1) -> None:
        self.client = Session(CLIENT)
        self.agent = Session(AGENT)
        self.now = 100.0
        #: (receiving session, lane) -> bytes on their way to it
        self.wires: dict[tuple[int, int], bytes] = {}
        for lane in range(1, lanes + 1):
            self.add_lane(lane)

    def add_lane(self, lane: int) -> None:
        self.client.add_lane(lane, self.now)
        self.agent.add_lane(lane, self.now)

    def lose_lane(self, lane: int) -> None:
        """Both sides see that the lane is dead; what was on it is gone."""
        self.client.lose_lane(lane, self.now)
        self.agent.lose_lane(lane, self.now)
        for session in (self.client, self.agent):
            self.wires.pop((id(session), lane), None)

    def datagram(self, sender: Session, data: bytes, target: FlowTarget = VOICE) -> DatagramFlow:
        """Let ``sender`` open a flow and send a datagram on it."""
        flow = sender.datagrams.open(target, self.now)
        sender.datagrams.send(flow, data, self.now)
        return flow

    def open_throttle(self, lane: int = 1) -> None:
        """Let both sides send as on a lane whose pacers have found it fast."""
        for session in (self.client, self.agent):
            session.lanes[lane].pacer.limit_bytes = LANE_IN_FLIGHT_BYTES
            session.lanes[lane].pacer.frame_bytes = DATA_BYTES

    def other(self, session: Session) -> Session:
        return self.agent if session is self.client else self.client

    def transmit(self, sender: Session, lane: int = 1, size: int = TRANSMIT_BYTES) -> bytes:
        """What ``sender`` puts on the lane now; it waits there for ``deliver``."""
        data = join(sender.transmit(lane, self.now, size))
        key = (id(self.other(sender)), lane)
        self.wires[key] = self.wires.get(key, b"") + data
        return data

    def deliver(self, receiver: Session, lane: int = 1, size: int | None = None) -> list[Event]:
        """Give ``receiver`` what waits on the lane (its first ``size`` bytes); its events."""
        key = (id(receiver), lane)
        waiting = self.wires.get(key, b"")
        size = len(waiting) if size is None else size
        self.wires[key] = waiting[size:]
        if size:
            receiver.receive(lane, memoryview(waiting[:size]), self.now)
        return receiver.take_events()

    def send(self, sender: Session, lane: int = 1) -> list[Event]:
        """All that ``sender`` has for the lane now, delivered; the other side's events."""
        while self.transmit(sender, lane):
            pass
        return self.deliver(self.other(sender), lane)

    def settle(self, lane: int = 1) -> tuple[list[Event], list[Event]]:
        """Exchange until nobody has anything more to say; (client's events, agent's events)."""
        client: list[Event] = []
        agent: list[Event] = []
        for _ in range(1000):
            deadlines = (self.client.next_deadline(), self.agent.next_deadline())
            self.now = max([self.now, *(due for due in deadlines if due is not None)])
            sent = self.transmit(self.client, lane) + self.transmit(self.agent, lane)
            if not sent:
                return client, agent
            agent += self.deliver(self.agent, lane)
            client += self.deliver(self.client, lane)
        raise AssertionError("they never stop talking")

    def connect(self, lane: int = 1, *, bulky: bool = False) -> tuple[Stream, Stream]:
        """An accepted stream: its two ends at the client and at the agent. ``bulky``: the client
        has an initial window's credit already.
        """
        near = self.client.open(WEB)
        requested = [e for e in self.settle(lane)[1] if isinstance(e, StreamRequested)]
        (request,) = requested
        self.agent.accept(request.stream)
        if bulky:
            window = request.stream.receiver.window
            self.agent.table.credit.climb(window, INITIAL_WINDOW_BYTES)
            window.limit = window.top = window.window_bytes
            request.stream.window_serial = 1
            near.sender.grant(window.limit, 1)
        self.settle(lane)
        return near, request.stream


def text(events: list[Event]) -> bytes:
    """The bytes of all DataReceived events, joined."""
    return b"".join(bytes(e.payload.view) for e in events if isinstance(e, DataReceived))
