"""What both ends must know of a flow of network ECHO: what its datagrams have in them.

    request, client -> agent    REQUEST (u8 hops, u8 flags, u16 sequence), data
    answer, agent -> client     ANSWER (u8 type, u8 code, u8 hops, u16 sequence), then
        a reply                 the data that came back
        another ICMP message    VALUE (u32), the address of whoever sent it, or nothing

Types and codes are ICMP's, or ICMPv6's, of the family that the flow's destination has. Normative
text: docs/protocol.md.

Not here: asking (direct.echo), and who asks (front.echo).
"""

import struct

REQUEST = struct.Struct("!BBH")
ANSWER = struct.Struct("!BBBH")
VALUE = struct.Struct("!I")

#: Flag of a request: what does not pass in one piece is not to be cut.
DONT_FRAGMENT = 1

#: Types of a reply, by IP version.
REPLIES = {4: 0, 6: 129}

#: The value of FLOW_NOT_PERMITTED that says: the far side has ping(8) ask.
CHILDREN = 1
