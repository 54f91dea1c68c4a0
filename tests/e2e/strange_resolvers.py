"""Two resolvers of an office, run in its network by test_resolvers.

    strange_resolvers.py ADDRESS ADDRESS

The first knows the names of corp.example: those that begin with ``slow`` after 2 s, those that
begin with ``lost`` by every second datagram, those that begin with ``never`` not at all. It gives
away its zone in five messages, and sends what comes with a query back with the answer. The second
denies everything.
"""

import itertools
import signal
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.unit.front.office import knows, resolver, says, slow

INNER = knows("10.55.0.2")

_numbers: dict[str, "itertools.count[int]"] = defaultdict(itertools.count)


def first(query: dns.message.Message) -> bytes | list[bytes]:
    name = str(query.question[0].name)
    if query.question[0].rdtype == dns.rdatatype.AXFR:
        return zone(query)
    if query.additional:
        response = dns.message.make_response(query)
        response.answer.extend(query.additional)
        return response.to_wire()
    if name.startswith("slow"):
        return slow(2.0, INNER)(query)
    if name.startswith("lost") and next(_numbers[name]) % 2 == 0:
        return b""
    return b"" if name.startswith("never") else INNER(query)


def zone(query: dns.message.Message) -> list[bytes]:
    """Its SOA first and last, and a thousand addresses."""
    name = query.question[0].name
    soa = dns.rrset.from_text(name, 60, "IN", "SOA", "ns.corp.example. me.corp.example. 1 1 1 1 1")
    wires = []
    for number in range(5):
        response = dns.message.make_response(query)
        if number == 0:
            response.answer.append(soa)
        text = [f"10.55.{number}.{last}" for last in range(200)]
        own = f"n{number}.{name}"
        response.answer.append(dns.rrset.from_text_list(own, 60, "IN", "A", text))
        if number == 4:
            response.answer.append(soa)
        wires.append(response.to_wire(max_size=65535))
    return wires


with resolver(sys.argv[1], 53, first), resolver(sys.argv[2], 53, says(dns.rcode.NXDOMAIN)):
    signal.pause()
