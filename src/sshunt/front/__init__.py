"""Where flows come from: the sockets at which programs' connections and queries arrive.

listener          accepts, at a pace, and waits where there is no room
original          the destination that a redirected connection was made to
redirect          what becomes of a redirected connection
held              connections that are held at their SYN until the far side has connected
arrival           does what is captured arrive here? one connection is made to see
splice            two sockets of this host, joined without a session between them
datagrams         flows of UDP: whose they are, where they lead, when they are over
datagram_sockets  where they arrive, and by which answers leave
echo              echo requests of programs, which the packet process tells of
echo_datagrams    what is said of them to the far side, and by it; pure
dns               queries of this host's programs, answered from over there
dns_sockets       whom programs ask, and the sockets at which we answer in their place
dns_askers        which user of this host asks
dns_connections   how many connections each may keep for it
"""
