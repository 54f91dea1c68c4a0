"""What client and helper say to each other: requests, replies, and their limits. Values.

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
    PACKETS                  ->  Packeted(groups)     starts the packet process, which has a
                                                      conversation of its own with the client
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

    -                        ->  Lost(part)           news, between replies: see there

A GUARD that comes again makes the cgroup anew if somebody has taken the client out of it.

The end of the stream, from either side, means UNDO and the end of the cgroup. A request of a kind
in DESCRIPTORS brings open sockets along by SCM_RIGHTS, always from the client to the helper.

Not here: how they are written (wire), when which request is allowed (server), and what is done
about it (apply).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import TypeAlias

from sshunt.capture.plan import Method, Plan, What
from sshunt.model import Endpoint

#: The version of what is said here: client and helper speak the same one, or not at all.
VERSION = 6

#: The helper's only exit status beside 0: its standard input is not what it has to be.
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

#: The most interfaces from which others' traffic is captured.
MAX_LINKS = 64

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

#: The most things that are named of what dead sessions have left.
MAX_REMOVED = 64

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
    NO_CHANNEL = "no-channel"  # no socketpair rides on the request
    ELSEWHERE = "elsewhere"  # the client is in another network namespace
    NO_IPTABLES = "no-iptables"  # it is not installed, or the kernel has none
    IPTABLES = "iptables"  # it refused the rules, or does not come to an end
    NO_PLACE = "no-place"  # there is no /run that root can write
    TOO_MANY = "too-many"  # this user has as many helpers as he may
    TOO_MANY_BLOCKS = "too-many-blocks"  # ended sessions of this user have left as many as they may
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
    """The first request. ``method`` is how this session captures."""

    version: int
    session: str
    method: Method = Method.NFT


@dataclass(frozen=True, slots=True)
class Guard:
    """Keep what the client and its children connect to from being captured."""


@dataclass(frozen=True, slots=True)
class Packets:
    """Look at packets for the client, who has the other end of the socketpair (SOCK_SEQPACKET)
    that rides on it.
    """


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
class Unblock:
    """Lift the session's kill switch. Neither UNDO nor the end of the stream does."""


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Remove all that dead sessions have left, their kill switches included, as far as the user may
    who asks.
    """


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers Hello."""

    version: int


@dataclass(frozen=True, slots=True)
class Guarded:
    """Answers Guard. If not ``guarded``, there is no cgroup and bypass endpoints have to do."""

    guarded: bool


@dataclass(frozen=True, slots=True)
class Packeted:
    """Answers Packets: which kinds of packets can be looked at here. What can't be is not asked of
    the rules, either.
    """

    syns: bool
    echoes: bool
    datagrams: bool  # where those of a redirected flow lead


#: Nothing can be looked at.
NOT_PACKETED = Packeted(syns=False, echoes=False, datagrams=False)


@dataclass(frozen=True, slots=True)
class Applied:
    """Answers Apply. With ``owner`` the kernel itself removes the rules when the helper dies.
    ``others_block``: how many dead sessions' kill switches are there beside what was applied.
    Without ``holds``, all connections are redirected at once, for the kernel refused rules that
    hold some back.
    """

    owner: bool
    others_block: int = 0
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """Answers Bypass, Resolvers, Retain, Undo and Unblock."""


@dataclass(frozen=True, slots=True)
class Suspected:
    """Answers Suspects, for a person to read."""

    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Answers Cleanup, for a person to read."""

    removed: tuple[str, ...]


class Part(str, Enum):
    """What somebody else may take away of what a session has made."""

    RULES = "rules"  # what captures, or what blocks
    DEVICE = "device"  # what retained addresses are on
    GUARD = "guard"  # the control group; of that the client knows by itself


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody asked for it: somebody else has removed or altered this, and it has to be asked for
    again. Told once a second at most.
    """

    part: Part


@dataclass(frozen=True, slots=True)
class Refused:
    """Answers anything: nothing was changed, or what was changed has been undone."""

    kind: Refusal
    message: str


Request: TypeAlias = (
    Hello
    | Guard
    | Packets
    | Apply
    | Bypass
    | Resolvers
    | Retain
    | Suspects
    | Undo
    | Unblock
    | Cleanup
)
Reply: TypeAlias = (
    Welcome | Guarded | Packeted | Applied | Done | Suspected | Cleaned | Refused | Lost
)

#: How many descriptors ride on a request, where any do.
DESCRIPTORS: dict[type, int] = {Packets: 1}


def can_be_retained(address: str) -> bool:
    """True for a unicast address, in its usual spelling, that means the same on every link."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if str(parsed) != address or "%" in address:
        return False
    return not any(parsed in network for network in _NEVER_RETAINED)


def described(request: Request) -> str:
    """What is asked for, in a few words, for a log."""
    match request:
        case Apply(plan):
            return (
                f"apply {len(plan.routes)} routes, listeners"
                f" {_named(f'{address} port {port}' for _, (address, port) in plan.redirects)}"
            )
        case Bypass(endpoints):
            return f"bypass {_named(f'{address} port {port}' for address, port in endpoints)}"
        case Resolvers(addresses) | Retain(addresses):
            return f"{type(request).__name__.lower()} {_named(addresses)}"
    return type(request).__name__.lower()


def _named(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words)) or "none"
