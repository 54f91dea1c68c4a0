"""A host on the wire: an address or a name, as OPEN and datagrams have it.

    type 4   4 bytes, IPv4
    type 6   16 bytes, IPv6
    type 0   u8 length, a name of as many bytes

The type stands with the port, before the address, where each frame wants it. A name goes to a
resolver and to log lines: visible ASCII only.
"""

import functools
import ipaddress
from typing import Tuple

from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError

_ADDRESS_NAME, _ADDRESS_IPV4, _ADDRESS_IPV6 = 0, 4, 6
_NAME_BYTES = 255  # the longest name the DNS can hold


@functools.lru_cache(maxsize=1024)
def encode_host(host: str) -> Tuple[int, bytes]:
    """(address type, address) of an endpoint; raises LocalProtocolError."""
    # Parsing costs as much as all the rest of an OPEN, and programs connect to the same few hosts.
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # What the other side would not take must not leave: it would end lane after lane.
        if not _is_name(host):
            raise LocalProtocolError("%r is no host name" % host)
        raw = host.encode("ascii")
        return _ADDRESS_NAME, bytes((len(raw),)) + raw
    return int(address.version), address.packed


def decode_host_untrusted(body: bytes, at: int, address_type: int) -> Tuple[str, int]:
    """The address that begins at ``at``, and where it ends; raises RemoteProtocolError."""
    if address_type in (_ADDRESS_IPV4, _ADDRESS_IPV6):
        size = 4 if address_type == _ADDRESS_IPV4 else 16
        raw = body[at : at + size]
        if len(raw) != size:
            raise RemoteProtocolError("address of %d bytes" % len(raw))
        return _address_text(raw), at + size
    if address_type != _ADDRESS_NAME:
        raise RemoteProtocolError("address type %d" % address_type)
    end = at + 1 + (body[at] if at < len(body) else 0)
    name = body[at + 1 : end].decode("latin-1")
    if len(body) < end or not _is_name(name):
        raise RemoteProtocolError("impossible name")
    return name, end


def _is_name(name: str) -> bool:
    """A name goes to the resolver and to log lines: visible ASCII only."""
    return 0 < len(name) <= _NAME_BYTES and all("!" <= char <= "~" for char in name)


@functools.lru_cache(maxsize=1024)
def _address_text(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))
