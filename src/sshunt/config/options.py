"""What one run of ``sshunt up`` was asked to do. Values only; ``cli`` fills them in."""

from dataclasses import dataclass

from sshunt.config.remotes import RemoteSpec
from sshunt.config.targets import Target
from sshunt.model import Endpoint

#: Where redirected connections are accepted unless --listen says otherwise: any free port,
#: reachable from this host only.
DEFAULT_LISTEN4: Endpoint = ("127.0.0.1", 0)
DEFAULT_LISTEN6: Endpoint = ("::1", 0)


#: The same where others' traffic is to be captured, and nothing is said of where: from any link, of
#: which the rules then name those that were asked for.
ANYWHERE4: Endpoint = ("0.0.0.0", 0)
ANYWHERE6: Endpoint = ("::", 0)


#: ssh connections at most; most sessions never need a second one. sshd's MaxStartups lets ten log
#: in at once.
DEFAULT_LANES = 4
MAX_LANES = 16


#: How long the far side keeps a session whose connection is lost: a meeting, a flight of stairs, a
#: train's tunnels. MAX_GRACE_S is the agent's own limit (mux.limits; a test holds them together).
DEFAULT_GRACE_S = 3600
MAX_GRACE_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``sshunt up``."""

    remote: RemoteSpec
    targets: tuple[Target, ...]
    excludes: tuple[Target, ...]
    listen4: Endpoint | None
    listen6: Endpoint | None
    verbosity: int
    dry_run: bool
    lanes: int = DEFAULT_LANES
    grace_s: int = DEFAULT_GRACE_S
    max_retries: int | None = None  # None: for ever
    fail_open: bool = False
    served: tuple[str, ...] = ()  # addresses of this host, whose links count as named in ``links``
    namespace: str = ""  # the network namespace in which it is captured; "": ours
    links: tuple[str, ...] = ()  # from which others' traffic is captured; none: by the listeners
    fail_block: bool = False  # blocked also after our own death
    method: str = "auto"  # or "nft", "nat"
    zero_copy: str = "auto"  # or "always", "never"
    dns: bool = False
    ping: bool = True
    udp: bool = True
    any_peer: bool = False  # programs hear from hosts that they have not sent anything to
    connect: str = "auto"  # or "honest", "fast"
