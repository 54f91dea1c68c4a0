"""Where flows come from: the sockets at which programs' connections and queries arrive.

listener         accepts, at a pace, and waits where there is no room
original         the destination that a redirected connection was made to
redirect         what becomes of a redirected connection
arrival          does what is captured arrive here? one connection is made to see
splice           two sockets of this host, joined without a session between them
dns              queries of this host's programs, answered from over there
dns_sockets      whom programs ask, and the sockets at which we answer in their place
dns_askers       which user of this host asks
dns_connections  how many connections each may keep for it
"""
