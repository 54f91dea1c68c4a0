"""The values that client and helper exchange: what can't be is not made."""

from ipaddress import ip_network

import pytest

from sshunt.capture.plan import Plan, Redirect, What
from sshunt.helper.protocol import (
    MAX_RETAINED,
    Apply,
    Bypass,
    Guard,
    Hello,
    KernelError,
    Refusal,
    Request,
    Resolvers,
    Retain,
    can_be_retained,
    described,
)
from sshunt.model import Action, Route


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.1.2", "224.0.0.1", "239.1.2.3"),
        *("255.255.255.255", "::", "::1", "::ffff:192.0.2.1", "::192.0.2.1", "64:ff9b::1"),
        *("fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "2001:db8::1%eth0"),
        *("", "localhost", "192.0.2.1/32", "192.0.2", "192.0.2.01", " 192.0.2.1", "192.0.2.1\n"),
        *("2001:DB8::1", "2001:db8:0::1", "[2001:db8::1]"),
    ],
)
def test_only_an_address_a_host_can_have_may_be_kept(address: str) -> None:
    assert not can_be_retained(address)
    with pytest.raises(ValueError, match="not an address"):
        Retain(("192.0.2.1", address))


def test_as_many_addresses_as_allowed_are_kept_and_none_of_them_twice() -> None:
    addresses = tuple(f"192.0.2.{number}" for number in range(MAX_RETAINED))
    assert Retain(addresses).addresses == addresses
    with pytest.raises(ValueError, match="more than"):
        Retain((*addresses, "2001:db8::1"))
    with pytest.raises(ValueError, match="twice"):
        Retain(("192.0.2.1", "192.0.2.1"))


def test_what_the_kernel_did_not_do_is_a_kind_and_a_sentence() -> None:
    error = KernelError(Refusal.NO_NFT, "libnftables is not installed")
    assert (error.kind, error.message, str(error)) == (Refusal.NO_NFT, error.message, error.message)


_ROUTE = Route(ip_network("10.0.0.0/8"), Action.REMOTE)
_REDIRECT = Redirect(What.CONNECTIONS, ("127.0.0.1", 40_000))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Hello(7, "feedface"), "hello"),
        (Guard(), "guard"),
        (
            Apply(Plan("feedfacefeed", (_REDIRECT,), (_ROUTE,))),
            "apply 1 routes, listeners 127.0.0.1 port 40000",
        ),
        (Bypass((("192.0.2.1", 22), ("::1", 22))), "bypass 192.0.2.1 port 22, ::1 port 22"),
        (Bypass(()), "bypass none"),
        (Resolvers(("192.0.2.53",)), "resolvers 192.0.2.53"),
        (Retain(()), "retain none"),
    ],
)
def test_a_request_is_described_in_a_few_words_for_a_log(request_: Request, words: str) -> None:
    assert described(request_) == words
