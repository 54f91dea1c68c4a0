"""The far side's HELLO, behind whatever a login shell prints before it. Pure.

Towards the agent nothing precedes a HELLO, so this is the client's affair alone.

Not here: what is in a HELLO (mux.hello), how long it is waited for (greeting).
"""

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import (
    HEAD_BYTES,
    MAGIC,
    Hello,
    body_bytes_untrusted,
    decode_body_untrusted,
)
from sshunt.mux.limits import HELLO_SEARCH_BYTES


class HelloSearch:
    """Finds the first HELLO in a byte stream that may begin with a banner.

    Feed it bytes until ``feed`` returns a Hello; then ``rest`` holds what came behind it and
    ``noise`` what came before it (at most HELLO_SEARCH_BYTES), for a diagnosis.
    """

    __slots__ = ("_buffer", "noise", "rest")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.noise = b""
        self.rest = b""

    def feed(self, data: bytes) -> Hello | None:
        """The Hello as soon as it is complete, else None; raises RemoteProtocolError."""
        self._buffer += data
        start = self._buffer.find(MAGIC)
        if start < 0 or start > HELLO_SEARCH_BYTES:
            if len(self._buffer) > HELLO_SEARCH_BYTES + len(MAGIC):
                self.noise = bytes(self._buffer[:HELLO_SEARCH_BYTES])
                raise RemoteProtocolError(f"no HELLO in the first {HELLO_SEARCH_BYTES} bytes")
            return None
        self.noise = bytes(self._buffer[:start])
        body_start = start + HEAD_BYTES
        if len(self._buffer) < body_start:
            return None
        length = body_bytes_untrusted(bytes(self._buffer[start:body_start]))
        if len(self._buffer) < body_start + length:
            return None
        hello = decode_body_untrusted(bytes(self._buffer[body_start : body_start + length]))
        self.rest = bytes(self._buffer[body_start + length :])
        self._buffer = bytearray()
        return hello

    @property
    def unmatched(self) -> bytes:
        """What was read so far without finding a HELLO, for a diagnosis."""
        return self.noise or bytes(self._buffer)
