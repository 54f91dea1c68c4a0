"""What client and packet process say to each other: binary messages on a SOCK_SEQPACKET socketpair.

    u8 kind, body by kind          one message of the socket's each, either way

There are no replies by order: what belongs together bears the same number in its body. A message
may be lost where the other end does not take them (its buffer is full), as a packet may be; so
nothing depends on one that is not said again.

    kinds          of
    0x01 to 0x0f   flows of UDP
    0x10 to 0x1f   connections that are held
    0x20 to 0x2f   echo requests

Invariants: what is decoded comes from a client that may be hostile: a body of another form than
that of its kind is a PacketError, which ends the packet process and the helper with it.

Not here: what is done about a message (the packet process' parts).
"""

#: The longest message: a datagram of the largest size and what stands before it.
MAX_MESSAGE_BYTES = 66 * 1024

#: The kinds of each part.
UDP_KINDS = range(0x01, 0x10)
SYN_KINDS = range(0x10, 0x20)
ECHO_KINDS = range(0x20, 0x30)


class PacketError(Exception):
    """Bytes that are not a message. Safe to print."""
