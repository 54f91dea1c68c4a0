"""How client and helper write what they say to each other: strict both ways."""

import json
from ipaddress import ip_network

import pytest

from sshunt.capture.plan import Plan, redirects
from sshunt.helper.protocol import (
    MAX_BYPASS,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESOLVERS,
    MAX_ROUTES,
    VERSION,
    Applied,
    Apply,
    Bypass,
    Done,
    Guard,
    Guarded,
    Hello,
    Lost,
    Packeted,
    Packets,
    Part,
    Refusal,
    Refused,
    Reply,
    ReplyError,
    Request,
    RequestError,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Undo,
    Welcome,
)
from sshunt.helper.wire import (
    decode_reply,
    decode_request_untrusted,
    encode_reply,
    encode_request,
    taken_line,
)
from sshunt.model import Action, Route

_ROUTE = ["10.0.0.0/8", "remote", 0, 65535]
_PLAN = {
    "session": "01234567",
    "method": "nft",
    "connect": "auto",
    "redirects": [["connections", "127.0.0.1", 1], ["queries", "127.0.0.1", 2]],
    "routes": [_ROUTE],
    "bypass": [],
    "resolvers": ["127.0.0.53"],
    "echoes": True,
    "links": ["docker0"],
    "blocks": False,
}


def _apply(**changes: object) -> bytes:
    return json.dumps({"request": "apply", "plan": {**_PLAN, **changes}}).encode()


def test_the_plan_that_the_bad_ones_below_differ_from_is_good() -> None:
    assert isinstance(decode_request_untrusted(_apply()), Apply)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'"guard"',
        b'{"request":"guard"} {"request":"guard"}',
        b'{"request":"guard","request":"undo"}',
        b'{"request":"guard","more":1}',
        b'{"request":["guard"]}',
        b'{"request":"exec"}',
        '{"request":"guard"}'.encode("utf-16"),
        b'{"request":"guard"}\xff',
        b'{"request":"hello","version":1}',
        b'{"request":"hello","version":true,"session":"01234567"}',
        b'{"request":"hello","version":"1","session":"01234567"}',
        b'{"request":"hello","version":1,"session":"../../etc"}',
        b'{"request":"bypass","endpoints":{}}',
        b'{"request":"bypass","endpoints":[["localhost",22]]}',
        b'{"request":"bypass","endpoints":[["127.0.0.1",22,0]]}',
        b'{"request":"bypass","endpoints":[[2130706433,22]]}',
        b'{"request":"bypass","endpoints":[["fe80::1%eth0",22]]}',
        b'{"request":"resolvers","addresses":["localhost"]}',
        b'{"request":"retain"}',
        b'{"request":"retain","addresses":"192.0.2.1"}',
        b'{"request":"retain","addresses":["192.0.2.1",null]}',
        b'{"request":"retain","addresses":["192.0.2.1","192.0.2.1"]}',
        b"[" * 100_000,
        b'{"request":' + b'{"a":' * 50_000,
        b'{"request":"hello","session":"01234567","version":' + b"9" * 10_000 + b"}",
        b" " * (MAX_REQUEST_BYTES + 1),
        _apply(session="0123456x"),
        _apply(session=None),
        _apply(method="iptables"),
        _apply(method=None),
        _apply(connect="never"),
        _apply(connect=None),
        _apply(redirects=None),
        _apply(redirects={}),
        _apply(redirects=[None]),
        _apply(redirects=[[]]),
        _apply(redirects=[["connections"]]),
        _apply(redirects=[["packets", "127.0.0.1", 1]]),
        _apply(redirects=[[["connections"], "127.0.0.1", 1]]),
        _apply(redirects=[["connections", "127.0.0.1", "1"]]),
        _apply(redirects=[["connections", "127.0.0.1", 0]]),
        _apply(redirects=[["connections", "127.0.0.1", 1.0]]),
        _apply(redirects=[["connections", "127.0.0.1", 1, 2]]),
        _apply(redirects=[["connections", "127.0.0.1", 1], ["connections", "127.0.0.2", 1]]),
        _apply(redirects=[["connections", "127.0.0.1", 1]] * 1000),
        _apply(routes="10.0.0.0/8"),
        _apply(routes=[["10.0.0.1/8", "remote", 0, 65535]]),
        _apply(routes=[["10.0.0.0/8", "accept", 0, 65535]]),
        _apply(routes=[["10.0.0.0/8", "remote", 90, 80]]),
        _apply(routes=[["10.0.0.0/8", "remote", 0, 65536]]),
        _apply(routes=[["10.0.0.0/8", "remote", -1, 5]]),
        _apply(routes=[["10.0.0.0/8", "remote", False, True]]),
        _apply(routes=[["fe80::%1/64", "remote", 0, 1]]),
        _apply(routes=[[167772160, "remote", 0, 1]]),
        _apply(routes=[_ROUTE] * (MAX_ROUTES + 1)),
        _apply(bypass=[["127.0.0.1", 22]] * (MAX_BYPASS + 1)),
        _apply(echoes=None),
        _apply(echoes=1),
        _apply(blocks=None),
        _apply(links=[1]),
        _apply(links=['eth0" accept']),
        _apply(links=["eth0"] * 65),
        _apply(blocks=0),
        _apply(resolvers="127.0.0.53"),
        _apply(resolvers=["localhost"]),
        _apply(resolvers=["fe80::1%eth0"]),
        _apply(resolvers=["127.0.0.1 } flush ruleset"]),
        _apply(resolvers=[2130706433]),
        _apply(resolvers=["127.0.0.53"] * (MAX_RESOLVERS + 1)),
        _apply(redirects=[["queries", "::1", 0]]),
        _apply(redirects=[["queries", "fe80::1%eth0", 2]]),
        _apply(rules="flush ruleset"),
    ],
    ids=lambda line: repr(line[:60]),
)
def test_what_is_not_exactly_a_request_is_an_error(line: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request_untrusted(line)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    "request_",
    [
        Hello(VERSION, "01234567"),
        Guard(),
        Packets(),
        Apply(Plan("01234567", (), ())),
        Apply(
            Plan(
                "01234567",
                redirects([("127.0.0.1", 1), ("::1", 2)], [("127.0.0.1", 3)]),
                (Route(ip_network("10.0.0.0/8"), Action.REMOTE, 80, 90),),
                (("192.0.2.1", 22),),
                ("192.0.2.53",),
            )
        ),
        Bypass((("192.0.2.1", 22), ("2001:db8::1", 22))),
        Resolvers(("192.0.2.53", "2001:db8::53")),
        Retain(("192.0.2.1", "2001:db8::1")),
        Suspects(),
        Undo(),
    ],
)
def test_a_request_survives_the_way(request_: Request) -> None:
    line = encode_request(request_)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_request_untrusted(line) == decode_request_untrusted(line[:-1]) == request_


