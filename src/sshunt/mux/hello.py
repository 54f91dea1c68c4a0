"""HELLO: the first message on a lane, in both directions.

A login shell may print anything before the far side's program speaks, so a HELLO begins with a
magic that can be searched for. It is not a frame: lane positions count from the byte behind it.

    magic        8 bytes    F5 's' 's' 'H' 'U' 'N' 'T' 0A
    length       u16        of the body
    body         56 bytes   the fields of ``Hello`` in the order of ``_BODY``
    sentence     0..400     UTF-8, for a person: why a lane was refused
    host         0 or 8     from an agent: tells its machine from others
    ...                     later versions may add fields here; they are skipped

Each side names the range of versions it speaks; the session uses the highest that both know. A
mismatch is answered with a HELLO whose status and sentence say so: a sentence, not a hang.

Not here: finding one behind a banner (transport.hello_search), who may attach to which session
(agent), and deadlines (the caller has the clock).
"""

import struct
from typing import NamedTuple, Optional

from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.limits import (
    HELLO_BODY_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    SENTENCE_BYTES,
)
from sshunt.mux.text import printable

MAGIC = b"\xf5ssHUNT\n"
VERSION_MIN = 1
VERSION_MAX = 1
TOKEN_BYTES = 32
HOST_BYTES = 8

# Roles.
CLIENT = 1
AGENT = 2

# Statuses: a client always says ACCEPTED.
ACCEPTED = 0
REFUSED_VERSION = 1
REFUSED_SESSION_GONE = 2
REFUSED_OTHER = 3

# Features, a bit set. Unknown bits are ignored.
FEATURE_CREATE = 1  # client: start an agent if there is none for this token
FEATURE_DETACHED = 2  # agent: the session can outlive the ssh connection
FEATURE_COPY = 4  # client: bring payload through your memory
FEATURE_SPLICE = 8  # client: leave payload in your kernel, however little it is

_LENGTH = struct.Struct("!H")

#: Magic and length: what must be read of a HELLO before the rest of it can be sized.
HEAD_BYTES = len(MAGIC) + _LENGTH.size

_BODY = struct.Struct("!BBBBHHI32sIII")


class Hello(
    NamedTuple(
        "Hello",
        [
            ("role", int),
            ("token", bytes),
            ("lane", int),
            ("features", int),
            ("status", int),
            ("sentence", str),
            ("grace_s", int),
            ("initial_window_bytes", int),
            ("max_streams", int),
            ("version_min", int),
            ("version_max", int),
            ("host", bytes),
        ],
    )
):
    """One side's introduction. ``grace_s`` is the client's wish, in whole seconds. ``host`` is b""
    where it is not known.
    """

    __slots__ = ()

    def encode(self) -> bytes:
        """The whole message, magic included."""
        if len(self.token) != TOKEN_BYTES:
            raise LocalProtocolError("a session token has %d bytes" % TOKEN_BYTES)
        sentence = self.sentence.encode("utf-8")[:SENTENCE_BYTES]
        body = _BODY.pack(
            self.version_min,
            self.version_max,
            self.role,
            self.status,
            self.lane,
            len(sentence),
            self.features,
            self.token,
            self.initial_window_bytes,
            self.max_streams,
            self.grace_s,
        )
        return MAGIC + _LENGTH.pack(len(body + sentence + self.host)) + body + sentence + self.host


def make_hello(
    role: int,
    token: bytes,
    *,
    lane: int = 0,
    features: int = 0,
    status: int = ACCEPTED,
    sentence: str = "",
    grace_s: int = 0,
    host: bytes = b"",
) -> Hello:
    """A HELLO with this program's own versions and limits filled in."""
    return Hello(
        role,
        token,
        lane,
        features,
        status,
        sentence,
        grace_s,
        LEAST_WINDOW_BYTES,
        MAX_STREAMS,
        VERSION_MIN,
        VERSION_MAX,
        host,
    )


def common_version(ours: Hello, theirs: Hello) -> Optional[int]:
    """The highest version that both sides speak, or None."""
    version = min(ours.version_max, theirs.version_max)
    return version if version >= max(ours.version_min, theirs.version_min) else None


def body_bytes_untrusted(head: bytes) -> int:
    """How many bytes follow ``head``, a HELLO's first HEAD_BYTES; raises RemoteProtocolError."""
    if len(head) != HEAD_BYTES or not head.startswith(MAGIC):
        raise RemoteProtocolError("no HELLO where one must begin")
    (length,) = _LENGTH.unpack_from(head, len(MAGIC))
    if length > HELLO_BODY_BYTES:
        raise RemoteProtocolError("HELLO of %d bytes" % length)
    return int(length)


def decode_body_untrusted(body: bytes) -> Hello:
    """The Hello in ``body`` (what the length counted); raises RemoteProtocolError."""
    if not _BODY.size <= len(body) <= HELLO_BODY_BYTES:
        raise RemoteProtocolError("HELLO of %d bytes" % len(body))
    (
        version_min,
        version_max,
        role,
        status,
        lane,
        sentence_bytes,
        features,
        token,
        initial_window_bytes,
        max_streams,
        grace_s,
    ) = _BODY.unpack_from(body)
    if role not in (CLIENT, AGENT) or version_min > version_max:
        raise RemoteProtocolError("HELLO with senseless fields")
    if sentence_bytes > SENTENCE_BYTES or _BODY.size + sentence_bytes > len(body):
        raise RemoteProtocolError("HELLO with a sentence of %d bytes" % sentence_bytes)
    end = _BODY.size + sentence_bytes
    sentence = body[_BODY.size : end].decode("utf-8", "replace")
    host = body[end : end + HOST_BYTES]
    return Hello(
        role,
        token,
        lane,
        features,
        status,
        printable(sentence),
        grace_s,
        initial_window_bytes,
        max_streams,
        version_min,
        version_max,
        host if len(host) == HOST_BYTES else b"",
    )
