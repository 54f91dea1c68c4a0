"""What both ends must know of DNS: a message's head, and whom a host asks.

    head   u16 id, u16 flags, u16 questions, u16 answers, u16 authorities, u16 additionals
    flags  QR(1) opcode(4) AA(1) TC(1) RD(1) RA(1) Z(3) rcode(4)                (RFC 1035, 4.1.1)

A message is passed on as it is, in both directions and of any size: EDNS sizes, truncation, DNSSEC,
updates and keys mean what they would without us.

Not here: asking (direct.resolve, direct.exchange), and what programs ask (front.dns).
"""

import struct
from typing import List, NamedTuple, Tuple

PORT = 53
RESOLV_CONF = "/etc/resolv.conf"

#: The C library asks three (resolv.conf(5), MAXNS); some systems list more.
MOST_RESOLVERS = 8

HEAD_BYTES = 12

#: The length in front of a message on a connection (RFC 1035, 4.2.2).
LENGTH = struct.Struct("!H")

#: What a program takes by UDP that does not say more (RFC 1035, 4.2.1).
PLAIN_UDP_BYTES = 512

#: Room for queries by UDP under way, at each end, and what each takes besides its own bytes: 512
#: small ones, a descriptor of the far side each. A browser that restores its tabs has hundreds.
QUERIES_BYTES = 1024 * 1024
QUERY_COST_BYTES = 2048 - 64

SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 2, 3, 4, 5

_HEAD = struct.Struct("!HHHHHH")
_QR, _OPCODE_AND_RD, _RCODE, _TC, _AA, _RA = 0x8000, 0x7900, 0x000F, 0x0200, 0x0400, 0x0080


class Settings(NamedTuple):
    """What resolv.conf(5) says about asking; times in seconds."""

    resolvers: Tuple[str, ...]  # in order, an IPv6 scope included
    timeout_s: int = 5
    attempts: int = 2
    rotate: bool = False
    by_tcp: bool = False  # use-vc


def is_query(message: bytes) -> bool:
    """True for something that a resolver would look at."""
    return len(message) >= HEAD_BYTES and not message[2] & 0x80


def room_of(query: bytes) -> int:
    """What it takes of QUERIES_BYTES."""
    return QUERY_COST_BYTES + len(query)


def is_answer(message: bytes, query: bytes) -> bool:
    """True if ``message`` bears the query's number and is none itself."""
    return len(message) >= HEAD_BYTES and message[:2] == query[:2] and bool(message[2] & 0x80)


def is_failure(answer: bytes) -> bool:
    """True if another resolver may know better: this one can't find out, does not want to, or only
    says whom else to ask. The C library goes on to the next one then, too (res_send.c).
    """
    _, flags, _, answers, _, additionals = _HEAD.unpack_from(answer)
    if flags & _RCODE in (SERVFAIL, NOTIMP, REFUSED):
        return True
    lame = not (flags & _RCODE or answers or additionals or flags & (_AA | _RA | _TC))
    return lame and flags & 0x7800 == 0


def is_denial(answer: bytes) -> bool:
    """True if the name does not exist."""
    return answer[3] & _RCODE == NXDOMAIN


def servfail(query: bytes) -> bytes:
    """The answer of a resolver that can't find out, to something that ``is_query``."""
    return _reply(query, SERVFAIL)


def truncated(query: bytes) -> bytes:
    """The answer that says: ask by TCP."""
    return _reply(query, _TC)


def most_udp_bytes(query: bytes) -> int:
    """How long an answer by UDP may be (RFC 6891, 6.2.3)."""
    _, _, questions, answers, authorities, additionals = _HEAD.unpack_from(query)
    opt = HEAD_BYTES + len(_first_question(query))
    plain = questions == 1 and not (answers or authorities) and additionals
    if plain and query[opt : opt + 3] == b"\0\0\x29" and len(query) >= opt + 5:
        (size,) = LENGTH.unpack_from(query, opt + 3)
        return max(int(size), PLAIN_UDP_BYTES)
    return PLAIN_UDP_BYTES


def name_asked(query: bytes) -> bytes:
    """The name in question as it is on the wire, in small letters; b"" if there is none."""
    return _first_question(query)[:-4].lower()


def _reply(query: bytes, flags: int) -> bytes:
    number, asked, questions, _, _, _ = _HEAD.unpack_from(query)
    question = _first_question(query) if questions else b""
    flags |= _QR | asked & _OPCODE_AND_RD
    return _HEAD.pack(number, flags, bool(question), 0, 0, 0) + question


def _first_question(query: bytes) -> bytes:
    """Its bytes: names of labels, each with its length, up to an empty one; type and class."""
    end = HEAD_BYTES
    while end < len(query) and 0 < query[end] < 64:
        end += 1 + query[end]
    end += 1 + 4
    return query[HEAD_BYTES:end] if end <= len(query) and query[end - 5] == 0 else b""


# --- resolv.conf ----------------------------------------------------------------------------------


def settings(resolv_conf: str = RESOLV_CONF) -> Settings:
    """Whom this host asks, and how; as resolv.conf(5) has it, this host itself if none is named.

    ``edns0``, ``trust-ad`` and ``single-request`` are for whoever writes queries: those of the
    client's programs were written by its own C library.
    """
    try:
        with open(resolv_conf, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        lines = []
    named = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    found = [host for host in named if max(host) < "\x7f"]
    options = [word for words in lines if words and words[0] == "options" for word in words[1:]]
    return Settings(
        tuple(found[:MOST_RESOLVERS]) or ("127.0.0.1",),
        _number(options, "timeout:", 5, 30),
        _number(options, "attempts:", 2, 5),
        "rotate" in options,
        "use-vc" in options or "usevc" in options,
    )


def resolvers(resolv_conf: str = RESOLV_CONF) -> List[str]:
    """The addresses that this host asks, in order."""
    return list(settings(resolv_conf).resolvers)


def _number(options: List[str], name: str, usual: int, most: int) -> int:
    """What the last option of this name says, at least 1; the C library has the same maximum."""
    for option in reversed(options):
        digits = option[len(name) :]
        if option.startswith(name) and digits.isdigit():
            return min(max(int(digits[:4]), 1), most)
    return usual
