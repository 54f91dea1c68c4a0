"""What the kernel should be doing for this session, as a value; and how to get there. Pure.

``wanted`` computes it from facts: is the connection down, what did the person say about that, whom
is ssh connected to, whom does this host ask names. ``next_request`` compares it with what is
applied, and names the one request to the helper that comes next::

    differs                      request        may fail?
    guard                        GUARD          no; that there is none here is an answer, too
    no plan, but one is applied  UNDO           no
    listeners or routes          APPLY          no
    resolvers                    RESOLVERS      no
    bypass endpoints             BYPASS         no
    retained addresses           RETAIN         yes: connections of the former address stand still

So whatever has changed meanwhile is made up for by as few requests as possible, and each of them
is small where the routes stay as they are. APPLY brings resolvers and bypass endpoints with it.

**The guard** outlives the rules: what is in it, ssh, is what may bring them back. A wanted state
without it is only that of the very beginning.

Not here: asking, and what is done about a failure (rules), what a request does (helper.protocol).
"""

from dataclasses import dataclass, replace

from sshunt.capture.plan import DNS_PORT, Plan
from sshunt.helper.protocol import (
    MAX_BYPASS,
    Apply,
    Bypass,
    Guard,
    Part,
    Request,
    Resolvers,
    Retain,
    Undo,
)
from sshunt.model import Endpoint


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of this host and of the connection, as far as rules depend on it."""

    fail_open: bool = False  # the rules are to go while the connection is down
    is_down: bool = False
    plan: Plan | None = None  # listeners and routes; None while starting
    peers: tuple[Endpoint, ...] = ()  # whom ssh is connected to; the latest last
    resolvers: tuple[str, ...] = ()  # whom this host's programs ask names, if that is captured
    near_resolvers: tuple[str, ...] = ()  # they are left alone
    retained: tuple[str, ...] = ()  # addresses that this host lost and connections still bear


@dataclass(frozen=True, slots=True)
class Wanted:
    """A state of the kernel."""

    guard: bool = True
    plan: Plan | None = None  # with its bypass endpoints and resolvers
    retained: tuple[str, ...] = ()  # none without a plan


#: What there is before anything was asked for.
NOTHING = Wanted(guard=False)


def wanted(facts: Facts) -> Wanted:
    """The state that these facts ask for.

    Resolvers that are neighbours are in the bypass set where queries are not captured: programs go
    on asking them (host.near_resolvers). While the connection is down, a closed session still
    captures everything; but the resolvers are in its bypass set, so that other sessions' ssh can
    find their servers (capture.nft).
    """
    plan = facts.plan
    if plan is None or (facts.is_down and facts.fail_open):
        return Wanted()
    spared = facts.near_resolvers + (facts.resolvers if facts.is_down else ())
    bypass = facts.peers + tuple((address, DNS_PORT) for address in spared)
    plan = replace(plan, bypass=bypass[-MAX_BYPASS:], resolvers=facts.resolvers)
    return Wanted(plan=plan, retained=facts.retained)


def next_request(applied: Wanted, wanted: Wanted) -> Request | None:
    """What to ask for next; None if what may not fail is as wanted (see ``next_optional``)."""
    if wanted.guard and not applied.guard:
        return Guard()
    if wanted.plan is None:
        return None if applied.plan is None else Undo()
    if applied.plan is None or _outline(applied.plan) != _outline(wanted.plan):
        return Apply(wanted.plan)
    if applied.plan.resolvers != wanted.plan.resolvers:
        return Resolvers(wanted.plan.resolvers)
    if applied.plan.bypass != wanted.plan.bypass:
        return Bypass(wanted.plan.bypass)
    return None


def next_optional(applied: Wanted, wanted: Wanted) -> Request | None:
    """What to ask for when ``next_request`` is None, and what may fail."""
    if wanted.plan is None or applied.retained == wanted.retained:
        return None
    return Retain(wanted.retained)


def after(applied: Wanted, request: Request) -> Wanted:
    """What is applied when a request has been carried out."""
    match request:
        case Guard():
            return replace(applied, guard=True)
        case Undo():
            return replace(applied, plan=None, retained=())
        case Apply():
            return replace(applied, plan=request.plan)
        case Retain():
            return replace(applied, retained=request.addresses)
        case Resolvers() if applied.plan is not None:
            return replace(applied, plan=replace(applied.plan, resolvers=request.addresses))
        case Bypass() if applied.plan is not None:
            return replace(applied, plan=replace(applied.plan, bypass=request.endpoints))
    raise ValueError(f"not a request of ours: {request}")


def without(applied: Wanted, part: Part) -> Wanted:
    """What is applied when somebody else has taken this away. Rules name the control group, so they
    are made again for another one.
    """
    match part:
        case Part.RULES:
            return replace(applied, plan=None)
        case Part.GUARD:
            return replace(applied, guard=False, plan=None)
        case Part.DEVICE:
            return replace(applied, retained=())


def after_refusal(applied: Wanted, request: Request) -> Wanted:
    """What is applied when a request has been refused: what was before.

    But a helper that is stuck may have left rules where there were none, or may have undone them in
    part. What there is then is like no plan that anybody wants, so it is replaced, or undone again.
    """
    plan = request.plan if isinstance(request, Apply) else applied.plan
    first = isinstance(request, Apply) and applied.plan is None
    if plan is not None and (first or isinstance(request, Undo)):
        return replace(applied, plan=Plan(plan.session, redirects=(), routes=()), retained=())
    return applied


def _outline(plan: Plan) -> Plan:
    """A plan without what can be replaced in it."""
    return replace(plan, bypass=(), resolvers=())
