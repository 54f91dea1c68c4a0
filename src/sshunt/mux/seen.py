"""Which stream numbers of the peer were opened or reset before, in bounded memory.

Lanes overtake each other, so numbers come slightly out of order; a peer uses all of them. So all up
to a base were seen, and of those above it some. Invariant: those above it are within STREAM_GAP
streams, or the peer breaks the protocol.
"""

from typing import Set

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import STREAM_GAP


class SeenStreams:
    """Every second number, from ``first`` on."""

    __slots__ = ("_base", "_beyond")

    def __init__(self, first: int) -> None:
        self._base = first - 2
        self._beyond: Set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number <= self._base or number in self._beyond

    def add(self, number: int) -> None:
        """It is used now; raises RemoteProtocolError if it is too far from the others."""
        if number > self._base + 2 * STREAM_GAP:
            raise RemoteProtocolError("stream %d, expected about %d" % (number, self._base + 2))
        self._beyond.add(number)
        while self._base + 2 in self._beyond:
            self._base += 2
            self._beyond.discard(self._base)