def test_addresses_are_decoded_to_their_usual_spelling() -> None:
    line = b'{"request":"bypass","endpoints":[["2001:DB8:0::1",22]]}'
    assert decode_request_untrusted(line) == Bypass((("2001:db8::1", 22),))


def test_the_longest_plan_that_is_allowed_fits_into_a_request() -> None:
    network = ip_network("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/128")
    route = Route(network, Action.REMOTE, 10000, 65535)
    bypass = (("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 65535),) * MAX_BYPASS
    request = Apply(Plan("0123456789abcdef", (), (route,) * MAX_ROUTES, bypass))
    assert decode_request_untrusted(encode_request(request)) == request


def test_a_longer_plan_is_refused_before_it_is_sent() -> None:
    route = Route(ip_network("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/128"), Action.REMOTE, 10000)
    with pytest.raises(ValueError, match="too many"):
        encode_request(Apply(Plan("0123456789abcdef", (), (route,) * 2 * MAX_ROUTES)))


@pytest.mark.parametrize(
    "reply",
    [
        Welcome(1),
        Guarded(True),
        Packeted(syns=True, echoes=False, datagrams=True),
        Guarded(False),
        Applied(True),
        Done(),
        Suspected(()),
        Lost(Part.DEVICE),
        Suspected(("table ip filter, chain input (input: drops by default)",)),
        Refused(Refusal.KERNEL, 'a "quoted"\nsentence ☂'),
    ],
)
def test_a_reply_survives_the_way(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_a_long_message_keeps_its_end_and_fits_into_a_reply() -> None:
    line = encode_reply(Refused(Refusal.INTERNAL, "☂" * 100_000 + "the point"))
    assert len(line) <= MAX_REPLY_BYTES
    reply = decode_reply(line)
    assert isinstance(reply, Refused)
    assert reply.message.endswith("the point")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Sorry, try again.\n",
        b"{}",
        b'{"reply":"welcome"}',
        b'{"reply":"guarded","guarded":1}',
        b'{"reply":"refused","kind":"other","message":""}',
        b'{"reply":"done","more":0}',
        b'{"reply":"granted"}',
        b'{"reply":"suspected","chains":"table ip filter"}',
        b'{"reply":"suspected","chains":[1]}',
    ],
)
def test_what_is_not_exactly_a_reply_is_an_error(line: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_reply(line)


def test_lines_are_taken_from_the_buffer_one_by_one() -> None:
    buffer = bytearray(b"one\ntwo\nthr")
    assert [taken_line(buffer) for _ in range(3)] == [b"one\n", b"two\n", b""]
    assert buffer == b"thr"


def test_a_line_without_end_is_taken_as_it_is_once_it_is_too_long() -> None:
    buffer = bytearray(MAX_REQUEST_BYTES)
    assert taken_line(buffer) == b""
    buffer += b"x"
    assert len(taken_line(buffer)) == MAX_REQUEST_BYTES + 1
    assert not buffer
