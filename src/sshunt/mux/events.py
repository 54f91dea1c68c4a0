"""What a session tells its owner: what has happened, in the past tense. Values, no more.

``Session.take_events`` hands them out in the order in which they happened. Not here: who hears them
(relay.tunnel).
"""

from typing import NamedTuple, Union

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
    """A stream whose ``room`` was 0 has room again."""

    stream: Stream


class DatagramReceived(NamedTuple):
    """A datagram of a flow; ``kind`` is one of the datagram kinds in frames."""

    flow: int
    kind: int
    data: bytes


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
    GoodbyeReceived,
    LaneGone,
]
