"""What a host does itself for a flow. The far side does it for every one. Shipped.

    carrier       this host as a carrier of flows: all that follows behind one face
    udp           a socket for each source of UDP, its flows and their errors
    dial          connections to the real hosts
    echo          echo requests of ping and traceroute
    resolve       DNS queries, asked of this host's resolvers
    order         in which order the resolvers are asked; pure
    race          who answers a query
    exchange      one question to one resolver
    conversation  DNS over TCP

Python 3.6 and the standard library only.
"""
