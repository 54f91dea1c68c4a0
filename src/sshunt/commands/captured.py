"""What ``up`` captures: routes, the sockets at which it arrives, and the plan made of both.

    routes    of targets and exclusions, names resolved
    sockets   one listener for each family that has something to capture, and at the same port one
              for its datagrams; for DNS, one pair
    plan      what the helper is asked for

Cheap errors come of it, and are told before anything has been touched.

Not here: applying the plan (host.rules), serving the sockets (running).
"""

import asyncio
import errno
import os
import socket
from collections.abc import Mapping

from sshunt.capture import links
from sshunt.capture.plan import Connect, Method, Plan, redirects, remote_regions
from sshunt.config.options import ANYWHERE6, DEFAULT_LISTEN6, Options
from sshunt.errors import ExitCode, UserError
from sshunt.front.datagram_sockets import DatagramSocket, bind_datagrams
from sshunt.front.dns_sockets import (
    BIND_ATTEMPTS,
    DnsSockets,
    left_alone,
    open_dns_sockets,
    system_resolvers,
)
from sshunt.front.listener import CannotListen, bind
from sshunt.helper.protocol import MAX_ROUTES
from sshunt.host.own import has_ipv6, own_routes
from sshunt.model import Action, Endpoint, Route
from sshunt.route.routes import resolve
from sshunt.tell.report import (
    ForwardedCaptured,
    ForwardedSkipped,
    Ipv6ResolversSkipped,
    Ipv6Skipped,
    LinksMissing,
    OwnAddressSkipped,
    Report,
    ResolversSkipped,
)
from sshunt.tell.sentences import ROUTES_SHOWN, route_text, uncovered


class Captured:
    """Owns the sockets until ``close``; whoever serves them may close them before."""

    def __init__(
        self,
        routes: tuple[Route, ...],
        listeners: list[socket.socket],
        datagrams: list[DatagramSocket],
        dns_sockets: list[DnsSockets],
        *,
        blocks: bool = False,
        links: tuple[str, ...] = (),
    ) -> None:
        self.routes = routes
        self.links = links  # by which others' traffic comes in
        self.blocks = blocks  # nothing reaches them another way
        self.listeners = listeners
        self.datagrams = datagrams
        self.dns_sockets = dns_sockets

    def close(self) -> None:
        """May be called twice."""
        for sock in (*self.listeners, *(sock for pair in self.dns_sockets for sock in pair)):
            sock.close()
        self.leave_udp_alone()

    def leave_udp_alone(self) -> None:
        """Capture no datagrams after all."""
        for sock in self.datagrams:
            sock.close()
        self.datagrams = []

    @property
    def remote_routes(self) -> tuple[Route, ...]:
        """Those that are captured, not left alone."""
        return tuple(_remote(self.routes))

    def check(self) -> None:
        """Raise UserError if that is more than the helper takes."""
        try:
            if len(self.routes) > MAX_ROUTES:
                raise ValueError(f"{len(self.routes)} routes, and {MAX_ROUTES} are the limit")
            for family in (4, 6):
                remote_regions(self.routes, family)
        except ValueError as error:
            raise UserError(str(error), "use fewer, wider networks", ExitCode.USAGE)

    def plan(
        self,
        session_id: str,
        bypass: tuple[Endpoint, ...] = (),
        *,
        connect: Connect = Connect.FAST,
        echoes: bool = False,
        method: Method = Method.NFT,
    ) -> Plan:
        """What the helper is asked for. ``check`` it before. ``echoes``: echo requests, too."""
        queries = [pair.endpoint for pair in self.dns_sockets]
        return Plan(
            session=session_id,
            redirects=redirects(
                [sock.getsockname()[:2] for sock in self.listeners],
                queries,
                [sock.endpoint for sock in self.datagrams],
            ),
            routes=self.routes,
            bypass=bypass,
            resolvers=system_resolvers() if queries else (),
            blocks=self.blocks,
            links=self.links,
            echoes=echoes,
            connect=connect,
            method=method,
        )


def open_sockets(options: Options, routes: tuple[Route, ...], report: Report) -> Captured:
    """The sockets for ``routes``, and those of the routes that have one; raises UserError."""
    links = tuple(dict.fromkeys((*options.links, *map(_link_of, options.served))))
    captured = Captured(routes, [], [], [], blocks=options.fail_block, links=links)
    try:
        captured.routes = _bind(captured, options, report)
        captured.dns_sockets = _dns_sockets(options, report)
    except BaseException:
        captured.close()
        raise
    return captured


async def resolve_routes(options: Options, report: Report) -> tuple[Route, ...]:
    """All of them, for remote and direct; raises UserError."""
    loop = asyncio.get_running_loop()
    routes = await resolve(
        options.targets,
        options.excludes,
        ipv6=options.listen6 is not None,
        getaddrinfo=loop.getaddrinfo,
    )
    own = own_routes(routes)
    if own and len(own) == len(_remote(routes)):
        raise UserError(
            f"{route_text(own[0])} is this host itself, and what goes there is never captured",
            "for what listens on the server's own localhost: ssh -L 8080:localhost:80 HOST",
            ExitCode.USAGE,
        )
    for route in own[:ROUTES_SHOWN]:
        report.say(OwnAddressSkipped(route))
    return routes


