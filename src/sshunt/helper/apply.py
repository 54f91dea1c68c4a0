"""What root does to the kernel: nftables, the guard cgroup, retained addresses, our own privileges.

With the modules that serve it alone (see the package), the only one that touches the kernel.

``Kernel`` holds what one session has made there and can undo it. It is made once, right after HELLO
and in this order:

1. We say that we are alive (``marks``).
2. libnftables is loaded; its netlink socket is what will own our table.
3. A root of our own, with control groups where libnftables looks for them and little else: no file
   of the host's can be opened, and no module loaded, from here on.
4. Capabilities that later steps don't need are dropped for good (privileges has the stages).
5. What dead sessions left behind is removed. Before anything else, because a left-over rule may
   capture the ssh connection that is about to be made.

**The table.** With ``flags owner`` (Linux 5.12) the kernel ties the table to our netlink socket:
nobody else can alter it, and it is gone when we are, SIGKILL included. Where kernel or library
don't know the flag, a plain table of the same name is made. It does nothing any more when we have
not renewed it for some seconds (capture.nft); the next helper that starts removes it.

**Whose traffic.** A request's word for what is this host's is not enough, since it may be anybody's
who may start us: listeners are on addresses that interfaces have (not on retained ones), those are
what an interface had while we were there, resolvers are those that root reads in resolv.conf.
Where a listener's address goes later, what has been redirected to it is reset (capture.nft): for
that, the listeners of all plans are remembered as long as we live.

**The kill switch** (blocks) is made before the table, and stays when all else goes.

Undo runs backwards: retained addresses, table; at the end the cgroup, too. The guard outlives the
rules: what it holds, ssh, is what may bring them back. With it goes a table that captures nothing
and tells other sessions whose queries are ssh's; what has been redirected to a listener that may go
is reset by it (capture.nft). All steps are idempotent.

Not here: rule text (capture.nft), how an address is retained (addresses), the order of requests
(server).
"""

import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from itertools import chain
from socket import SOCK_SEQPACKET
from types import MappingProxyType

from sshunt.capture import links, nft
from sshunt.capture.plan import Connect, Method, Plan, Region, remote_regions
from sshunt.capture.retained import RETAINED_SET, render_retained, retained_in_families
from sshunt.helper import cgroups
from sshunt.helper.addresses import RetainedAddresses
from sshunt.helper.blocks import Blocks, peer_keys
from sshunt.helper.chains import suspects
from sshunt.helper.changes import (
    address_key,
    delete_table,
    endpoint_key,
    protocol_key,
    replace_elements,
)
from sshunt.helper.conntrack import forget_flows, forget_unanswered
from sshunt.helper.guard import Guard, make_guard
from sshunt.helper.interfaces import Interfaces
from sshunt.helper.listening import with_own_listeners
from sshunt.helper.marks import Marks
from sshunt.helper.netlink import Change
from sshunt.helper.nftables import BROKEN, Nftables, our_tables, remove_leftover_tables
from sshunt.helper.packets import PacketProcess
from sshunt.helper.privileges import (
    DAC_OVERRIDE,
    NET_ADMIN,
    NET_RAW,
    SETPCAP,
    SYS_ADMIN,
    SYS_CHROOT,
    SYS_PTRACE,
    drop_capabilities,
    leave_no_core,
    separate_mounts,
)
from sshunt.helper.processes import open_proc, requester
from sshunt.helper.protocol import (
    MAX_LISTENERS,
    MAX_REMOVED,
    KernelError,
    Packeted,
    Part,
    Refusal,
)
from sshunt.helper.resolvers import HostResolvers
from sshunt.helper.ruleset import RulesetNews
from sshunt.helper.starter import is_one_of_a_pair, maker_of
from sshunt.helper.sweeper import Sweeper
from sshunt.model import Endpoint

#: The regions with which flows that were not answered are compared, each with each.
_MOST_REGIONS = 200

#: What renders a plan as a table, by its method.
_RENDER = {Method.NFT: nft.render}


