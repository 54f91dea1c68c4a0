"""A line in the host's log for each request: who has asked root for what. Root; Linux.

The client tells its person the same (tell.report); but a client may be somebody else's by then, so
the host's log hears it from us. It goes to syslog's socket as an authorization message (RFC 3164's
facility 10), where sudo's lines are, too. The socket is opened before our root is changed; where
there is none, nothing is written. What can't be taken at once is lost: nobody's log holds root up.

Invariants: a line has nothing of the client's but what has been decoded, and no control characters.

Not here: the sentence (protocol.described), the socket's other end.
"""

import os
import socket
from contextlib import suppress

from sshunt.helper.protocol import Refused, Reply

#: Where syslog(3) writes to.
LOG = "/dev/log"

#: Facility "authpriv", severity "info".
_PRIORITY = 10 << 3 | 6

#: The longest line: addresses are named, but not 256 of them.
_MOST_CHARACTERS = 400


class Audit:
    """The log of one conversation. ``user`` is whose helper it is, ``pid`` who asks, or 0."""

    def __init__(self, user: int, pid: int, log: str = LOG) -> None:
        self._who = f"uid {user}" + (f", process {pid}" if pid else "")
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(log)
        except OSError:
            self._socket.close()
            self._socket = None

    def answered(self, session: str, what: str, reply: Reply) -> None:
        """A request was answered, or was none; ``what`` says which."""
        if self._socket is not None:
            line = f"<{_PRIORITY}>sshunt-helper[{os.getpid()}]: {self.line(session, what, reply)}"
            with suppress(OSError):
                self._socket.send(line.encode(), socket.MSG_DONTWAIT)

    def line(self, session: str, what: str, reply: Reply) -> str:
        """What is written."""
        outcome = f"refused ({reply.kind.value})" if isinstance(reply, Refused) else "done"
        text = f"{self._who}, session {session or 'none'}: {what}"[:_MOST_CHARACTERS]
        return "".join(c if c.isprintable() else "?" for c in f"{text}: {outcome}")

    def close(self) -> None:
        """Write nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
