"""This host as a carrier: it connects, and asks its resolvers, itself.

The far side gives it all that the client asks for. At the client it is the far end of what stays
here. Near ends may be streams of a session or sockets: it makes no difference here.

Datagrams are carried where they are UDP or ECHO; other associations are ended at once.
"""

from sshunt.direct.dial import Dialer
from sshunt.direct.echo import Echoes
from sshunt.direct.resolve import Resolver
from sshunt.direct.udp import UdpSockets
from sshunt.relay.flow import (
    DNS,
    ECHO,
    FLOW_NOT_PERMITTED,
    UDP,
    Asked,
    Association,
    Carrier,
    Connection,
    Outlet,
    Question,
)
from sshunt.relay.reactor import Reactor


class Direct(Carrier):
    """Owns what is under way; what is connected belongs to its relay."""

    name = "this host"

    def __init__(self, reactor: Reactor) -> None:
        self._dialer = Dialer(reactor)
        self._resolver = Resolver(reactor)
        self._echoes = Echoes(reactor)
        self._udp = UdpSockets(reactor, self._dialer)

    @property
    def is_up(self) -> bool:
        """As in Carrier: a host always reaches what it reaches."""
        return True

    def connect(self, connection: Connection) -> None:
        """As in Carrier."""
        if connection.flow.network == DNS:
            self._resolver.connect(connection)
        else:
            self._dialer.connect(connection)

    def associate(self, association: Association) -> Outlet:
        """As in Carrier."""
        if association.flow.network == UDP:
            return self._udp.associate(association)
        if association.flow.network == ECHO:
            return self._echoes.associate(association)
        association.ended(FLOW_NOT_PERMITTED)
        return Outlet()

    def ask(self, question: Question) -> Asked:
        """As in Carrier."""
        return self._resolver.ask(question)

    def close(self) -> None:
        """Give up what is under way, and the flows of datagrams."""
        self._udp.close()
        self._dialer.close()
        self._resolver.close()
        self._echoes.close()
