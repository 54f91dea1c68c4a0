"""The client's end of what a flow of ECHO has in its datagrams; see relay.echo. Pure.

Not here: the far side's end (direct.echo), which needs less of it.
"""

import struct
from ipaddress import ip_address
from typing import NamedTuple

from sshunt.helper.echo_messages import Asked
from sshunt.relay.echo import ANSWER, DONT_FRAGMENT, REPLIES, REQUEST, VALUE


class Answer(NamedTuple):
    """What became of a request, as ICMP says it. ``hops``: how many further hosts could have passed
    it on, 0: not known. ``value``: the size that would pass, of an error about that. ``offender``:
    who says so, "" if that is not known.
    """

    type: int
    code: int
    hops: int
    sequence: int
    is_reply: bool
    data: bytes = b""
    value: int = 0
    offender: str = ""


def encode_request(asked: Asked) -> bytes:
    """The datagram for a program's request."""
    flags = DONT_FRAGMENT if asked.dont_fragment else 0
    return REQUEST.pack(asked.hops, flags, asked.sequence) + asked.data


def decode_answer_untrusted(datagram: bytes, destination: str) -> Answer | None:
    """What the far side says of a request to ``destination``; None for what makes no sense."""
    version = 6 if ":" in destination else 4
    try:
        what, code, hops, sequence = ANSWER.unpack_from(datagram)
        rest = datagram[ANSWER.size :]
        if what == REPLIES[version]:
            return Answer(what, code, hops, sequence, is_reply=True, data=rest)
        (value,) = VALUE.unpack_from(rest)
        packed = rest[VALUE.size :]
        offender = ip_address(packed) if packed else None
    except (struct.error, ValueError):
        return None
    if offender is not None and offender.version != version:
        return None
    named = "" if offender is None else str(offender)
    return Answer(what, code, hops, sequence, is_reply=False, value=value, offender=named)
