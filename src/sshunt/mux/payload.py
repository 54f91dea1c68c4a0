"""What a DATA frame carries. Opaque: it has a length, can be cut, joined, kept and released.

No code above the relay may look into a payload. Here it is a view of bytes in memory; where the
kernel can hold the bytes in a pipe instead, another class with these operations takes its place
(relay/piped) and nothing in the protocol changes.

Ownership: whoever holds a payload may cut it; the last holder releases it, or a pipe is lost. A
payload that came in with ``Session.receive`` lies in the reader's buffer and is good only until the
next read: who wants it longer calls ``keep``.
"""

from typing import Union

_NOTHING = memoryview(b"")


class Payload:
    """Bytes in memory."""

    __slots__ = ("view",)

    def __init__(self, data: Union[bytes, memoryview]) -> None:
        self.view = memoryview(data)

    def __len__(self) -> int:
        return len(self.view)

    def rewind(self) -> None:
        """What was sent of it is lost: it will be sent again, from its first byte."""

    def duplicate(self) -> "Payload":
        """The same bytes, to be released on their own."""
        return Payload(self.view)

    def cut(self, size: int) -> "Payload":
        """Split off and return the first ``size`` bytes; this object keeps the rest."""
        head = Payload(self.view[:size])
        self.view = self.view[size:]
        return head

    def keep(self) -> None:
        """Make the bytes independent of the buffer they came in."""
        self.view = memoryview(bytes(self.view))

    def join(self, following: "Payload") -> None:
        """Take over the bytes of ``following``, which come behind this one's. Both are kept."""
        self.view = memoryview(b"".join((self.view, following.view)))
        following.release()

    def release(self) -> None:
        """Give the bytes back. The payload is empty afterwards."""
        self.view = _NOTHING
