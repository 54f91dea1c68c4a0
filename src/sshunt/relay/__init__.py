"""The I/O shell around the protocol, the same at both ends. Shipped to the far side.

    tunnel   the session in its event loop: events to their relays, bytes to the lanes, the timer
    lane     the two descriptors of one lane: ssh's pipes
    tcp      one TCP connection of this host, tied to one stream
    promise  a payload that stays in its socket until its turn comes
    paused   notices when a socket dies that is neither read nor written just now
    sockets  options that every relayed socket has; what a system error means to the other end

asyncio is used as a reactor only (add_reader, add_writer, call_soon, call_at): non-blocking recv,
send and writev straight from its callbacks. The bytes of a payload are touched here and nowhere
else.
"""
