"""What root does to the kernel for a session that captures with iptables (nat). Root; Linux.

In the place of ``apply.Kernel``, with what of it makes sense: a guard, a plan, bypass endpoints,
resolvers. Packets are not looked at, addresses not retained, nothing is blocked beyond our end.

The rules are the restorer's to make and to remove; it outlives us. What somebody else has flushed
is made again when it is time to ``renew``, every few seconds: iptables tells nobody of changes.

Not here: rule text (capture.iptables), running programs (restorer).
"""

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from sshunt.capture import links, nft
from sshunt.capture.iptables import is_whole, numbers, removal, render
from sshunt.capture.plan import Plan
from sshunt.helper import cgroups
from sshunt.helper.chains import suspects
from sshunt.helper.guard import Guard, make_guard
from sshunt.helper.interfaces import Interfaces
from sshunt.helper.marks import Marks
from sshunt.helper.privileges import DAC_OVERRIDE, NET_ADMIN, drop_capabilities, separate_mounts
from sshunt.helper.processes import open_proc, requester
from sshunt.helper.protocol import MAX_REMOVED, KernelError, Packeted, Part, Refusal
from sshunt.helper.resolvers import HostResolvers
from sshunt.helper.restorer import Restorer
from sshunt.helper.sweeper import Sweeper
from sshunt.model import Endpoint

_FAMILIES = (4, 6)
_NAMES = {4: "iptables", 6: "ip6tables"}


