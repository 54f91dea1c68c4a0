"""DNS messages as far as we know them, beside a library that knows all of them."""

from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.relay.dns import (
    Settings,
    is_answer,
    is_denial,
    is_failure,
    is_query,
    most_udp_bytes,
    name_asked,
    resolvers,
    servfail,
    settings,
    truncated,
)


@pytest.mark.parametrize("name", [".", "git.corp.example", "a" * 63 + ".example"])
@pytest.mark.parametrize("options", [{}, {"use_edns": 0, "payload": 1232, "want_dnssec": True}])
def test_servfail_answers_the_question_that_was_asked(name: str, options: dict[str, int]) -> None:
    query = dns.message.make_query(name, "AAAA", **options)  # type: ignore[arg-type]
    wire = query.to_wire()
    assert is_query(wire)
    answer = dns.message.from_wire(servfail(wire))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert query.is_response(answer)
    assert answer.flags & dns.flags.RD
    assert is_answer(servfail(wire), wire)
    assert is_failure(servfail(wire))


def test_an_answer_is_matched_to_its_question() -> None:
    query = dns.message.make_query("a.example", "A")
    other = dns.message.make_query("a.example", "A", id=query.id ^ 1)
    answer = dns.message.make_response(query).to_wire()
    assert is_answer(answer, query.to_wire())
    assert not is_answer(answer, other.to_wire())
    assert not is_answer(query.to_wire(), query.to_wire())
    assert not is_query(answer)


@given(st.binary(max_size=600))
def test_any_query_gets_a_well_formed_answer(data: bytes) -> None:
    if not is_query(data):
        return
    for answer in (servfail(data), truncated(data)):
        assert is_answer(answer, data)
        assert len(answer) <= len(data)
        dns.message.from_wire(answer, one_rr_per_rrset=True)
    assert 512 <= most_udp_bytes(data) <= 65535
    assert name_asked(data) in data.lower()


def test_whom_a_host_asks_stands_in_its_resolv_conf(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 192.0.2.9\nsearch example\nnameserver\n\nnameserver 192.0.2.1 # first\n"
        "nameserver\tfe80::1%eth0\n  nameserver 192.0.2.2\noptions ndots:2\n"
    )
    assert resolvers(str(file)) == ["192.0.2.1", "fe80::1%eth0", "192.0.2.2"]
    file.write_text("options edns0\n")
    assert resolvers(str(file)) == ["127.0.0.1"]
    assert resolvers(str(tmp_path / "none")) == ["127.0.0.1"]
    file.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(100)))
    assert len(resolvers(str(file))) == 8


def test_how_a_host_asks_stands_there_too(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver ::1\noptions timeout:3 rotate\noptions attempts:1 use-vc ndots:9\n")
    assert settings(str(file)) == Settings(("::1",), 3, 1, rotate=True, by_tcp=True)
    file.write_text("nameserver \u00e9\nnameserver ::1\noptions timeout:99 attempts:99 timeout:x\n")
    assert settings(str(file)) == Settings(("::1",), 30, 5)
    file.write_text("nameserver ::1\noptions timeout:0 attempts:0\n")
    assert settings(str(file)) == Settings(("::1",), 1, 1)


@pytest.mark.parametrize(("edns", "most"), [(False, 512), (0, 1232)])
def test_an_answer_by_udp_may_be_as_long_as_the_query_says(edns: int, most: int) -> None:
    query = dns.message.make_query("git.Corp.example", "A", use_edns=edns, payload=1232)
    assert most_udp_bytes(query.to_wire()) == most
    assert name_asked(query.to_wire()) == b"\3git\4corp\7example\0"


def test_servfail_is_a_failure_and_nxdomain_is_an_answer() -> None:
    query = dns.message.make_query("a.example", "A", use_edns=False)
    for code, failure in ((2, True), (3, False), (4, True), (5, True), (0, False), (1, False)):
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        answer.set_rcode(dns.rcode.Rcode(code))
        assert is_failure(answer.to_wire()) == failure
        assert is_denial(answer.to_wire()) == (code == 3)
    assert is_failure(dns.message.make_response(query).to_wire())  # it neither knows nor asks
