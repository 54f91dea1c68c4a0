"""What both ends must know of DNS: a message's head, and whom a host asks.

    head   u16 id, u16 flags, u16 questions, u16 answers, u16 authorities, u16 additionals
    flags  QR(1) opcode(4) AA(1) TC(1) RD(1) RA(1) Z(3) rcode(4)                (RFC 1035, 4.1.1)

A message is passed on as it is, in both directions: EDNS sizes, truncation and DNSSEC mean what
they would without us.

Not here: asking (agent.resolve), and what programs ask (names.dns).
"""

import struct
from typing import List

PORT = 53
RESOLV_CONF = "/etc/resolv.conf"

#: The C library asks three (resolv.conf(5), MAXNS); some systems list more.
MOST_RESOLVERS = 8

HEAD_BYTES = 12

#: A question is no longer than a name and two numbers; with EDNS options, a cookie or two.
MOST_QUERY_BYTES = 4096

SERVFAIL, REFUSED = 2, 5

_HEAD = struct.Struct("!HHHHHH")
_QR, _OPCODE_AND_RD, _RCODE = 0x8000, 0x7900, 0x000F


def is_query(message: bytes) -> bool:
    """True for something that a resolver would look at."""
    return HEAD_BYTES <= len(message) <= MOST_QUERY_BYTES and not message[2] & 0x80


def is_answer(message: bytes, query: bytes) -> bool:
    """True if ``message`` bears the query's number and is none itself."""
    return len(message) >= HEAD_BYTES and message[:2] == query[:2] and bool(message[2] & 0x80)


def rcode(answer: bytes) -> int:
    """What became of the query, as the head says; 0 is success."""
    return answer[3] & _RCODE


def servfail(query: bytes) -> bytes:
    """The answer of a resolver that can't find out, to something that ``is_query``."""
    number, flags, questions, _, _, _ = _HEAD.unpack_from(query)
    question = _first_question(query) if questions else b""
    flags = _QR | flags & _OPCODE_AND_RD | SERVFAIL
    return _HEAD.pack(number, flags, bool(question), 0, 0, 0) + question


def _first_question(query: bytes) -> bytes:
    """Its bytes: names of labels, each with its length, up to an empty one; type and class."""
    end = HEAD_BYTES
    while end < len(query) and 0 < query[end] < 64:
        end += 1 + query[end]
    end += 1 + 4
    return query[HEAD_BYTES:end] if end <= len(query) and query[end - 5] == 0 else b""


def resolvers(resolv_conf: str = RESOLV_CONF) -> List[str]:
    """The addresses that this host asks, in order, an IPv6 scope included; as resolv.conf(5) has
    it, this host itself if none is named.
    """
    try:
        with open(resolv_conf, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        lines = []
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return found[:MOST_RESOLVERS] or ["127.0.0.1"]
