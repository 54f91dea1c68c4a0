"""Which carrier a flow goes to: of all routes that hold its destination, the most specific one's.

A carrier claims routes. All claims together are one table (``routes.RouteTable``), the same that
the kernel's rules are made of: so what is captured and what is carried agree. Where two carriers
claim the same network and ports, the one that was named first has them; an exclusion, whoever it
came with, beats them all.

What falls into no route, or into an exclusion, goes to ``rest``: a flow that was captured by a
route which has been replaced meanwhile goes where it would have gone without us. Without a ``rest``
it is refused.

A router is itself a carrier, made of others: a front has one, and does not see what is behind it.

Invariants: a flow is asked about once, when it begins; ``replace`` concerns none that has begun.

Not here: what becomes of a flow (the carriers), DNS look-ups of routes' names (routes).
"""

from collections.abc import Iterable
from typing import NamedTuple

from sshunt.model import Action, Endpoint, Route
from sshunt.relay.flow import (
    DNS,
    NO_RESOURCES,
    NOT_PERMITTED,
    Asked,
    Association,
    Carrier,
    Connection,
    Flow,
    Outlet,
    Question,
    Refused,
    Relay,
)
from sshunt.route.routes import RouteTable

#: Destinations whose carrier is remembered: most connections go where others went before, and a
#: look into the table costs as much as a twentieth of a connection.
MOST_REMEMBERED = 4096


class Claim(NamedTuple):
    """What ``carrier`` serves: REMOTE routes; and what stays direct although it lies in those."""

    carrier: Carrier
    routes: tuple[Route, ...]


class Decision(NamedTuple):
    """Where a flow goes, and by which route; None: no route holds its destination."""

    carrier: Carrier | Refused
    route: Route | None


class Router(Carrier):
    """See the module's head. ``names``: the carrier of DNS, if any is."""

    def __init__(
        self,
        claims: Iterable[Claim] = (),
        *,
        names: Carrier | None = None,
        rest: Carrier | None = None,
    ) -> None:
        self._rest: Carrier | Refused = Refused(NOT_PERMITTED) if rest is None else rest
        self.replace(claims, names=names)

    def replace(self, claims: Iterable[Claim], *, names: Carrier | None = None) -> None:
        """From now on these decide."""
        self._names: Carrier | Refused = Refused(NO_RESOURCES) if names is None else names
        self._remembered: dict[Endpoint, Carrier | Refused] = {}
        self._carriers: dict[Route, Carrier] = {}
        for claim in claims:
            for route in claim.routes:
                self._carriers.setdefault(route, claim.carrier)
        self._table = RouteTable(self._carriers)

    @property
    def routes(self) -> tuple[Route, ...]:
        """All of them, for the kernel to capture."""
        return self._table.routes

    def carrier_of(self, flow: Flow) -> Carrier | Refused:
        """Whoever carries it."""
        carrier = self._remembered.get(flow.destination)
        if carrier is None:
            carrier = self.explain(flow).carrier
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[flow.destination] = carrier
        return carrier

    def explain(self, flow: Flow) -> Decision:
        """The same, and why."""
        try:
            route = self._table.lookup(*flow.destination)
        except ValueError:  # a name
            route = None
        if route is None or route.action is not Action.REMOTE:
            return Decision(self._rest, route)
        return Decision(self._carriers[route], route)

    # --- as a carrier -------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """As in Carrier; that of names, for those are asked by it."""
        return isinstance(self._names, Carrier) and self._names.is_up

    def connect(self, connection: Connection) -> Relay | None:
        """As in Carrier. A connection of DNS goes to the carrier of names."""
        flow = connection.flow
        carrier = self._names if flow.network == DNS else self.carrier_of(flow)
        if isinstance(carrier, Carrier):
            return carrier.connect(connection)
        connection.refused(carrier.code)
        return None

    def associate(self, association: Association) -> Outlet:
        """As in Carrier."""
        carrier = self.carrier_of(association.flow)
        if isinstance(carrier, Carrier):
            return carrier.associate(association)
        association.ended(carrier.code)
        return Outlet()

    def ask(self, question: Question) -> Asked:
        """As in Carrier."""
        if isinstance(self._names, Carrier):
            return self._names.ask(question)
        question.refused(self._names.code)
        return Asked()
