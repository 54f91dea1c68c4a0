"""The two errors of the protocol: the other side broke it, or our own caller did."""


class RemoteProtocolError(Exception):
    """Bytes from the other side do not follow docs/protocol.md. The lane they came by must end."""


class LocalProtocolError(Exception):
    """Our own code asked for something that the state does not allow: a bug, not an input."""