class IptablesKernel:
    """What one session has made there. Not thread-safe; lives as long as the helper."""

    blocked_by_others = 0
    holds = True  # no plan of ours wants that

    def __init__(self, session: str, client: socket.socket, marks: Marks) -> None:
        """Fork the restorer, separate, drop, clean; raises KernelError."""
        self._session = session
        self._interfaces = Interfaces()
        self._proc = open_proc()
        self._socket = client
        self._client = requester(client, self._proc)
        self._alive = marks.take_for(nft.table_name(session))
        self._resolvers = HostResolvers()
        self._restorer = Restorer(session, self._proc)
        can_guard = cgroups.levels_can_be_trusted()
        can_guard = separate_mounts() and can_guard
        self._restorer.leave_cgroup()
        self._parent: str | None = None
        if can_guard and self._client is not None:
            self._parent = cgroups.parent_of(self._client, session, marks)
        drop_capabilities((DAC_OVERRIDE, NET_ADMIN) if self._parent is not None else (NET_ADMIN,))
        self._plan: Plan | None = None
        self._is_whole = False  # the rules are there, and what leads to them
        #: How many rules each chain has, by family.
        self._rules: dict[int, Counter[str]] = {}
        #: What somebody else has taken away, and the client has to ask for again.
        self.lost: set[Part] = set()
        self._guard: Guard | None = None
        self._sweeper: Sweeper | None = None  # the guard has one of its own
        self._removed: tuple[str, ...] = ()
        self._families = self._remove_leftovers(marks)
        marks.sweep()
        if self._parent is not None:
            cgroups.remove_leftovers(self._parent)

    def _remove_leftovers(self, marks: Marks) -> tuple[int, ...]:
        """The families that iptables has here; raises KernelError if it has none."""
        found = []
        for family in _FAMILIES:
            try:
                saved = self._restorer.saved(family)
            except KernelError:
                if family == 4:
                    raise
                continue  # a host without IPv6
            found.append(family)
            text = removal(saved, lambda name: not marks.is_alive(name))
            if text:
                self._restorer.restore(family, text)
                chains = [line.split()[1] for line in text.splitlines() if line.startswith("-X")]
                self._removed += tuple(f"{_NAMES[family]} chain {chain}" for chain in chains)
        return tuple(found)

    def guard(self) -> bool:
        """As apply.Kernel's."""
        if self._guard is None and self._client is not None and self._parent is not None:
            name = nft.table_name(self._session)
            self._guard = make_guard(name, self._parent, self._client, self._socket, self._proc)
        return self._guard is not None

    def packets(self, channel: socket.socket) -> Packeted:
        """None are looked at."""
        channel.close()
        return Packeted(syns=False, echoes=False, datagrams=False)

    def apply(self, plan: Plan) -> bool:
        """Make the rules of ``plan``, in the place of any before; False: it is not the kernel who
        removes them. Raises KernelError, and then there is what was before, or nothing.
        """
        self._interfaces.look()
        for family in _FAMILIES:
            listener = plan.listener(family)
            if listener is not None:
                self._interfaces.check_listener(listener)
        asked = self._resolvers.asked_here(plan.resolvers, some=self._plan is None)
        if self._guard is None and self._sweeper is None:
            try:
                self._sweeper = Sweeper(None, self._socket, self._proc)
            except OSError as error:
                raise KernelError(Refusal.KERNEL, f"no process for the sweeper: {error}")
        self._restore(replace(plan, resolvers=asked))
        self.lost.clear()
        return False

    def bypass(self, endpoints: Iterable[Endpoint]) -> None:
        """Never capture connections to these; raises KernelError."""
        self._restore(replace(self._applied_plan(), bypass=tuple(endpoints)))

    def resolvers(self, addresses: Iterable[str]) -> None:
        """Capture what is asked of these; raises KernelError."""
        asked = self._resolvers.asked_here(tuple(addresses))
        self._restore(replace(self._applied_plan(), resolvers=asked))

    def retain(self, addresses: Iterable[str]) -> None:
        """None can be; raises KernelError for any."""
        if tuple(addresses):
            raise KernelError(Refusal.NOT_RETAINED, "not with iptables")

    def suspects(self) -> tuple[str, ...]:
        """As apply.Kernel's: what nftables shows of others' chains, iptables' own among them."""
        try:
            return suspects()
        except OSError:
            return ()

    def undo(self) -> None:
        """Remove the rules, leave the guard; raises KernelError."""
        self._plan = None
        self._remove()

    def unblock(self) -> None:
        """Nothing is blocked."""

    def clean_up(self) -> tuple[str, ...]:
        """Name what dead sessions had left, and is removed."""
        removed, self._removed = self._removed, ()
        return removed[:MAX_REMOVED]

    @property
    def is_plain(self) -> bool:
        """True if there are rules, which somebody may flush."""
        return self._plan is not None

    def renew(self) -> None:
        """See whether somebody has removed them: then they have to be asked for again. Raises
        KernelError.
        """
        for family, rules in self._rules.items():
            if not is_whole(self._restorer.saved(family), self._session, rules):
                self._is_whole = False
                self.lost.add(Part.RULES)

    @property
    def packet_process(self) -> int:
        """A descriptor that is readable when the restorer has ended."""
        return self._restorer.fileno()

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors, and what is to be called when one is readable."""
        return {self._interfaces.fileno(): self.follow}

    def follow(self) -> None:
        """To be called when the interfaces' addresses have changed."""
        with suppress(OSError):
            self._interfaces.look()

    def close(self) -> None:
        """Undo, let the client out of its guard, be dead for those who come after us."""
        self._plan = None
        self._restorer.end()
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
        if self._sweeper is not None:
            self._sweeper.end()
            self._sweeper = None
        self._alive.close()

    # --- inside -------------------------------------------------------------------------------

    def _applied_plan(self) -> Plan:
        if self._plan is None:
            raise KernelError(Refusal.WRONG_ORDER, "no plan is applied")
        return self._plan

    def _restore(self, plan: Plan) -> None:
        """Make these rules; raises KernelError, and then there are those of before, or none."""
        if not self._is_whole:
            self._remove()  # what somebody has left of them
        families = [
            f for f in self._families if plan.listener(f) or plan.dns(f) or f in self._rules
        ]
        texts = {family: self._text(plan, family) for family in families}
        try:
            for family, text in texts.items():
                self._restorer.restore(family, text)
        except KernelError:
            self._go_back(families)
            raise
        self._rules = {family: numbers(text, self._session) for family, text in texts.items()}
        self._plan, self._is_whole = plan, True

    def _text(self, plan: Plan, family: int) -> str:
        cgroup = self._guard.cgroup if self._guard is not None else None
        links_of = self._interfaces.links
        served = links.served(plan, self._proc, lambda address: links_of.get(address, ""))
        is_first = family not in self._rules
        try:
            return render(plan, family, cgroup=cgroup, served=served[family], is_first=is_first)
        except ValueError as error:
            raise KernelError(Refusal.TOO_COMPLEX, str(error))

    def _go_back(self, families: list[int]) -> None:
        """Some of these families may have rules that the others don't have."""
        with suppress(KernelError):
            if self._plan is None or not self._is_whole:
                self._remove()
                return
            for family in families:
                if family in self._rules:
                    self._restorer.restore(family, self._text(self._plan, family))
                else:
                    self._remove_of(family)

    def _remove(self) -> None:
        self._is_whole, self._rules = False, {}
        for family in self._families:
            self._remove_of(family)

    def _remove_of(self, family: int) -> None:
        ours = nft.table_name(self._session)
        text = removal(self._restorer.saved(family), lambda name: name == ours)
        if text:
            self._restorer.restore(family, text)