def served(plan: Plan, report: Report) -> Mapping[int, links.Links]:
    """From which links other hosts are served; says so."""
    if not (plan.forwards(4) or plan.forwards(6)):
        return {4: (), 6: ()}
    from sshunt.host.retained_addresses import (
        link_of,  # takes its time to load, and most don't need it
    )

    proc = links.open_proc()
    try:
        found = links.served(plan, proc, link_of)
    finally:
        os.close(proc)
    there = {name for _, name in socket.if_nameindex()}
    if missing := tuple(link for link in plan.links if link not in there):
        report.say(LinksMissing(missing))
    for family in (4, 6):
        if refusal := links.refusal(plan, family, found[family]):
            report.say(ForwardedSkipped(family, refusal))
        elif plan.forwards(family):
            report.say(ForwardedCaptured(family, tuple(found[family] or ())))
    return found


def _link_of(address: str) -> str:
    """The link that has this address of ours; raises UserError if none has."""
    from sshunt.host.retained_addresses import link_of

    link = link_of(address)
    if not link:
        raise UserError(
            f"can't listen on {address}: no interface has it",
            "give --listen addresses of this host",
            ExitCode.LISTEN,
        )
    return link


def _bind(captured: Captured, options: Options, report: Report) -> tuple[Route, ...]:
    """Make the listeners, one for each family that has something to capture; returns the routes
    that have one. Raises UserError.

    A host without IPv6 has no ::1. What it can't have and nobody asked for by --listen is left
    alone, with a line that says so: a name's IPv6 address must not keep its IPv4 one from working.
    But only where nothing of this host gets anywhere over IPv6: it would go past the tunnel.
    """
    routes = captured.routes
    for family, endpoint in ((4, options.listen4), (6, options.listen6)):
        wanted = [r for r in routes if r.network.version == family]
        if endpoint is None or not any(r.action is Action.REMOTE for r in wanted):
            continue
        try:
            _listen(captured, endpoint, udp=options.udp)
        except CannotListen as error:
            rest = tuple(r for r in routes if r not in wanted)
            no_family = error.error_number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            default6 = ANYWHERE6 if options.links else DEFAULT_LISTEN6
            optional = no_family and endpoint == default6
            if optional and has_ipv6():
                raise _no_loopback6("IPv6 targets")
            if not optional or not _remote(rest):
                raise
            report.say(Ipv6Skipped())
            if not options.fail_block:  # it may come by IPv6 later
                routes = rest
    return routes


def _listen(captured: Captured, endpoint: Endpoint, *, udp: bool) -> None:
    """A listener, and one for datagrams at the same port; raises CannotListen."""
    attempts = BIND_ATTEMPTS
    while True:
        sock = bind(endpoint)
        try:
            if udp:
                captured.datagrams.append(bind_datagrams(sock.getsockname()[:2]))
        except CannotListen as error:
            sock.close()
            attempts -= 1
            if error.error_number == errno.EADDRINUSE and not endpoint[1] and attempts:
                continue  # a port that is free for TCP may be taken for UDP
            raise
        captured.listeners.append(sock)
        return


def _dns_sockets(options: Options, report: Report) -> list[DnsSockets]:
    """Where DNS queries arrive, for each family; raises UserError."""
    if not options.dns:
        return []
    beyond = left_alone(ipv6=options.listen6 is not None)
    if beyond and set(system_resolvers()) <= set(beyond):
        raise UserError(
            uncovered(beyond),
            "name another resolver in /etc/resolv.conf (a local one will do), or leave --dns out",
            ExitCode.CAPTURE,
        )
    if beyond:
        report.say(ResolversSkipped(beyond))
    dns_sockets = [open_dns_sockets(4)]
    if options.listen6 is not None:
        try:
            dns_sockets.append(open_dns_sockets(6))
        except CannotListen as error:  # a host without IPv6
            if has_ipv6() and any(":" in address for address in system_resolvers()):
                dns_sockets[0].close()
                raise _no_loopback6("queries to IPv6 resolvers")
            report.say(Ipv6ResolversSkipped(error.message))
    return dns_sockets


def _no_loopback6(what: str) -> UserError:
    return UserError(
        f"this host has IPv6, but no ::1 to accept anything at: {what} would go past the tunnel",
        "give it one: ip address add ::1/128 dev lo; or leave IPv6 alone: --disable-ipv6",
        ExitCode.LISTEN,
    )


def _remote(routes: tuple[Route, ...]) -> list[Route]:
    return [route for route in routes if route.action is Action.REMOTE]
