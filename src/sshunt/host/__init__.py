"""This host, asked and told, without privilege.

rules               the rules of a session: what is wanted is made so
wanted              which rules these are, and what to ask for next; pure
helper              talks to the privileged process
packets             talks to the packet process, which the privileged one starts
elevate             starts it, through sudo, doas or run0
trust               whether files are root's alone
network             news of this host's network
parent              children of ours that end when we do
connecting          which programs wait to be connected
own                 what this host is itself: its addresses, whether it has IPv6
near_resolvers      resolvers that are neighbours, and are left alone without --dns
namespace           another network namespace, in which it is captured
retained_addresses  addresses that it lost and connections still bear
terminal            the terminal that questions are asked at, and its echo
"""
