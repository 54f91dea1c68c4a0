"""The privileged decoder: everything that is encoded comes back; nothing else gets through."""

import json
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.capture.nft import render
from sshunt.capture.plan import Connect, Method, Plan, Redirect, What
from sshunt.helper.protocol import (
    MAX_REQUEST_BYTES,
    MAX_RETAINED,
    Apply,
    Bypass,
    Guard,
    Hello,
    Request,
    RequestError,
    Resolvers,
    Retain,
    Suspects,
    Undo,
    can_be_retained,
)
from sshunt.helper.wire import decode_request_untrusted, encode_request, taken_line
from sshunt.model import Action, Endpoint, Network, Route

pytestmark = pytest.mark.fuzz

_sessions = st.text("0123456789abcdef", min_size=8, max_size=16)
_ports = st.integers(1, 65535)


def _network(number: int, width: int, bits: int) -> Network:
    masked = number >> (bits - width) << (bits - width)
    return IPv4Network((masked, width)) if bits == 32 else IPv6Network((masked, width))


_networks = st.one_of(
    st.builds(_network, st.integers(0, 2**32 - 1), st.integers(0, 32), st.just(32)),
    st.builds(_network, st.integers(0, 2**128 - 1), st.integers(0, 128), st.just(128)),
)


@st.composite
def _routes(draw: st.DrawFn) -> Route:
    first, last = sorted((draw(st.integers(0, 65535)), draw(st.integers(0, 65535))))
    return Route(draw(_networks), draw(st.sampled_from(Action)), first, last)


_endpoints4: st.SearchStrategy[Endpoint] = st.tuples(st.ip_addresses(v=4).map(str), _ports)
_endpoints6: st.SearchStrategy[Endpoint] = st.tuples(st.ip_addresses(v=6).map(str), _ports)
_bypasses = st.lists(_endpoints4 | _endpoints6, max_size=5).map(tuple)
_kept = st.lists(
    st.ip_addresses().map(str).filter(can_be_retained), max_size=MAX_RETAINED, unique=True
).map(tuple)
_resolvers = st.lists(st.ip_addresses().map(str), max_size=5).map(tuple)


def _well_formed(redirects: list[Redirect]) -> tuple[Redirect, ...]:
    """Datagrams arrive where connections do."""
    connected = {each.endpoint[0] for each in redirects if each.what is What.CONNECTIONS}
    return tuple(
        each
        for each in redirects
        if each.what is not What.DATAGRAMS or each.endpoint[0] in connected
    )


_plans = st.builds(
    Plan,
    _sessions,
    st.lists(
        st.builds(Redirect, st.sampled_from(What), _endpoints4 | _endpoints6),
        unique_by=lambda redirect: (redirect.what, ":" in redirect.endpoint[0]),
    ).map(_well_formed),
    st.lists(_routes(), max_size=5).map(tuple),
    _bypasses,
    _resolvers,
    st.sampled_from(Method),
    st.sampled_from(Connect),
    st.booleans(),
)
_requests = st.one_of(
    st.builds(Hello, st.integers(0, 2**31), _sessions),
    st.builds(Guard),
    st.builds(Apply, _plans),
    st.builds(Bypass, _bypasses),
    st.builds(Retain, _kept),
    st.builds(Resolvers, _resolvers),
    st.builds(Suspects),
    st.builds(Undo),
)


@given(_requests)
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_is_decoded_to_the_same(request: Request) -> None:
    line = encode_request(request)
    assert line.count(b"\n") == 1
    assert decode_request_untrusted(line) == request


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_request_or_one_named_error(line: bytes) -> None:
    _decode_or_refuse(line)


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(_requests, st.data())
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_place_gives_a_good_request_or_one_named_error(
    request: Request, data: st.DataObject
) -> None:
    fields = json.loads(encode_request(request))
    place: Any = fields
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            place[key] = data.draw(_json)
            break
        place = place[key]
    _decode_or_refuse(json.dumps(fields).encode())


@given(_requests, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_gives_a_good_request_or_one_named_error(
    request: Request, data: st.DataObject
) -> None:
    line = bytearray(encode_request(request))
    line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(line))


def _decode_or_refuse(line: bytes) -> None:
    """Decode; what comes out must be good enough to be rendered."""
    try:
        request = decode_request_untrusted(line)
    except RequestError:
        return
    assert decode_request_untrusted(encode_request(request)) == request
    if isinstance(request, Apply):
        text = render(request.plan, owner=True, cgroup=None)
        assert text.startswith(f"table inet sshunt-{request.plan.session} {{\n")
        assert _harmless(text)


def _harmless(text: str) -> bool:
    """No statement that only rule text from outside could have brought in."""
    text = text.replace('oifname "lo"', "")  # ours
    return not any(word in text for word in ("flush", "include", "delete", '"', "$"))


@given(st.lists(_requests, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_any_split_of_the_bytes_gives_the_same_lines(
    requests: list[Request], data: st.DataObject
) -> None:
    lines = [encode_request(request) for request in requests]
    rest, buffer, taken = b"".join(lines), bytearray(), []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        buffer += rest[:size]
        rest = rest[size:]
        while line := taken_line(buffer):
            taken.append(line)
    assert taken == lines
    assert not buffer


def test_a_line_that_is_too_long_is_taken_before_it_ends() -> None:
    buffer = bytearray(MAX_REQUEST_BYTES)
    assert taken_line(buffer) == b""
    buffer += b"x"
    assert len(taken_line(buffer)) == MAX_REQUEST_BYTES + 1
    assert not buffer


def test_every_endpoint_comes_back_in_one_spelling() -> None:
    line = b'{"request":"bypass","endpoints":[["2001:DB8:0:0::1",22]]}'
    assert decode_request_untrusted(line) == Bypass((("2001:db8::1", 22),))
