"""A payload that is still in its socket: a promise that so many bytes can be read there at once.

Where a session can't outlive its lane, nothing that was sent is ever sent again, so nobody needs a
copy of it. Then bulk data need not come through our memory: the relay asks the kernel how much its
socket holds (FIONREAD) and writes that number to the stream; when the frame's turn comes, the lane
writes the header and moves the bytes from the socket to ssh's pipe (splice(2)), as references to
pages.

Invariants: what was promised stays readable, a reset of the peer included (tcp(7) delivers what was
received before an error is reported); a relay has one promise at a time and reads nothing
meanwhile; before its socket is closed, what a lane still has to move of it is read (``keep``).
"""

import socket
from typing import TYPE_CHECKING

from sshunt.mux.errors import LocalProtocolError
from sshunt.mux.payload import Payload

if TYPE_CHECKING:
    from sshunt.relay.tcp import TcpRelay


class PromisedPayload(Payload):
    """The next ``size`` bytes of the relay's socket; or, once kept, those bytes."""

    __slots__ = ("_left", "relay")

    def __init__(self, relay: "TcpRelay", size: int) -> None:
        super().__init__(b"")
        self.relay = relay
        self._left = size

    def __len__(self) -> int:
        return self._left

    @property
    def is_kept(self) -> bool:
        """True if the bytes are in memory, in ``view``."""
        return len(self.view) == self._left

    @property
    def is_gone(self) -> bool:
        """True: what has left its socket is nowhere else."""
        return True

    def cut(self, size: int) -> Payload:
        """Split off the first ``size`` bytes."""
        if self.is_kept:
            raise LocalProtocolError("a kept promise is not cut")
        self._left -= size
        return PromisedPayload(self.relay, size)

    def moved(self, size: int) -> None:
        """``size`` bytes went from the socket to the lane."""
        self._left -= size
        self.relay.on_moved(size)

    def keep(self) -> None:
        """Read what was promised, now."""
        left = self._left
        data = bytearray()
        while len(data) < left:
            try:
                more = self.relay.sock.recv(left - len(data), socket.MSG_DONTWAIT)
            except OSError:
                more = b""
            if not more:  # can't be, see above; the stream is reset behind it in any case
                more = bytes(left - len(data))
            data += more
        self.view = memoryview(bytes(data))
        self.relay.on_moved(left)

    def release(self) -> None:
        """Nobody wants the bytes any more: they go with the socket."""
        self._left = 0
        self.view = memoryview(b"")