def begin() -> None:
    """To be called before the client is heard: what answering a greeting does not need is gone."""
    leave_no_core()
    drop_capabilities(
        (DAC_OVERRIDE, NET_ADMIN, NET_RAW, SETPCAP, SYS_ADMIN, SYS_CHROOT, SYS_PTRACE)
    )


class Kernel:
    """What one session has made in the kernel. Not thread-safe; lives as long as the helper."""

    def __init__(
        self,
        session: str,
        client: socket.socket,
        marks: Marks,
        *,
        user: int = 0,
        owner: bool = True,
    ) -> None:
        """Load, separate, drop, clean; raises KernelError. ``user`` is who asks, ``owner=False``
        forces plain tables.
        """
        self._session = session
        self._marks = marks
        self._want_owner = owner
        self._interfaces = Interfaces()
        self._proc = open_proc()
        self._socket = client
        self._client = requester(client, self._proc)
        self._alive = marks.take_for(nft.table_name(session))
        self._nft = Nftables()
        self._resolvers = HostResolvers()
        can_guard = cgroups.levels_can_be_trusted()
        can_guard = separate_mounts() and can_guard
        drop_capabilities((DAC_OVERRIDE, NET_ADMIN, NET_RAW))  # the last for who looks at packets
        self._parent: str | None = None
        if can_guard and self._client is not None:
            self._parent = cgroups.parent_of(self._client, session, marks)
        self._kept = {NET_ADMIN, DAC_OVERRIDE} if self._parent is not None else {NET_ADMIN}
        drop_capabilities({*self._kept, NET_RAW})
        self._table = nft.table_name(session)  # the one for inet, if there is one
        self._plan: Plan | None = None
        self.blocked_by_others = 0  # kill switches of dead sessions, as of the latest plan
        self._forgotten: set[Endpoint] = set()  # listeners of datagrams, at the end of the plan
        self._listeners: dict[Endpoint, None] = {}  # of all plans, on addresses that may go
        self._owned = False
        self._timed = True  # flows of UDP can be remembered for as long as we say
        self.holds = True  # rules can hold connections back, if a plan wants that
        self._has_echoes = True  # the same of echo requests
        self._guard: Guard | None = None
        self._sweeper: Sweeper | None = None  # the guard has one of its own
        self._packets: PacketProcess | None = None
        self._ruleset: RulesetNews | None = None  # where there is a plain table
        self._retained = RetainedAddresses()
        #: What somebody else has taken away, and the client has to ask for again.
        self.lost: set[Part] = set()
        self._wanted: tuple[str, ...] = ()  # what is retained
        self._hushed: frozenset[str] = frozenset()  # those that no interface has
        self._blocks = Blocks(self._nft, session, user, marks, persists=owner)
        #: What dead sessions had left, and is removed.
        self.removed = remove_leftover_tables(self._nft, marks)
        marks.sweep()
        if self._parent is not None:
            self.removed += cgroups.remove_leftovers(self._parent)

    def guard(self) -> bool:
        """Move the client into a cgroup of its own, again if need be; False if that can't be had
        here.
        """
        if self._client is None or self._parent is None:
            return False
        if self._guard is not None:
            if self._guard.holds(self._client):
                return True
            self._guard.remove()
            self._guard = None
            self._parent = cgroups.parent_of(self._client, self._session, self._marks)
            if self._parent is None:
                return False
        name = nft.table_name(self._session)
        guard = make_guard(name, self._parent, self._client, self._socket, self._proc)
        if guard is None:
            return False
        self._guard = guard
        self._blocks.let_out(guard.cgroup)
        try:
            if self._plan is None:
                self._remove_tables()
                self._make_without_plan()
        except KernelError as error:
            guard.remove()
            self._guard = None
            if error.kind in BROKEN:
                raise
            return False
        return True

    def packets(self, channel: socket.socket) -> Packeted:
        """Look at packets for the client, who has the other end of ``channel``: at those that can
        be looked at here. Raises KernelError.
        """
        if self._packets is not None or not is_one_of_a_pair(channel.fileno(), SOCK_SEQPACKET):
            channel.close()
            raise KernelError(Refusal.NO_CHANNEL, "one socketpair's end is asked for, once")
        if maker_of(channel)[1] != maker_of(self._socket)[1]:
            channel.close()  # whose listeners count is seen by who has made it (listening)
            raise KernelError(Refusal.NO_CHANNEL, "the socketpair was made by another user")
        self._packets = PacketProcess(channel, self._proc)
        drop_capabilities(self._kept)
        found = self._packets
        return Packeted(found.syn_group > 0, found.echo_group > 0, found.has_udp)

    @property
    def packet_process(self) -> int:
        """A descriptor that is readable when the packet process has ended; -1 if there is none."""
        return -1 if self._packets is None else self._packets.fileno()

    def _make_without_plan(self) -> None:
        """Make the table of a session that captures nothing, if it would hold anything; raises
        KernelError.
        """
        cgroup = self._guard.cgroup if self._guard is not None else None
        if cgroup is None and not self._listeners:
            return

        def render(owner: bool) -> str:
            return nft.render_without_plan(
                self._session, cgroup, owner=owner, earlier=self._listeners
            )

        if not self._nft.make(self._table, render, owner=self._want_owner):
            self._watch(is_plain=True)

    def apply(self, plan: Plan) -> bool:
        """Make the rules of ``plan``, in the place of any before; True if the kernel removes them
        when we die.

        Raises KernelError, and then has changed nothing. Addresses stay retained, connections
        that are translated already stay so. What the rules have noted of connections in these
        seconds is forgotten, and those may hang (capture.nft, ``bound``).
        """
        self._look()
        for family in (4, 6):
            listener = plan.listener(family)
            if listener is not None:
                self._interfaces.check_listener(listener)
        first = self._plan is None
        plan = replace(plan, resolvers=self._resolvers.asked_here(plan.resolvers, some=first))
        self._see_to_our_end()
        self._remember_listeners(plan)
        self._blocks.begin(plan, self._guard.cgroup if self._guard is not None else None)
        try:
            self._make_or_replace(plan, self._make if first else self._replace_plan)
        except KernelError:
            self._blocks.back()
            raise
        if first:
            _forget_unanswered(plan)
        self._note_listeners(plan)
        self.blocked_by_others = self._blocks.commit(plan)
        self.lost.discard(Part.RULES)
        self._watch()
        if self._packets is not None:
            self._packets.tell(plan if self.holds else replace(plan, connect=Connect.FAST))
        return self._owned

    def _make_or_replace(self, plan: Plan, apply: Callable[[Plan], None]) -> None:
        """Without time-outs of datagrams' own where the kernel has none, and holding nothing where
        it can't; raises KernelError.
        """
        while True:
            try:
                apply(plan)
                return
            except KernelError as error:
                if error.kind in BROKEN or not self._can_do_without(plan):
                    raise

    def _can_do_without(self, plan: Plan) -> bool:
        """True if there is something left to be done without. If it is not the reason why the
        rules were refused, they are refused again.
        """
        if self._timed and _has_datagrams(plan):
            self._timed = False
            return True
        if self.holds and plan.connect is not Connect.FAST and self._packets is not None:
            self.holds = False  # no nft_log, or a set whose elements rules can't delete: Linux 5.3
            return True
        if self._has_echoes and plan.echoes and self._packets is not None:
            self._has_echoes = False  # they go on as they would without us
            return True
        return False

    def _remember_listeners(self, plan: Plan) -> None:
        """Before there are rules: those that are taken back a moment later may have redirected."""
        listeners = self._listeners | dict.fromkeys(nft.listeners_that_may_go(plan))
        if len(listeners) > MAX_LISTENERS:
            raise KernelError(
                Refusal.LISTENER, f"a session has {MAX_LISTENERS} listeners on addresses at most"
            )
        self._listeners = listeners

    def _make(self, plan: Plan) -> None:
        self._remove_tables()
        try:
            render = partial(self._render, plan)
            self._owned = self._nft.make(self._table, render, owner=self._want_owner)
        except KernelError as error:
            if error.kind is not Refusal.STUCK:  # another call would be so, too
                with suppress(KernelError):
                    self._make_without_plan()
            raise
        # The routes, of which there may be thousands, are not needed again.
        self._plan = replace(plan, routes=())

    def _replace_plan(self, plan: Plan) -> None:
        name, second = nft.table_names(self._session)
        other = second if self._table == name else name
        rules = self._render(plan, self._owned)
        there = our_tables()
        if ("inet", other) in there:  # of a plan that could not be taken back
            self._nft.delete(("inet", other))
        if ("inet", self._table) in there:
            self._nft.replace(self._table, other, rules, owner=self._owned)
        else:  # it was a plain one, and somebody's "flush ruleset" has removed it
            self._nft.fill("inet", other, rules, owner=self._owned)
        self._table, self._plan = other, replace(plan, routes=())

    def _see_to_our_end(self) -> None:
        """No rules without somebody who ends us if we are frozen; raises KernelError."""
        if self._guard is None and self._sweeper is None:
            try:
                self._sweeper = Sweeper(None, self._socket, self._proc)
            except OSError as error:
                raise KernelError(Refusal.KERNEL, f"no process for the sweeper: {error}")

    def bypass(self, endpoints: Iterable[Endpoint]) -> None:
        """Put other endpoints into the bypass sets; raises KernelError."""
        self._plan = replace(self._applied_plan(), bypass=tuple(endpoints))
        self._replace(
            {
                name: [endpoint_key(address, port) for address, port in endpoints]
                for name, endpoints in nft.bypass_sets(self._plan).items()
            },
            blocked=peer_keys(self._plan),
        )

    def resolvers(self, addresses: Iterable[str]) -> None:
        """Put other addresses into the resolver sets; raises KernelError."""
        asked = self._resolvers.asked_here(tuple(addresses))
        self._plan = replace(self._applied_plan(), resolvers=asked)
        self._replace(
            {
                name: [address_key(address) for address in addresses]
                for name, addresses in nft.resolver_sets(self._plan).items()
            }
        )

    def _applied_plan(self) -> Plan:
        if self._plan is None:
            raise KernelError(Refusal.WRONG_ORDER, "no plan is applied")
        return self._plan

    def _replace(
        self,
        sets: Mapping[str, Collection[bytes]],
        *,
        blocked: Mapping[str, Collection[bytes]] = MappingProxyType({}),
    ) -> None:
        """Put these keys in the place of what is in sets of the session's table, and in those of
        what it blocks, all at once.
        """
        replaced = [replace_elements("inet", self._table, name, sets[name]) for name in sets]
        block = self._blocks.name
        if block is not None:
            replaced += [replace_elements("inet", block, name, blocked[name]) for name in blocked]
        try:
            self._nft.change(list(chain.from_iterable(replaced)))
        except KernelError:
            self.look_at_ruleset()
            if Part.RULES not in self.lost:
                raise  # else they are about to be made again, with these

    def retain(self, addresses: Iterable[str]) -> None:
        """Let these addresses and no others stay local, to this host alone; raises KernelError, and
        then has changed nothing.
        """
        self._look()
        wanted = tuple(addresses)
        for address in wanted:
            if not self._interfaces.had(address):
                raise KernelError(Refusal.NOT_OURS, f"{address} has not been this host's")
        self._hush({*self._wanted, *wanted})
        try:
            self._retained.retain(wanted)
        except OSError as error:
            self._hush_or_retain_none()
            raise KernelError(Refusal.NOT_RETAINED, str(error))
        self._wanted = wanted
        self.lost.discard(Part.DEVICE)
        self._hush_or_retain_none()

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors, and what is to be called when one is readable."""
        found: dict[int, Callable[[], None]] = {self._interfaces.fileno(): self.follow}
        if self._ruleset is not None:
            found[self._ruleset.fileno()] = self.look_at_ruleset
        return found

    def look_at_ruleset(self) -> None:
        """To be called when tables have changed."""
        if self._ruleset is None:
            return
        names = {self._table, *filter(None, [self._blocks.name])}
        try:
            touched = self._ruleset.touched(names)
        except OSError:
            return  # the kernel has more to say the next time
        if not touched:
            return
        if self._blocks.name in touched:
            self._blocks.forget()
        if self._plan is not None:
            self.lost.add(Part.RULES)
        else:
            with suppress(KernelError):
                self._remove_tables()
                self._make_without_plan()
        if self._hushed:
            self._hush_or_retain_none(again=True)

    def _watch(self, *, is_plain: bool = False) -> None:
        """Hear of it from now on if somebody else alters a plain table, if there is one."""
        is_plain = is_plain or self.is_plain or self._blocks.is_plain
        if self._ruleset is None and is_plain:
            with suppress(OSError):  # no descriptor: as before there was such a thing
                self._ruleset = RulesetNews(self._nft.port)

    def follow(self) -> None:
        """To be called when interfaces, or their addresses, have changed."""
        if self._retained.is_lost:
            self._retain_none()
            self.lost.add(Part.DEVICE)
        with suppress(KernelError):
            self._look()

    def _look(self) -> None:
        """Know this host's addresses, and follow; raises KernelError, and then none is retained."""
        try:
            self._interfaces.look()  # the news are forgotten, whoever calls
        except OSError as error:
            self._retain_none()
            raise KernelError(Refusal.KERNEL, f"can't list this host's addresses: {error}")
        finally:
            self._hush_or_retain_none()

    def _hush(self, addresses: Iterable[str], *, again: bool = False) -> None:
        """Keep those that no interface has from being heard of by others; raises KernelError."""
        hushed = frozenset(addresses) - self._interfaces.links.keys()
        if hushed == self._hushed and not again:
            return
        name = nft.table_name(self._session)
        there = {family for family, table in our_tables() if table == name} - {"inet"}
        wanted = retained_in_families(hushed)
        made: list[str] = []
        try:
            for family in sorted(wanted.keys() - there):
                table = render_retained(self._session, family, wanted[family], owner=self._owned)
                self._nft.fill(family, name, table, owner=self._owned)
                made.append(family)
            changes = [_retained_changes(family, name, wanted.get(family, ())) for family in there]
            self._nft.change(list(chain.from_iterable(changes)))
        except KernelError:
            for family in made:
                with suppress(KernelError):
                    self._nft.delete((family, name))
            raise
        self._hushed = hushed

    def _hush_or_retain_none(self, *, again: bool = False) -> None:
        """Better none than one of which others hear, for it may be theirs."""
        try:
            self._hush(self._wanted, again=again)
        except KernelError:
            self._retain_none()

    def _retain_none(self) -> None:
        self._retained.close()
        self._wanted = ()

    @property
    def is_plain(self) -> bool:
        """True if there is a table that the kernel does not own."""
        return self._plan is not None and not self._owned

    def renew(self) -> None:
        """Let a plain table live on, if there is one; raises KernelError.

        Retained addresses stay hidden also where somebody has removed all plain tables: the ones
        that hide them are made again.
        """
        if self.is_plain:
            # Removed and added: elements can't be given more time where they are before Linux 6.12.
            numbers = (
                *(socket.IPPROTO_TCP, socket.IPPROTO_UDP),
                *(socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6),
            )
            keys = [protocol_key(number) for number in numbers]
            try:
                self._replace({nft.ALIVE_SET: keys})
            finally:
                if self._hushed:
                    self._hush_or_retain_none(again=True)

    def suspects(self) -> tuple[str, ...]:
        """Chains of others that may stop what is captured, for a person to read."""
        try:
            return suspects()
        except OSError:
            return ()  # it was only a hint

    def undo(self) -> None:
        """Retain no address, remove the rules, leave the guard; raises KernelError."""
        self._remove_tables()
        if self._packets is not None:
            self._packets.tell(None)
        self._make_without_plan()

    def unblock(self) -> None:
        """Block no more."""
        self._blocks.lift()

    def clean_up(self) -> tuple[str, ...]:
        """Remove also what dead sessions block; names all that was removed."""
        removed = (*self.removed, *self._blocks.lift_dead())[:MAX_REMOVED]
        self.removed = []
        return removed

    def _remove_tables(self) -> None:
        self._retain_none()  # before those go that keep it from others
        names = nft.table_names(self._session)
        # Those that are there: somebody's "flush ruleset" removes plain ones.
        self._nft.delete(*(table for table in our_tables() if table[1] in names))
        self._table = names[0]
        self._forget_flows()
        self._plan, self._hushed = None, frozenset()

    def _forget_flows(self) -> None:
        """Those of listeners that were the client's own when they were applied."""
        here = {ip_address(address).packed for address in self._interfaces.links}
        for address, port in self._forgotten:
            with suppress(OSError):  # they end when they have been silent for some minutes
                forget_flows(ip_address(address).version, (address, port), here)
        self._forgotten = set()

    def _note_listeners(self, plan: Plan) -> None:
        """Whose flows are forgotten when this plan ends, or another takes its place."""
        own = with_own_listeners(plan, maker_of(self._socket)[1], self._proc)
        self._forgotten = {place for place in (own.datagrams(4), own.datagrams(6)) if place}

    def close(self) -> None:
        """Undo, let the client out of its guard, be dead for those who come after us; raises
        KernelError. What is blocked stays so.
        """
        try:
            self._remove_tables()
        finally:
            if self._packets is not None:
                self._packets.end()
                self._packets = None
            if self._guard is not None:
                self._guard.remove()
                self._guard = None
            if self._sweeper is not None:
                self._sweeper.end()
                self._sweeper = None
        self._alive.close()

    def _render(self, plan: Plan, owner: bool) -> str:
        cgroup = self._guard.cgroup if self._guard is not None else None
        link_of = self._interfaces.links
        served = links.served(plan, self._proc, lambda a: link_of.get(a, ""))
        packets = nft.NO_GROUPS
        if self._packets is not None:
            syns = self._packets.syn_group if self.holds else 0
            echoes = self._packets.echo_group if self._has_echoes else 0
            packets = nft.PacketGroups(syns, echoes)
        try:
            return _RENDER[plan.method](
                plan,
                owner=owner,
                cgroup=cgroup,
                served=served,
                earlier=self._listeners,
                packets=packets,
                own=links.addresses_of(served, link_of),
                timed=self._timed,
            )
        except ValueError as error:
            raise KernelError(Refusal.TOO_COMPLEX, str(error))


def _forget_unanswered(plan: Plan) -> None:
    """Of flows into the regions, so that they are captured from their next datagram on."""
    for family in (4, 6):
        regions = remote_regions(plan.routes, family) if plan.datagrams(family) else []
        if not 0 < len(regions) <= _MOST_REGIONS:
            continue
        with suppress(OSError):  # they are captured when they have been silent for half a minute
            forget_unanswered(family, partial(_is_in, regions))


def _is_in(regions: list[Region], address: bytes, port: int) -> bool:
    number = int.from_bytes(address, "big")
    return any(
        region.first_address <= number <= region.last_address
        and region.first_port <= port <= region.last_port
        for region in regions
    )


def _has_datagrams(plan: Plan) -> bool:
    return any(plan.datagrams(family) is not None for family in (4, 6))


def _retained_changes(family: str, name: str, addresses: Iterable[nft.Address]) -> list[Change]:
    """What makes a table that is there hold these; one that would hold none is removed."""
    keys = [address_key(address) for address in addresses]
    if not keys:
        return [delete_table(family, name)]
    return replace_elements(family, name, RETAINED_SET, keys)
