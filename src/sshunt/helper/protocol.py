"""What client and helper say to each other: one JSON object a line, over a unix socketpair.

The client asks, the helper answers each request with one reply. A request names a wish in the terms
of the project (a plan, a session id); it never carries rule text, command lines, paths or process
ids. So whoever may start the helper but may not be root gets what the helper offers and nothing
else, and the decoder below is all of the privileged process that sees foreign bytes.

That holds for an installation that only root may write, Python and all. Where a user may write the
code, a line in sudoers that lets him start it without a password is a root hole: he writes what he
likes into it, and starts that. (With a password, or as a user who may do everything by sudo anyway,
nothing is lost.)

    HELLO(version, session)  ->  Welcome(version)     first, once; removes what dead sessions left
    GUARD                    ->  Guarded(guarded)     makes the cgroup, moves the client into it,
                                                      marks what is asked of resolvers there
    APPLY(plan)              ->  Applied(owner)       makes the rules, in the place of those of the
                                                      plan before it: nothing is uncaptured in
                                                      between, and open connections go on
    BYPASS(endpoints)        ->  Done                 replaces the bypass endpoints of the plan
    RESOLVERS(addresses)     ->  Done                 replaces the resolvers of the plan
    RETAIN(addresses)        ->  Done                 these, which it has had, stay this host's own
    SUSPECTS                 ->  Suspected(chains)    whose rules may stop what is captured
    UNDO                     ->  Done                 retains none, removes what captures; not
                                                      what GUARD has made
    any                      ->  Refused(kind, message)

The end of the stream, from either side, means UNDO and the end of the cgroup. Descriptors may ride
on replies by SCM_RIGHTS in later versions; today none do.

Invariants: ``decode_request_untrusted(encode_request(r)) == r``; any other bytes give RequestError
and nothing else, in memory and time bounded by MAX_REQUEST_BYTES. What is not expected is an error:
unknown keys, missing keys, a number where a string should be, a bool where a number should be.

Not here: when which request is allowed (server), and what is done about it (apply).
"""

import json
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any, TypeAlias

from sshunt.capture.plan import DNS_PORT, Method, Plan, Redirect, What, check_session
from sshunt.model import ANY_LAST_PORT, Action, Endpoint, Route, check_endpoint

#: The version of what is said here: client and helper speak the same one, or not at all.
VERSION = 5

#: The helper's only exit status beside 0: its standard input is not the socketpair.
EXIT_NO_SOCKET = 3

#: The most routes of a plan. Thousands are seen in the field (whole countries: 10,000); doubled.
MAX_ROUTES = 20_000

#: The most redirects of a plan: each kind once for each family.
MAX_REDIRECTS = 2 * len(What)

#: The most listeners on addresses that this host may lose, over all plans of a session: each is
#: remembered, for what was redirected to it stays so. A client that changes them hardly ever does.
MAX_LISTENERS = 16

#: The most bypass endpoints. One per lane would do; a name behind a ProxyCommand may have several.
MAX_BYPASS = 256

#: The most resolvers. The C library asks three; some systems list more.
MAX_RESOLVERS = 16

#: The most retained addresses: one per network that the host has been in while the oldest
#: connection lives, and family.
MAX_RETAINED = 16

#: Networks of which no address is retained: no network gives one to a host, or it means nothing
#: beyond the link.
_NEVER_RETAINED = (
    ip_network("0.0.0.0/8"),  # "this network" (RFC 1122)
    ip_network("127.0.0.0/8"),  # loopback
    ip_network("169.254.0.0/16"),  # link-local; clouds have services there
    ip_network("224.0.0.0/4"),  # multicast
    ip_network("255.255.255.255/32"),  # broadcast
    ip_network("::/8"),  # unspecified, loopback, IPv4-mapped and -translated (RFC 4291, RFC 6052)
    ip_network("fe80::/10"),  # link-local
    ip_network("ff00::/8"),  # multicast
)

