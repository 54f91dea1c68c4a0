"""The kill switch: rules that let nothing into the routed networks another way. Pure.

``--fail block``. What is captured goes to our listener; what is not has nowhere to go: other
protocols, a family without a listener, hosts behind this one that are not served, and everything
once we are dead, killed with -9 included. A table of its own, since it outlives the one that
captures (capture.nft) by as long as it takes somebody to start again, or to lift it::

    output, forward                                              -98
        to an address of this host ..... goes on    what is captured is by now; and replies to it
        broadcast, multicast ........... goes on    the link's own business
        neighbours (ND), DHCP renewal .. goes on    so is this: without it there is no network
        tracked as known, not a SYN .... goes on    what was open before us, and what others open
        made by an agent ............... goes on    (output only), as for capture.nft
        a session's control group ...... goes on    (output only), see below
        to a real peer of our ssh ...... goes on    (output only), TCP
        to a resolver that is spared ... goes on    (output only): without --dns, one next door
        into a region .................. rejected   the error comes at once

* *Priority.* Behind nat's translation (-100), where what is captured has this host's address; so
  this table needs not know what is captured, or how: an earlier place (-145 was thought of) would
  have to repeat all of it, and be wrong where it changes. Echo requests that are held back never
  come so far, SYNs that are (nft_held) and what is sent in their place are for this host.
* *Known connections.* A login to this host from a network that is routed is none of ours to cut
  off: it may be the one by which we are started. What is open is left alone as ``closed`` does;
  a TCP packet that begins nothing is let through even where it is not known, since connection
  tracking may have begun with us. What was open before us the other way goes on until it ends.
* *Forwarded.* What is captured of other hosts' is not forwarded any more but received. So it is
  always the rest that is seen there.
* *Control groups.* Of the session that made the table; that one is gone with the session. The next
  ssh would find its server blocked if that is in a region, or its resolver: so a new session of the
  same user puts its own group into the chain ``ours`` of what dead ones have left. The bypass set
  stays as it was at the end, for a host without control groups.

**A name** says whose it is: session, user, and a digest of what is blocked. A table whose maker is
dead is replaced by the next session of that user which blocks or captures just the same. Another
one leaves it: what it captures is not affected, and the rest was to be blocked.

Not here: making and removing it (helper.blocks); that a boot removes it as it does all rules.
"""

import re
import zlib
from typing import NamedTuple

from sshunt.capture.nft import (
    BY_AN_AGENT,
    TABLE_PREFIX,
    Address,
    Cgroup,
    endpoint_set,
    in_cgroup,
    region_sets,
)
from sshunt.capture.nft_held import NOT_A_SYN
from sshunt.capture.plan import DNS_PORT, Plan, remote_regions
from sshunt.model import check_endpoint

BLOCK_PREFIX = f"{TABLE_PREFIX}block-"

#: The chain of those who are let through.
OURS = "ours"

_PRIORITY = -98

_NAME = re.compile(
    re.escape(BLOCK_PREFIX)
    + r"(?P<session>[0-9a-f]{8,16})-(?P<uid>[0-9]{1,10})-(?P<digest>[0-9a-f]{8})"
)

_PROTOCOL = {4: "ip", 6: "ip6"}
_REJECT = "reject with icmpx admin-prohibited"


class BlockName(NamedTuple):
    """What the name of such a table says."""

    session: str
    uid: int
    digest: str  # of what is blocked

    def __str__(self) -> str:
        return f"{BLOCK_PREFIX}{self.session}-{self.uid}-{self.digest}"


def block_name(plan: Plan, uid: int) -> BlockName:
    """The one of a plan's; raises ValueError if its routes are too many pieces."""
    regions = [tuple(region) for family in (4, 6) for region in remote_regions(plan.routes, family)]
    # Nobody gains by two that are alike: both are the same user's. (hashlib would take the helper
    # longer to load than all the rest of this.)
    return BlockName(plan.session, uid, f"{zlib.crc32(repr(regions).encode()):08x}")


def read_block_name(text: str) -> BlockName | None:
    """The opposite of ``str``; None if it is no such name."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return BlockName(found["session"], int(found["uid"]), found["digest"])


def block_peers(plan: Plan) -> dict[str, list[tuple[Address, int]]]:
    """The names of the bypass sets, and what is in them. Where queries are captured, without
    resolvers: those are among a plan's for other sessions' sake, while it is down.
    """
    has_dns = plan.dns(4) is not None or plan.dns(6) is not None
    parsed = {(check_endpoint(e), e[1]) for e in plan.bypass if not (has_dns and e[1] == DNS_PORT)}
    peers = sorted(parsed, key=lambda pair: (int(pair[0]), pair[1]))
    return {
        f"bypass{family}": [(a, port) for a, port in peers if a.version == family]
        for family in (4, 6)
    }


def render_block(plan: Plan, uid: int, cgroup: Cgroup | None, *, persists: bool) -> str:
    """The table; see ``nft.as_commands``. With ``persists`` the kernel (6.9) keeps others from
    altering it while its maker lives, and keeps it afterwards. Raises ValueError as ``nft.render``.
    """
    lines = [f"table inet {block_name(plan, uid)} {{"]
    lines += ["\tflags owner,persist;"] if persists else []
    for name, peers in block_peers(plan).items():
        lines += endpoint_set(name, int(name[-1]), peers)
    for family in (4, 6):
        lines += region_sets(plan.routes, family)
    return "\n".join([*lines, *_chains(cgroup), "}"]) + "\n"


def let_out(table: str, cgroup: Cgroup) -> str:
    """The command that lets a group's sockets through a table of that name."""
    return f"add chain inet {table} {OURS} {{\n\t\t{in_cgroup(cgroup)} accept\n\t}}\n"


def _chains(cgroup: Cgroup | None) -> list[str]:
    ours = [] if cgroup is None else [f"\t\t{in_cgroup(cgroup)} accept"]
    return [
        f"\tchain {OURS} {{",
        *ours,
        "\t}",
        "\tchain regions {",
        "\t\tip6 daddr fe80::/10 return",
        *(line for family in (4, 6) for line in _rejections(family)),
        "\t}",
        "\tchain output {",
        f"\t\ttype filter hook output priority {_PRIORITY}; policy accept;",
        *_goes_on(),
        f"\t\t{BY_AN_AGENT} return",
        f"\t\tjump {OURS}",
        *(f"\t\t{_PROTOCOL[f]} daddr . tcp dport @bypass{f} return" for f in (4, 6)),
        *(
            f"\t\tudp dport {DNS_PORT} {_PROTOCOL[f]} daddr . udp dport @bypass{f} return"
            for f in (4, 6)
        ),
        "\t\tgoto regions",
        "\t}",
        "\tchain forward {",
        f"\t\ttype filter hook forward priority {_PRIORITY}; policy accept;",
        *_goes_on(),
        "\t\tgoto regions",
        "\t}",
    ]


def _goes_on() -> list[str]:
    return [
        "\t\tfib daddr type { local, broadcast, multicast } return",
        "\t\tct state established,related return",
        f"\t\tmeta l4proto tcp {NOT_A_SYN} return",
        "\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return",
        "\t\tudp sport 68 udp dport 67 return",
    ]


def _rejections(family: int) -> list[str]:
    protocol = _PROTOCOL[family]
    return [
        f"\t\t{protocol} daddr @remote{family} {_REJECT}",
        f"\t\tmeta l4proto {{ tcp, udp }} {protocol} daddr . th dport @remote{family}_ports"
        f" {_REJECT}",
    ]
