"""A program: what a hostile server may be behind its ssh. It stands in for ssh (-e) and attacks.

    hostile_server.py ATTACK ...       what ssh is given besides is of no interest

It takes the bundle and the HELLO, is an honest agent until the client has begun in earnest, does
its worst, and ends the session with a GOODBYE whose sentence says what it has seen. The next
connection of the client finds it honest for a minute.
"""

import os
import select
import sys
import time
from pathlib import Path

from sshunt.mux import frames
from sshunt.mux.datagram_frames import FlowTarget, encode_datagram_head
from sshunt.mux.events import FlowEnded, StreamReset
from sshunt.mux.frames import EXPOSED, TCP, UDP, Destination
from sshunt.mux.hello import (
    AGENT,
    FEATURE_DETACHED,
    HEAD_BYTES,
    body_bytes_untrusted,
    decode_body_untrusted,
    make_hello,
)
from sshunt.mux.session import Session

#: From the HELLO until the client has said that it is connected, and watches its lanes.
HONEST_S = 2.0
FOR_LONG_S = 60.0

MANY = 20_000

#: Answers on whatever flow the client may have asked by.
ANSWERS = b"".join(encode_datagram_head(number, 1) + b"x" for number in range(1, 2 * MANY, 2))
GOODBYE = frames.encode_goodbye(frames.GOODBYE_INTERNAL, "that was all")


def exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit()
        data += more
    return data


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


class Far:
    """The agent's side of the protocol, by hand."""

    def __init__(self) -> None:
        exactly(int(exactly(6)))
        theirs = decode_body_untrusted(exactly(body_bytes_untrusted(exactly(HEAD_BYTES))))
        ours = make_hello(
            AGENT, theirs.token, lane=theirs.lane, features=FEATURE_DETACHED, grace_s=60
        )
        write(ours.encode())
        self._lane = theirs.lane
        self.session = Session(AGENT)
        self.session.add_lane(self._lane, time.monotonic())

    def be_honest(self, seconds: float) -> list[object]:
        """Converse for a while; what happened."""
        events: list[object] = []
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            if select.select([0], [], [], min(left_s, 0.02))[0]:
                data = os.read(0, 65536)
                if not data:
                    sys.exit()
                self.session.receive(self._lane, memoryview(data), time.monotonic())
                events += self.session.take_events()
            pieces = self.session.transmit(self._lane, time.monotonic())
            write(b"".join(p if isinstance(p, bytes) else bytes(p.view) for p in pieces))
        return events

    def say_goodbye_again_and_again(self) -> None:
        write(GOODBYE * MANY)

    def answer_what_was_not_asked(self) -> None:
        write(ANSWERS + GOODBYE)

    def ask_for_a_connection(self) -> None:
        self.session.open(Destination(TCP, "127.0.0.1", 22))
        self.session.open(Destination(EXPOSED, "198.51.100.7", 40000, exposure=1))
        flow = self.session.datagrams.open(FlowTarget(UDP, "127.0.0.1", 53), time.monotonic())
        self.session.datagrams.send(flow, b"hello", time.monotonic())
        resets = [
            event.code
            for event in self.be_honest(1.0)
            if isinstance(event, StreamReset | FlowEnded)
        ]
        write(frames.encode_goodbye(frames.GOODBYE_INTERNAL, f"it was answered with {resets}"))


def main() -> None:
    attack, mark = sys.argv[1], Path(sys.argv[2])
    far = Far()
    if mark.exists():
        far.be_honest(FOR_LONG_S)
    mark.touch()
    far.be_honest(HONEST_S)
    getattr(far, attack)()
    far.be_honest(FOR_LONG_S)


if __name__ == "__main__":
    main()
