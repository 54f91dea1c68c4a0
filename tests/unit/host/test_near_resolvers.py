"""Which addresses are neighbours of a host of the lab."""

from sshunt.host.near_resolvers import near
from sshunt.lab.world import Lab


def test_neighbours_are_near_and_whoever_is_behind_a_router_is_not(lab: Lab) -> None:
    with lab.client.entered():
        asked = ["192.0.2.2", "2001:db8:1::2", "198.51.100.2", "10.55.0.2", "203.0.113.7"]
        assert near([*asked, "fd00:55::2", "127.0.0.53", "::1", "not one"]) == tuple(asked[:3])


def test_what_has_no_route_is_not_near(lab: Lab) -> None:
    with lab.target.entered():
        assert near(["192.0.2.1", "2001:db8:1::1"]) == ()
