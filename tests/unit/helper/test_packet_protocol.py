"""What is said to the packet process: kinds that belong to one part each."""

from itertools import combinations

from sshunt.helper.packet_protocol import ECHO_KINDS, SYN_KINDS, UDP_KINDS


def test_a_kind_belongs_to_one_part() -> None:
    for one, other in combinations((UDP_KINDS, SYN_KINDS, ECHO_KINDS), 2):
        assert not set(one) & set(other)
        assert max(*one, *other) < 256
