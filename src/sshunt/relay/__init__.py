"""The I/O shell around the protocol, the same at both ends. Shipped to the far side.

    reactor    what a process has once: the loop and all that does I/O around it, flushed in batches
    tunnel     one session in the reactor: events to their relays, bytes to the lanes
    flow       what is carried: flows, near ends that wait, carriers
    incoming   what the other side of a session asks for, as near ends of flows
    lane       the two descriptors of one lane: ssh's pipes
    tcp        one TCP connection of this host, tied to one stream
    backlog    what has been received for a socket that does not take it yet
    piped      payload that stays in the kernel, in a pipe of its own
    readiness  which of the connections' sockets can be read, can be written, or have died
    ticks      what moves very much is served at the next tick instead of whenever it is ready
    shares     room that several share: who has most loses his oldest first
    alarm      one deadline of the event loop, kept to a fraction of a millisecond
    dns        what both ends must know of DNS: a message's head, and whom a host asks
    echo       what both ends must know of echo requests: what their datagrams have in them
    accepting  connections of a listening socket, taken in with pauses
    sockets    options that every relayed socket has; what a system error means to the other end
    linux      what Linux can do and Python can't

asyncio is used as a reactor only (add_reader, add_writer, call_soon, call_at): non-blocking recv,
send and writev straight from its callbacks. The bytes of a payload are touched here and nowhere
else.
"""