#: The most helpers that one user other than root may have at the same time. Each takes 15 MiB of
#: root's.
MAX_HELPERS = 16

#: The longest request: MAX_ROUTES of the longest kind (an IPv6 network with a port range: 80
#: bytes), and some.
MAX_REQUEST_BYTES = 2 * 1024 * 1024

#: The longest reply: a sentence, or the tail of a traceback.
MAX_REPLY_BYTES = 16 * 1024

#: The longest sentence or traceback inside a reply, in characters (six bytes each at worst in
#: JSON).
MAX_MESSAGE = 2400


class RequestError(Exception):
    """Bytes that are not a request. The message is safe to print."""


class ReplyError(Exception):
    """Bytes that are not a reply: the helper is not ours, or of another version."""


class Refusal(str, Enum):
    """Why a request was not carried out."""

    BAD_REQUEST = "bad-request"  # it does not decode
    WRONG_ORDER = "wrong-order"  # not now
    VERSION = "version"  # the helper does not speak the client's version
    NO_NFT = "no-nft"  # libnftables is not installed
    NO_NF_TABLES = "no-nf-tables"  # the kernel has none
    NO_PLACE = "no-place"  # there is no /run that root can write
    TOO_MANY = "too-many"  # this user has as many helpers as he may
    CRASHED = "crashed"  # libnftables ends the process in which it is called
    STUCK = "stuck"  # libnftables does not come to an end
    NOT_PERMITTED = "not-permitted"  # the kernel does not let us: a container, a user namespace
    KERNEL = "kernel"  # the kernel or the library refused the rules
    TOO_COMPLEX = "too-complex"  # the routes overlap in too many pieces
    LISTENER = "listener"  # the listener's address is not one of this host
    RESOLVER = "resolver"  # this host's programs ask none of these
    NOT_OURS = "not-ours"  # the addresses to be retained have not been this host's
    NOT_RETAINED = "not-retained"  # there is no TUN device, or the kernel refused
    INTERNAL = "internal"  # a bug; the message is the traceback


class KernelError(Exception):
    """The kernel, or the library in front of it, did not do it."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request."""

    version: int
    session: str


@dataclass(frozen=True, slots=True)
class Guard:
    """Keep what the client and its children connect to from being captured."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Make the kernel capture this, instead of what it captured before."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Bypass:
    """Never capture connections to these, instead of those named before."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Resolvers:
    """Capture what is asked of these, instead of those named before."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retain:
    """Let these addresses, and no others, stay this host's own if no interface has them.

    Raises ValueError for more than MAX_RETAINED, for one twice, and unless ``can_be_retained``.
    """

    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.addresses) > MAX_RETAINED:
            raise ValueError(f"more than {MAX_RETAINED} addresses")
        if len(set(self.addresses)) != len(self.addresses):
            raise ValueError("an address twice")
        if not all(can_be_retained(address) for address in self.addresses):
            raise ValueError("not an address that can be retained")


@dataclass(frozen=True, slots=True)
class Suspects:
    """Which chains of others may stop what is captured?"""


@dataclass(frozen=True, slots=True)
class Undo:
    """Leave the kernel as it was."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers Hello."""

    version: int


@dataclass(frozen=True, slots=True)
class Guarded:
    """Answers Guard. If not ``guarded``, there is no cgroup and bypass endpoints have to do."""

    guarded: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """Answers Apply. With ``owner`` the kernel itself removes the rules when the helper dies."""

    owner: bool


@dataclass(frozen=True, slots=True)
class Done:
    """Answers Bypass, Resolvers, Retain and Undo."""


@dataclass(frozen=True, slots=True)
class Suspected:
    """Answers Suspects, for a person to read."""

    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Answers anything: nothing was changed, or what was changed has been undone."""

    kind: Refusal
    message: str


Request: TypeAlias = Hello | Guard | Apply | Bypass | Resolvers | Retain | Suspects | Undo
Reply: TypeAlias = Welcome | Guarded | Applied | Done | Suspected | Refused


def can_be_retained(address: str) -> bool:
    """True for a unicast address, in its usual spelling, that means the same on every link."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if str(parsed) != address or "%" in address:
        return False
    return not any(parsed in network for network in _NEVER_RETAINED)


