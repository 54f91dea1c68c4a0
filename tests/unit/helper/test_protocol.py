"""The values that client and helper exchange: what can't be is not made."""

import pytest

from sshunt.helper.protocol import MAX_RETAINED, KernelError, Refusal, Retain, can_be_retained


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
