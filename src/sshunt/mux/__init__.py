"""The protocol, pure: bytes and ``now`` in, events and bytes out. Shipped to the far side.

Nothing here knows a socket, a clock, a file or a log. The story, bottom up:

    errors     the two errors that bytes or callers can cause
    text       what a person may see of the other side's text
    limits     every limit of the protocol in one place, each with its reason
    hello      the first message of a lane
    endpoints  a host on the wire
    frames     the wire format of everything after HELLO
    datagram_frames  what a DATAGRAM frame has in it
    payload    what a DATA frame carries, opaque: a length that can be cut and released
    early      what arrived before its turn
    streams    one TCP connection: a sending half, a receiving half, their states
    seen       which streams there were
    windows    credit: how much a sender may have in flight, and how it grows
    flows      one flow of datagrams: its number, what waits of it
    datagrams  all of them: whose turn it is, what opens and ends them
    scheduler  which stream sends next: sparse ones, then bulk in fair turns
    path       what all lanes share: the empty path, and whether others fill it
    pacer      how much may be in flight on one lane
    sent       what was sent: what an acknowledgement does to it, and the death of its lane
    lanes      one ordered byte pipe: what was sent and not acknowledged
    steering   which lane what takes
    table      which streams there are
    outgoing   what leaves by a lane, and when
    events     what a session tells its owner
    session    the tunnel: all of the above behind one small interface
"""
