"""What a session tells its owner: what has happened, in the past tense. Values, no more.

``Session.take_events`` hands them out in the order in which they happened. Not here: who hears them
(relay.tunnel).
"""

from typing import NamedTuple, Union

from sshunt.mux.flows import DatagramFlow
from sshunt.mux.frames import Destination
from sshunt.mux.payload import Payload
from sshunt.mux.streams import Stream


class StreamRequested(NamedTuple):
    """The peer wants a connection to ``destination``. Answer with ``accept`` or ``reset``."""

    stream: Stream
    destination: Destination


class StreamOpened(NamedTuple):
    """The far side's connection is up."""

    stream: Stream


class DataReceived(NamedTuple):
    """The next bytes of a stream, in order. Report them with ``consumed`` when written."""

    stream: Stream
    payload: Payload


class FinReceived(NamedTuple):
    """The peer will send nothing more; everything it sent has been handed out."""

    stream: Stream


class StreamReset(NamedTuple):
    """The peer ended the stream at once; ``code`` is one of frames.RESET_*."""

    stream: Stream
    code: int


class StreamWritable(NamedTuple):
    """A stream whose ``room_bytes`` were 0 has room again."""

    stream: Stream


class DatagramReceived(NamedTuple):
    """A datagram of a flow, or several of ``segment_bytes`` each (the last may be shorter). The
    flow may be new: the peer has opened it, and whoever serves it ends it.
    """

    flow: DatagramFlow
    data: bytes
    segment_bytes: int = 0


class FlowFailed(NamedTuple):
    """A datagram of ours did not arrive; ``code`` is one of datagram_frames.FLOW_*, or unknown."""

    flow: DatagramFlow
    code: int
    value: int


class FlowEnded(NamedTuple):
    """The peer has ended a flow, whoever opened it; ``code`` says why, as in FlowFailed."""

    flow: DatagramFlow
    code: int


class GoodbyeReceived(NamedTuple):
    """The peer ends the session; ``code`` is one of frames.GOODBYE_*."""

    code: int
    sentence: str


class LaneGone(NamedTuple):
    """The peer has given up a lane, which may be unknown here: it is to be lost here, too."""

    lane: int


Event = Union[
    StreamRequested,
    StreamOpened,
    DataReceived,
    FinReceived,
    StreamReset,
    StreamWritable,
    DatagramReceived,
    FlowFailed,
    FlowEnded,
    GoodbyeReceived,
    LaneGone,
]
