"""Of all routes that hold a destination the most specific one's carrier has it."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.model import Action, Route
from sshunt.relay.flow import (
    DNS,
    NO_RESOURCES,
    NOT_PERMITTED,
    TCP,
    UDP,
    Asked,
    Association,
    Carrier,
    Connection,
    Flow,
    Outlet,
    Question,
    Refused,
)
from sshunt.route.router import MOST_REMEMBERED, Claim, Router
from sshunt.route.routes import RouteTable


class Far(Carrier):
    """Writes down what it is given."""

    def __init__(self, name: str, *, is_up: bool = True) -> None:
        self.name = name
        self.up = is_up
        self.given: list[object] = []

    @property
    def is_up(self) -> bool:
        return self.up

    def connect(self, connection: Connection) -> None:
        self.given.append(connection)

    def associate(self, association: Association) -> Outlet:
        self.given.append(association)
        return Outlet()

    def ask(self, question: Question) -> Asked:
        self.given.append(question)
        return Asked()


class Program(Connection):
    """One that remembers why it was refused."""

    code = None

    def refused(self, code: int) -> None:
        self.code = code


class Datagrams(Association):
    code = None

    def ended(self, code: int) -> None:
        self.code = code


class Query(Question):
    code = None

    def refused(self, code: int) -> None:
        self.code = code


def to(network: str, first: int = 0, last: int = 65535, *, direct: bool = False) -> Route:
    return Route(ip_network(network), Action.DIRECT if direct else Action.REMOTE, first, last)


def tcp(host: str, port: int = 80) -> Flow:
    return Flow(TCP, (host, port))


OFFICE, LAB = Far("office"), Far("lab")
BOTH = Router(
    [
        Claim(OFFICE, (to("10.0.0.0/8"), to("10.9.0.0/16"), to("10.5.0.0/16", direct=True))),
        Claim(
            LAB, (to("10.1.0.0/16"), to("10.9.0.0/16"), to("10.0.0.0/8", 22, 22), to("fd00::/8"))
        ),
    ]
)


@pytest.mark.parametrize(
    ("flow", "carrier"),
    [
        (tcp("10.2.3.4"), OFFICE),
        (tcp("10.1.2.3"), LAB),  # the longer prefix
        (tcp("10.2.3.4", 22), LAB),  # the narrower port range
        (tcp("10.9.0.1"), OFFICE),  # named first
        (tcp("fd00::1"), LAB),
        (tcp("10.5.1.1"), Refused(NOT_PERMITTED)),  # excluded
        (tcp("192.0.2.1"), Refused(NOT_PERMITTED)),
        (tcp("git.corp.example"), Refused(NOT_PERMITTED)),
    ],
)
def test_the_most_specific_route_s_carrier_has_the_flow(
    flow: Flow, carrier: Carrier | Refused
) -> None:
    assert BOTH.carrier_of(flow) == carrier


def test_a_decision_names_the_route() -> None:
    assert BOTH.explain(tcp("10.1.2.3")) == (LAB, to("10.1.0.0/16"))
    assert BOTH.explain(tcp("10.5.1.1")) == (Refused(NOT_PERMITTED), to("10.5.0.0/16", direct=True))
    assert BOTH.explain(tcp("192.0.2.1")) == (Refused(NOT_PERMITTED), None)


def test_what_no_route_holds_any_more_goes_to_the_rest() -> None:
    here = Far("this host")
    claims = [Claim(OFFICE, (to("10.0.0.0/8"), to("10.5.0.0/16", direct=True)))]
    router = Router(claims, rest=here)
    assert router.carrier_of(tcp("10.0.0.1")) is OFFICE
    assert router.carrier_of(tcp("10.5.0.1")) is here
    assert router.carrier_of(tcp("192.0.2.1")) is here
    assert router.carrier_of(tcp("git.corp.example")) is here


def test_what_is_remembered_is_what_the_table_says_and_has_a_limit() -> None:
    router = Router([Claim(OFFICE, (to("10.0.0.0/8"),))])
    for number in range(MOST_REMEMBERED + 10):
        for _ in range(2):
            assert router.carrier_of(tcp(f"10.0.{number // 256}.{number % 256}")) is OFFICE
    assert len(router._remembered) <= MOST_REMEMBERED


def test_without_carriers_everything_is_refused() -> None:
    router, program, query = Router(), Program(tcp("10.0.0.1"), wants_opened=False), Query(b"", 0)
    assert router.connect(program) is None
    router.ask(query).give_up()
    assert program.code == NOT_PERMITTED
    assert query.code == NO_RESOURCES
    assert not router.is_up


def test_flows_go_to_their_carriers_and_names_to_the_carrier_of_names() -> None:
    office, lab = Far("office"), Far("lab", is_up=False)
    claims = [Claim(office, (to("10.0.0.0/8"),)), Claim(lab, (to("10.1.0.0/16"),))]
    router = Router(claims, names=lab)
    there = Program(tcp("10.0.0.1"), wants_opened=False)
    by_tcp = Program(Flow(DNS, (".", 53)), wants_opened=False)
    packets, query = Datagrams(Flow(UDP, ("10.1.0.1", 53)), 1.0), Query(b"", 0)
    router.connect(there)
    router.connect(by_tcp)
    router.associate(packets)
    router.ask(query)
    assert office.given == [there]
    assert lab.given == [by_tcp, packets, query]
    assert not router.is_up  # for it is names that are asked of it
    lab.up = True
    assert router.is_up


def test_what_no_route_holds_is_refused() -> None:
    program = Program(tcp("192.0.2.1"), wants_opened=False)
    packets = Datagrams(Flow(UDP, ("10.5.0.1", 53)), 1.0)
    by_tcp = Program(Flow(DNS, (".", 53)), wants_opened=False)
    BOTH.connect(program)
    BOTH.connect(by_tcp)
    BOTH.associate(packets)
    assert (program.code, packets.code, by_tcp.code) == (NOT_PERMITTED, NOT_PERMITTED, NO_RESOURCES)


def test_other_claims_decide_about_the_flows_that_come_later() -> None:
    office, lab = Far("office"), Far("lab")
    routes = (to("10.0.0.0/8"), to("10.1.0.0/16"))
    router = Router([Claim(office, routes[:1]), Claim(lab, routes[1:])])
    before = router.carrier_of(tcp("10.1.0.1"))
    router.replace([Claim(office, routes), Claim(lab, (to("fd00::/8"),))])
    assert (before, router.carrier_of(tcp("10.1.0.1"))) == (lab, office)
    assert router.routes == (*routes, to("fd00::/8"))


networks = st.sampled_from(["10.0.0.0/8", "10.0.0.0/9", "10.64.0.0/10", "10.64.0.1/32"])
some_routes = st.lists(
    st.builds(
        lambda network, direct, first: to(network, first, first + 10, direct=direct),
        networks,
        st.booleans(),
        st.integers(0, 20),
    ),
    max_size=6,
)


@given(some_routes, some_routes, st.integers(0, 3), st.integers(0, 35))
def test_what_the_kernel_captures_is_what_somebody_carries(
    ours: list[Route], theirs: list[Route], host: int, port: int
) -> None:
    router = Router([Claim(OFFICE, tuple(ours)), Claim(LAB, tuple(theirs))])
    address = ("10.0.0.1", "10.64.0.1", "10.64.0.2", "10.200.0.1")[host]
    captured = RouteTable([*ours, *theirs]).lookup(address, port)
    decision = router.explain(tcp(address, port))
    assert decision.route == captured
    is_remote = captured is not None and captured.action is Action.REMOTE
    assert isinstance(decision.carrier, Carrier) is is_remote
    if is_remote:
        assert decision.carrier is (OFFICE if captured in ours else LAB)
