"""Whatever root is told, by the client or in packets that it logs, is a value or one named error.

Each test changes what is right, over and over, for a few seconds; SSHUNT_FUZZ_SECONDS says for how
long. What was tried when one fails stands in its error, with the seed.
"""

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network

import pytest

from sshunt.capture.block import render_block
from sshunt.capture.nft import render
from sshunt.capture.pf import System
from sshunt.capture.pf import render as render_pf
from sshunt.capture.plan import Connect, Plan, Redirect, What
from sshunt.helper import conntrack, echo_packets, nflog, segments
from sshunt.helper.echo_messages import (
    Failed,
    Replied,
    decode_failed_untrusted,
    decode_replied_untrusted,
    encode_failed,
    encode_replied,
)
from sshunt.helper.packet_protocol import PacketError
from sshunt.helper.protocol import (
    VERSION,
    Apply,
    Bypass,
    Guard,
    Hello,
    Packets,
    RequestError,
    Resolvers,
    Retain,
    Suspects,
    Undo,
    described,
)
from sshunt.helper.segments import SegmentError
from sshunt.helper.syn_messages import (
    Answer,
    decode_number_untrusted,
    decode_refused_untrusted,
    encode_number,
    encode_refused,
)
from sshunt.helper.syn_messages import decode_failed_untrusted as decode_failed_destination
from sshunt.helper.syn_messages import (
    encode_failed as encode_failed_destination,
)
from sshunt.helper.udp_messages import (
    Delivery,
    Failure,
    Key,
    decode_delivery_untrusted,
    decode_failure_untrusted,
    decode_look_up_untrusted,
    encode_delivery,
    encode_failure,
    encode_look_up,
)
from sshunt.helper.wire import decode_request_untrusted, encode_request
from sshunt.model import LINK_NAME, Action, Route

pytestmark = pytest.mark.fuzz

#: How long each of the three goes on.
SECONDS = float(os.environ.get("SSHUNT_FUZZ_SECONDS", "2"))

#: The longest that one of a few hundred bytes may take, on a machine that has much else to do.
SLOW_S = 2.0

_INTERESTING = (
    *(b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\n", b'"', b"{", b"[" * 40, b"1e999", b"-1", b"NaN"),
    *(
        b"true",
        b"null",
        b'"\\ud800"',
        b"9" * 30,
        b"0/0",
        b"%lo",
        b"::ffff:1.2.3.4",
        b"; flush ruleset",
    ),
)


def changed(rng: random.Random, right: bytes, corpus: list[bytes]) -> bytes:
    """``right`` with one to six changes."""
    data = bytearray(right)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                data[at:at] = rng.choice(_INTERESTING)
            case 3:
                del data[at : at + rng.randint(1, 8)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 30)]
            case 5:
                other = rng.choice(corpus)
                data[at:] = other[rng.randint(0, len(other)) :]
            case _:
                data[at : at + 4] = rng.randbytes(rng.randint(0, 4))
    return bytes(data)


def tried(
    corpus: list[bytes], seed: int, each: Callable[[bytes], None], *, seconds: float = SECONDS
) -> int:
    """How many were tried; one on which ``each`` raises, or is slow, fails the test."""
    rng = random.Random(seed)
    end, count = time.monotonic() + seconds, 0
    while (begin := time.monotonic()) < end:
        data = changed(rng, rng.choice(corpus), corpus)
        try:
            each(data)
        except Exception as error:
            raise AssertionError(f"seed {seed}, number {count}: {data!r}") from error
        assert time.monotonic() - begin < SLOW_S, f"seed {seed}, number {count}: {data!r}"
        count += 1
    return count


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--hypothesis-seed", None)
    return int(given) if given is not None and str(given).isdigit() else random.randrange(2**32)


# --- requests -------------------------------------------------------------------------------------

_PLAN = Plan(
    "feedfacefeed",
    (
        Redirect(What.CONNECTIONS, ("127.0.0.1", 40_000)),
        Redirect(What.CONNECTIONS, ("::1", 40_000)),
        Redirect(What.DATAGRAMS, ("127.0.0.1", 40_001)),
        Redirect(What.QUERIES, ("127.0.0.1", 40_002)),
    ),
    (
        Route(ip_network("10.0.0.0/8"), Action.REMOTE),
        Route(ip_network("2001:db8::/32"), Action.REMOTE, 80, 443),
        Route(ip_network("10.1.0.0/16"), Action.DIRECT),
    ),
    (("192.0.2.1", 22),),
    ("192.0.2.53",),
    connect=Connect.AUTO,
    echoes=True,
    blocks=True,
    links=("docker0", "eth0.1"),
)
_REQUESTS = [
    encode_request(request)
    for request in (
        *(Hello(VERSION, "feedfacefeed"), Guard(), Packets(), Apply(_PLAN), Suspects(), Undo()),
        *(Bypass((("192.0.2.1", 22), ("2001:db8::1", 22))), Resolvers(("192.0.2.53", "::1"))),
        Retain(("192.0.2.7",)),
    )
]


def decode_or_refuse(line: bytes) -> None:
    """What comes out can be rendered, described and written again, and holds no text of theirs."""
    try:
        request = decode_request_untrusted(line)
    except RequestError:
        return
    assert decode_request_untrusted(encode_request(request)) == request
    assert described(request).isprintable()
    if isinstance(request, Apply):
        plan = request.plan
        with suppress(ValueError):  # too many pieces
            texts = [render(plan, owner=True, cgroup=None)]
            texts += [render_block(plan, 1000, None, persists=False)] if plan.blocks else []
            texts += [render_pf(plan, system) for system in System]
            check_text("".join(texts))


