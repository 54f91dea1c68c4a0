"""How requests and replies are written: one JSON object a line. Strict, and the same at both ends.

Each message has one line in a table: the name that it bears, its class, and for each field the
function that makes its value of what JSON has for it, or raises. So a message is added in one
place, and what is read is exactly what is written.

Invariants: ``decode_request_untrusted(encode_request(r)) == r``; any other bytes give RequestError
and nothing else, in memory and time bounded by MAX_REQUEST_BYTES. What is not expected is an error:
unknown keys, missing keys, a number where a string should be, a bool where a number should be.

Not here: what the messages mean (protocol).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from sshunt.capture.plan import DNS_PORT, Connect, Method, Plan, Redirect, What, check_session
from sshunt.helper.protocol import (
    MAX_BYPASS,
    MAX_LINKS,
    MAX_MESSAGE,
    MAX_REDIRECTS,
    MAX_REQUEST_BYTES,
    MAX_RESOLVERS,
    MAX_ROUTES,
    Applied,
    Apply,
    Bypass,
    Cleaned,
    Cleanup,
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
    Unblock,
    Undo,
    Welcome,
)
from sshunt.model import ANY_LAST_PORT, Action, Endpoint, Route, check_endpoint


def encode_request(request: Request) -> bytes:
    """The line for a request, line feed included; raises ValueError if it is too large."""
    line = _to_line("request", _REQUESTS, request)
    if len(line) > MAX_REQUEST_BYTES:
        raise ValueError("too many routes for one request")
    return line


def decode_request_untrusted(line: bytes) -> Request:
    """The request in one line, with or without its line feed; raises RequestError."""
    if len(line) > MAX_REQUEST_BYTES:
        raise RequestError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
    try:
        return cast(Request, _from_line("request", _REQUESTS, line))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(f"not a request: {error}"[:200])


def encode_reply(reply: Reply) -> bytes:
    """The line for a reply, line feed included. Long messages lose their beginning."""
    if isinstance(reply, Refused):
        reply = replace(reply, message=reply.message[-MAX_MESSAGE:])
    return _to_line("reply", _REPLIES, reply)


def decode_reply(line: bytes) -> Reply:
    """The reply in one line; raises ReplyError."""
    try:
        return cast(Reply, _from_line("reply", _REPLIES, line))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ReplyError(f"not a reply: {error}"[:200])


def taken_line(buffer: bytearray) -> bytes:
    """The first line, taken out of the buffer; nothing if it is not whole and may still become."""
    end = buffer.find(b"\n")
    if end < 0 and len(buffer) <= MAX_REQUEST_BYTES:
        return b""
    line = bytes(buffer if end < 0 else buffer[: end + 1])
    del buffer[: len(line)]
    return line


# --- values -------------------------------------------------------------------------------------


def _typed(value: Any, kind: type) -> Any:
    # Not isinstance: True is an int, and must not be taken for one.
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _str(value: Any) -> Any:
    return _typed(value, str)


def _int(value: Any) -> Any:
    return _typed(value, int)


def _bool(value: Any) -> Any:
    return _typed(value, bool)


def _method(value: Any) -> Method:
    return Method(_typed(value, str))


def _session(value: Any) -> Any:
    check_session(_typed(value, str))
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_typed(text, str) for text in _typed(value, list))


def _at_most(value: Any, limit: int, what: str) -> list[Any]:
    if len(_typed(value, list)) > limit:
        raise ValueError(f"more than {limit} {what}")
    return cast(list[Any], value)


def _plan(value: Any) -> Plan:
    return cast(Plan, _made(Plan, _PLAN, _typed(value, dict)))


def _routes(value: Any) -> tuple[Route, ...]:
    return tuple(_route(route) for route in _at_most(value, MAX_ROUTES, "routes"))


def _route(value: Any) -> Route:
    network_text, action, first_port, last_port = _typed(value, list)
    network = ip_network(_typed(network_text, str), strict=True)
    if "%" in network_text:
        raise ValueError("a network with a scope")
    if not 0 <= _typed(first_port, int) <= _typed(last_port, int) <= ANY_LAST_PORT:
        raise ValueError("not a port range")
    return Route(network, Action(_typed(action, str)), first_port, last_port)


def _endpoints(value: Any) -> tuple[Endpoint, ...]:
    return tuple(_endpoint(endpoint) for endpoint in _at_most(value, MAX_BYPASS, "endpoints"))


def _resolvers(value: Any) -> tuple[str, ...]:
    addresses = _at_most(value, MAX_RESOLVERS, "resolvers")
    return tuple(_endpoint([address, DNS_PORT])[0] for address in addresses)


def _redirects(value: Any) -> tuple[Redirect, ...]:
    return tuple(_redirect(redirect) for redirect in _at_most(value, MAX_REDIRECTS, "redirects"))


def _redirect(value: Any) -> Redirect:
    what, *endpoint = _typed(value, list)
    return Redirect(What(_typed(what, str)), _endpoint(endpoint))


def _endpoint(value: Any) -> Endpoint:
    address, port = _typed(value, list)
    endpoint = _typed(address, str), _typed(port, int)
    check_endpoint(endpoint)
    return str(ip_address(address)), port


# --- messages -----------------------------------------------------------------------------------

_Fields = Mapping[str, Callable[[Any], Any]]

_NONE: _Fields = MappingProxyType({})


class _Form(NamedTuple):
    name: str
    kind: type
    fields: _Fields
    optional: _Fields = _NONE  # what is as it is by default need not be said


_PLAN: _Fields = {
    "session": _session,
    "method": _method,
    "connect": lambda value: Connect(_typed(value, str)),
    "redirects": _redirects,
    "routes": _routes,
    "bypass": _endpoints,
    "resolvers": _resolvers,
    "echoes": _bool,
    "links": lambda value: _texts(_at_most(value, MAX_LINKS, "interfaces")),
    "blocks": _bool,
}

_REQUESTS = (
    _Form("hello", Hello, {"version": _int, "session": _session}, {"method": _method}),
    _Form("guard", Guard, {}),
    _Form("packets", Packets, {}),
    _Form("apply", Apply, {"plan": _plan}),
    _Form("bypass", Bypass, {"endpoints": _endpoints}),
    _Form("resolvers", Resolvers, {"addresses": _resolvers}),
    _Form("retain", Retain, {"addresses": _texts}),
    _Form("suspects", Suspects, {}),
    _Form("undo", Undo, {}),
    _Form("unblock", Unblock, {}),
    _Form("cleanup", Cleanup, {}),
)

_REPLIES = (
    _Form("welcome", Welcome, {"version": _int}),
    _Form("guarded", Guarded, {"guarded": _bool}),
    _Form("packeted", Packeted, {"syns": _bool, "echoes": _bool, "datagrams": _bool}),
    _Form("applied", Applied, {"owner": _bool, "others_block": _int, "holds": _bool}),
    _Form("done", Done, {}),
    _Form("suspected", Suspected, {"chains": _texts}),
    _Form("cleaned", Cleaned, {"removed": _texts}),
    _Form("lost", Lost, {"part": lambda value: Part(_str(value))}),
    _Form("refused", Refused, {"kind": lambda value: Refusal(_str(value)), "message": _str}),
)


def _made(kind: type, forms: _Fields, fields: dict[str, Any], optional: _Fields = _NONE) -> Any:
    if not forms.keys() <= fields.keys() <= forms.keys() | optional.keys():
        raise ValueError("keys are missing or unknown")
    makers = {**forms, **optional}
    return kind(**{key: makers[key](value) for key, value in fields.items()})


# --- JSON without surprises -----------------------------------------------------------------------


def _to_line(what: str, forms: tuple[_Form, ...], message: Any) -> bytes:
    form = next(form for form in forms if form.kind is type(message))
    keys = (*form.fields, *form.optional)
    fields = {what: form.name, **{key: getattr(message, key) for key in keys}}
    return json.dumps(fields, separators=(",", ":"), default=_as_json).encode("ascii") + b"\n"


def _as_json(value: Any) -> Any:
    if isinstance(value, (IPv4Network, IPv6Network)):
        return str(value)
    if isinstance(value, Route):
        return [str(value.network), value.action.value, value.first_port, value.last_port]
    plan = {key: getattr(value, key) for key in _PLAN}
    return {**plan, "redirects": [[what, *endpoint] for what, endpoint in value.redirects]}


def _from_line(what: str, forms: tuple[_Form, ...], line: bytes) -> Any:
    # Decoded here: json.loads would guess UTF-16 and UTF-32 as well.
    value = json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates)
    fields: dict[str, Any] = _typed(value, dict)
    name = _typed(fields.pop(what), str)
    form = next((form for form in forms if form.name == name), None)
    if form is None:
        raise ValueError(f"an unknown {what}")
    return _made(form.kind, form.fields, fields, form.optional)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key twice")
    return fields
