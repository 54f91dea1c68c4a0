"""DNS messages as far as we know them, beside a library that knows all of them."""

from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshunt.relay.dns import is_answer, is_query, rcode, resolvers, servfail


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
    assert rcode(servfail(wire)) == dns.rcode.SERVFAIL


def test_an_answer_is_told_from_others() -> None:
    query = dns.message.make_query("a.example", "A")
    other = dns.message.make_query("a.example", "A", id=query.id ^ 1)
    answer = dns.message.make_response(query).to_wire()
    assert is_answer(answer, query.to_wire())
    assert not is_answer(answer, other.to_wire())
    assert not is_answer(query.to_wire(), query.to_wire())
    assert not is_query(answer)


@given(st.binary(max_size=600))
def test_whatever_is_asked_gets_an_answer_that_is_one(data: bytes) -> None:
    if not is_query(data):
        return
    answer = servfail(data)
    assert is_answer(answer, data)
    assert len(answer) <= len(data)
    dns.message.from_wire(answer, one_rr_per_rrset=True)


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