def check_text(text: str) -> None:
    """Nothing that only text from outside could have brought in."""
    assert not any(word in text for word in ("flush", "include", "delete", "$"))
    for quoted in text.split('"')[1::2]:
        assert LINK_NAME.fullmatch(quoted)


def test_requests_that_were_changed_are_requests_or_one_error(seed: int) -> None:
    assert tried(_REQUESTS, seed, decode_or_refuse) > 100


# --- messages to the packet process ---------------------------------------------------------------

_KEY = Key(bytes(4), bytes((10, 0, 0, 1)), 5353)
_KEY6 = Key(bytes(16), bytes(15) + b"\1", 5353)

#: Right bodies, and what reads them.
_BODIES: list[tuple[bytes, Callable[[bytes], object]]] = [
    (encode_look_up(4, [_KEY, _KEY]), decode_look_up_untrusted),
    (encode_look_up(6, [_KEY6]), decode_look_up_untrusted),
    (
        encode_delivery(Delivery(4, _KEY, bytes(4), 53, 100, bytes(250))),
        decode_delivery_untrusted,
    ),
    (encode_delivery(Delivery(6, _KEY6, bytes(16), 53, 0, b"")), decode_delivery_untrusted),
    (encode_failure(4, _KEY, Failure.REFUSED), decode_failure_untrusted),
    (encode_number(7), decode_number_untrusted),
    (encode_refused(7, Answer.RESET), decode_refused_untrusted),
    (encode_failed_destination(("192.0.2.1", 80)), decode_failed_destination),
    (encode_failed_destination(("2001:db8::1", 80)), decode_failed_destination),
    (encode_replied(Replied(1, 64, 56)), decode_replied_untrusted),
    (encode_failed(Failed(1, 3, 4, 1280, "192.0.2.1")), decode_failed_untrusted),
]


def test_messages_that_were_changed_are_messages_or_one_error(seed: int) -> None:
    def each(body: bytes) -> None:
        for _, decode in _BODIES:
            with suppress(PacketError):
                decode(body)

    assert tried([body for body, _ in _BODIES], seed, each) > 100


# --- packets and news of the kernel's -------------------------------------------------------------


def _ipv4(protocol: int, payload: bytes, options: bytes = b"") -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7, 0x4000, 64, protocol),
        *(0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))),
    )
    return head + options + payload


def _ipv6(kind: int, payload: bytes) -> bytes:
    return (
        struct.pack("!IHBB16s16s", 6 << 28, len(payload), kind, 64, bytes(16), bytes(16)) + payload
    )


_SYN = struct.pack("!HHIIBBHHH", 40_000, 80, 1, 0, 6 << 4, 2, 65535, 0, 0) + b"\2\4\5\xb4"
_PING = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + bytes(56)
_PACKETS = [
    _ipv4(6, _SYN),
    _ipv4(6, _SYN, b"\1" * 8),
    _ipv6(6, _SYN),
    _ipv6(0, b"\6\0" + bytes(6) + _SYN),
    _ipv6(43, b"\0\1" + bytes(14) + b"\6\0" + bytes(6) + _SYN),
    _ipv4(1, _PING),
    _ipv6(58, b"\x80" + _PING[1:]),
]


def _news(kind: int, attributes: bytes) -> bytes:
    body = bytes(4) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


_NEWS = [
    _news(4 << 8, struct.pack("=HH", 12, 9) + bytes(8)),
    _news(1 << 8, struct.pack("=HH", 20, 0x8001) + bytes(16)),
]


def answer_or_not(packet: bytes) -> None:
    """Answers go to whom the packet is from, and are of a bounded size."""
    with suppress(SegmentError):
        syn = segments.decode_syn_untrusted(packet)
        assert len(segments.again(syn)) <= len(packet)
        for answer in (segments.refusal(syn), *_unreachables(syn)):
            assert _destination(answer) == _source(packet)
            assert len(answer) < len(packet) + 100
    with suppress(echo_packets.NoEchoError):
        echo = echo_packets.decode_echo_untrusted(packet)
        assert len(echo_packets.reply(echo, len(echo.data))) <= len(echo.data) + 8
        assert len(echo_packets.error(echo, 3, 4, 1280)) <= 8 + echo_packets.QUOTED_BYTES
    with suppress(OSError):
        nflog.logged_in(packet)
    with suppress(OSError):
        for _, _, body in conntrack._messages(packet):
            conntrack._original(4, conntrack.Reply(bytes(4), 1, bytes(4), 2), body)


def _unreachables(syn: segments.Syn) -> Iterator[bytes]:
    return (segments.unreachable(syn, why) for why in segments.Unreachable)


def _source(packet: bytes) -> bytes:
    return packet[8:24] if packet[0] >> 4 == 6 else packet[12:16]


def _destination(packet: bytes) -> bytes:
    return packet[24:40] if packet[0] >> 4 == 6 else packet[16:20]


def test_packets_and_news_that_were_changed_are_what_they_seem_or_one_error(seed: int) -> None:
    assert tried([*_PACKETS, *_NEWS], seed, answer_or_not) > 100