def encode_request(request: Request) -> bytes:
    """The line for a request, line feed included; raises ValueError if it is too large."""
    fields: dict[str, Any]
    match request:
        case Hello():
            fields = {"request": "hello", "version": request.version, "session": request.session}
        case Guard():
            fields = {"request": "guard"}
        case Apply():
            fields = {"request": "apply", "plan": _plan_to_json(request.plan)}
        case Bypass():
            fields = {"request": "bypass", "endpoints": request.endpoints}
        case Resolvers():
            fields = {"request": "resolvers", "addresses": request.addresses}
        case Retain():
            fields = {"request": "retain", "addresses": request.addresses}
        case Suspects():
            fields = {"request": "suspects"}
        case Undo():
            fields = {"request": "undo"}
    line = _to_line(fields)
    if len(line) > MAX_REQUEST_BYTES:
        raise ValueError("too many routes for one request")
    return line


def decode_request_untrusted(line: bytes) -> Request:
    """The request in one line, with or without its line feed; raises RequestError."""
    if len(line) > MAX_REQUEST_BYTES:
        raise RequestError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
    try:
        fields = _from_line(line)
        return _request_from_json(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(f"not a request: {error}"[:200])


def encode_reply(reply: Reply) -> bytes:
    """The line for a reply, line feed included. Long messages lose their beginning."""
    match reply:
        case Welcome():
            return _to_line({"reply": "welcome", "version": reply.version})
        case Guarded():
            return _to_line({"reply": "guarded", "guarded": reply.guarded})
        case Applied():
            return _to_line({"reply": "applied", "owner": reply.owner})
        case Done():
            return _to_line({"reply": "done"})
        case Suspected():
            return _to_line({"reply": "suspected", "chains": reply.chains})
        case Refused():
            message = reply.message[-MAX_MESSAGE:]
            return _to_line({"reply": "refused", "kind": reply.kind.value, "message": message})


def decode_reply(line: bytes) -> Reply:
    """The reply in one line; raises ReplyError."""
    try:
        fields = _from_line(line)
        name = _take_str(fields, "reply")
        reply: Reply
        if name == "welcome":
            reply = Welcome(_take_int(fields, "version"))
        elif name == "guarded":
            reply = Guarded(_take_bool(fields, "guarded"))
        elif name == "applied":
            reply = Applied(_take_bool(fields, "owner"))
        elif name == "done":
            reply = Done()
        elif name == "suspected":
            chains = _typed(fields.pop("chains"), list)
            reply = Suspected(tuple(_typed(chain, str) for chain in chains))
        elif name == "refused":
            reply = Refused(Refusal(_take_str(fields, "kind")), _take_str(fields, "message"))
        else:
            raise ValueError("an unknown reply")
        _nothing_left(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ReplyError(f"not a reply: {error}"[:200])
    return reply


# --- requests -----------------------------------------------------------------------------------


def _request_from_json(fields: dict[str, Any]) -> Request:
    name = _take_str(fields, "request")
    request: Request
    if name == "hello":
        request = Hello(_take_int(fields, "version"), _take_str(fields, "session"))
        check_session(request.session)
    elif name == "guard":
        request = Guard()
    elif name == "apply":
        request = Apply(_plan_from_json(_typed(fields.pop("plan"), dict)))
    elif name == "bypass":
        request = Bypass(_endpoints_from_json(fields.pop("endpoints")))
    elif name == "resolvers":
        request = Resolvers(_resolvers_from_json(fields.pop("addresses")))
    elif name == "retain":
        addresses = _typed(fields.pop("addresses"), list)
        request = Retain(tuple(_typed(address, str) for address in addresses))
    elif name == "suspects":
        request = Suspects()
    elif name == "undo":
        request = Undo()
    else:
        raise ValueError("an unknown request")
    _nothing_left(fields)
    return request


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    return {
        "session": plan.session,
        "method": plan.method.value,
        "redirects": [[what.value, *endpoint] for what, endpoint in plan.redirects],
        "routes": [
            [str(route.network), route.action.value, route.first_port, route.last_port]
            for route in plan.routes
        ],
        "bypass": plan.bypass,
        "resolvers": plan.resolvers,
    }


def _plan_from_json(fields: dict[str, Any]) -> Plan:
    routes = _typed(fields.pop("routes"), list)
    if len(routes) > MAX_ROUTES:
        raise ValueError(f"more than {MAX_ROUTES} routes")
    plan = Plan(
        session=_take_str(fields, "session"),
        redirects=_redirects_from_json(fields.pop("redirects")),
        routes=tuple(_route_from_json(route) for route in routes),
        bypass=_endpoints_from_json(fields.pop("bypass")),
        resolvers=_resolvers_from_json(fields.pop("resolvers")),
        method=Method(_take_str(fields, "method")),
    )
    _nothing_left(fields)
    return plan


def _route_from_json(value: Any) -> Route:
    network_text, action, first_port, last_port = _typed(value, list)
    network = ip_network(_typed(network_text, str), strict=True)
    if "%" in network_text:
        raise ValueError("a network with a scope")
    if not 0 <= _typed(first_port, int) <= _typed(last_port, int) <= ANY_LAST_PORT:
        raise ValueError("not a port range")
    return Route(network, Action(_typed(action, str)), first_port, last_port)


def _endpoints_from_json(value: Any) -> tuple[Endpoint, ...]:
    endpoints = _typed(value, list)
    if len(endpoints) > MAX_BYPASS:
        raise ValueError(f"more than {MAX_BYPASS} endpoints")
    return tuple(_endpoint_from_json(endpoint) for endpoint in endpoints)


def _resolvers_from_json(value: Any) -> tuple[str, ...]:
    addresses = _typed(value, list)
    if len(addresses) > MAX_RESOLVERS:
        raise ValueError(f"more than {MAX_RESOLVERS} resolvers")
    return tuple(_endpoint_from_json([address, DNS_PORT])[0] for address in addresses)


def _redirects_from_json(value: Any) -> tuple[Redirect, ...]:
    redirects = _typed(value, list)
    if len(redirects) > MAX_REDIRECTS:
        raise ValueError(f"more than {MAX_REDIRECTS} redirects")
    return tuple(_redirect_from_json(redirect) for redirect in redirects)


def _redirect_from_json(value: Any) -> Redirect:
    what, *endpoint = _typed(value, list)
    return Redirect(What(_typed(what, str)), _endpoint_from_json(endpoint))


def _endpoint_from_json(value: Any) -> Endpoint:
    address, port = _typed(value, list)
    endpoint = _typed(address, str), _typed(port, int)
    check_endpoint(endpoint)
    return str(ip_address(address)), port


# --- JSON without surprises -----------------------------------------------------------------------


def _to_line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _from_line(line: bytes) -> dict[str, Any]:
    # Decoded here: json.loads would guess UTF-16 and UTF-32 as well.
    value = json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates)
    fields: dict[str, Any] = _typed(value, dict)
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key twice")
    return fields


def _typed(value: Any, kind: type) -> Any:
    # Not isinstance: True is an int, and must not be taken for one.
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _take_str(fields: dict[str, Any], key: str) -> str:
    value: str = _typed(fields.pop(key), str)
    return value


def _take_int(fields: dict[str, Any], key: str) -> int:
    value: int = _typed(fields.pop(key), int)
    return value


def _take_bool(fields: dict[str, Any], key: str) -> bool:
    value: bool = _typed(fields.pop(key), bool)
    return value


def _nothing_left(fields: dict[str, Any]) -> None:
    if fields:
        raise ValueError("unknown keys")
