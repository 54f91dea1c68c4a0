"""What a part of the packet process is, and how it reaches the client.

A part serves a range of kinds of messages (packet_protocol) and has descriptors of its own, which
the process polls.

Not here: the process (packets), the parts.
"""

import socket
from collections.abc import Sequence

from sshunt.capture.plan import Plan
from sshunt.helper.packet_protocol import PacketError


class Out:
    """Messages to the client."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def send(self, kind: int, body: bytes) -> bool:
        """False if it is lost: the client does not take them as fast, or is gone."""
        try:
            self._channel.send(bytes((kind,)) + body, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


class Part:
    """What serves a range of ``kinds``. Its descriptors are polled from its first moment on.

    ``group`` is the NFLOG group that it reads, for the rules; 0: none.
    """

    kinds = range(0)
    group = 0

    def descriptors(self) -> Sequence[int]:
        """What is polled for reading, as long as we live."""
        return ()

    def on_readable(self, descriptor: int) -> None:
        """One of them is readable."""

    def on_message(self, kind: int, body: bytes) -> None:
        """The client says something; raises PacketError for what can't be."""
        raise PacketError(f"a message of kind {kind}")

    def on_plan(self, plan: Plan | None) -> None:
        """This is what is captured now."""

    def on_tick(self, now: float) -> None:
        """Time goes by (monotonic, s)."""
