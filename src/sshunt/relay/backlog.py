"""What has been received for a socket that does not take it yet, in order.

The lane's buffer is used again at once, so it is copied. There is one only while something waits:
most connections never have any.
"""

import socket
from collections import deque
from typing import Deque

#: What waits for a socket is kept in pieces of at least this size.
JOINED_BYTES = 64 * 1024


class Backlog:
    """Bytes that wait. False once nothing does."""

    __slots__ = ("_head_sent", "_pieces")

    def __init__(self) -> None:
        self._pieces: Deque[bytearray] = deque()
        self._head_sent = 0  # bytes of the first of them that were written

    def __len__(self) -> int:
        return sum(map(len, self._pieces)) - self._head_sent

    def keep(self, view: memoryview) -> None:
        """A copy of these comes behind the others. Small pieces are joined, so that a peer that
        sends bytes one by one can't make each cost an object.
        """
        if self._pieces and len(self._pieces[-1]) < JOINED_BYTES:
            self._pieces[-1] += view
        else:
            self._pieces.append(bytearray(view))

    def write(self, sock: socket.socket) -> int:
        """Write what ``sock`` takes now; how many bytes that was. Raises OSError."""
        written = 0
        pieces = self._pieces
        while pieces:
            try:
                with memoryview(pieces[0]) as head:
                    sent = sock.send(head[self._head_sent :])
            except (BlockingIOError, InterruptedError):
                break
            written += sent
            self._head_sent += sent
            if self._head_sent < len(pieces[0]):
                break
            pieces.popleft()
            self._head_sent = 0
        return written
