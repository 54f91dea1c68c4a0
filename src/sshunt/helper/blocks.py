"""Kill switches in the kernel: the session's own, and what dead sessions have left. Root.

Made before the table that captures, and not removed with it: our end leaves it, whether we are
killed or our client is. Only a client that asks for it (UNBLOCK), the next session of the same user
and the same networks, and ``sshunt cleanup`` remove one. So it is also never in the way of
``remove_leftover_tables``, which knows other names.

With ``flags owner, persist`` (Linux 6.9) the kernel keeps others from altering it while we live,
and keeps it when we are dead: then it belongs to nobody, and root may alter it. Where there is no
such flag it is a plain table. Another session's is dead if nobody holds that session's mark.

**Whose.** A user's session has no power over those of other users, but root's has over all.

Not here: the rules (capture.block), when which is asked for (apply, server).
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from sshunt.capture.block import (
    BlockName,
    block_name,
    block_peers,
    let_out,
    read_block_name,
    render_block,
)
from sshunt.capture.nft import Cgroup, table_name
from sshunt.capture.plan import Plan
from sshunt.helper.changes import endpoint_key
from sshunt.helper.marks import Marks
from sshunt.helper.nftables import BROKEN, Nftables, block_tables
from sshunt.helper.protocol import KernelError, Refusal

#: The most kill switches of ended sessions that a user other than root may leave. Each may have as
#: many routes as a plan.
MAX_DEAD_BLOCKS = 16

Replace = Callable[[str, Mapping[str, Collection[bytes]]], None]


class Blocks:
    """This session's kill switch, if it has one, and those of the dead."""

    def __init__(
        self, nftables: Nftables, session: str, uid: int, marks: Marks, *, persists: bool
    ) -> None:
        """For a session of this user. ``persists=False`` forces a plain table."""
        self._nft = nftables
        self._session = session
        self._uid = uid
        self._marks = marks
        self._persists = persists
        self._name: str | None = None  # of what blocks now
        self._is_plain = False
        self._before: str | None = None  # of what did before the plan that is being applied

    def begin(self, plan: Plan, cgroup: Cgroup | None) -> None:
        """Block what the plan says, if it does, beside what was blocked before; raises KernelError.
        ``commit`` or ``back`` follows.
        """
        self._before = self._name
        if not plan.blocks:
            self._name = None
            return
        try:
            name = str(block_name(plan, self._uid))
            texts = {p: render_block(plan, self._uid, cgroup, persists=p) for p in (True, False)}
        except ValueError as error:
            raise KernelError(Refusal.TOO_COMPLEX, str(error))
        there = block_tables()
        if name not in there:
            self._check_number(plan)
            self._make(name, texts)
        self._name = name

    def _check_number(self, plan: Plan) -> None:
        """A user who begins and ends sessions fills the kernel's memory no further than this."""
        digest = block_name(plan, self._uid).digest
        left = [name for name in self._dead() if name.digest != digest]
        if self._uid != 0 and len(left) >= MAX_DEAD_BLOCKS:
            raise KernelError(
                Refusal.TOO_MANY_BLOCKS, f"{len(left)} ended sessions still block their networks"
            )

    def commit(self, plan: Plan) -> int:
        """The plan is applied: what was blocked before is needed no more, nor is what dead sessions
        have blocked of just the same. How many of theirs are left, which are in nobody's way but
        may surprise somebody.
        """
        if self._before not in (None, self._name):
            self._delete(str(self._before))
        self._before = self._name
        digest = block_name(plan, self._uid).digest
        dead = self._dead()
        same = [name for name in dead if name.digest == digest]
        for name in same:
            self._delete(str(name))
        return len(dead) - len(same)

    def back(self) -> None:
        """The plan could not be applied."""
        if self._name not in (None, self._before):
            self._delete(str(self._name))
        self._name = self._before

    @property
    def name(self) -> str | None:
        """The table of this session's; None: it has none."""
        return self._name

    def let_out(self, cgroup: Cgroup) -> None:
        """Let the group's sockets through what dead sessions have blocked, and we."""
        for name in [*map(str, self._dead()), *filter(None, [self._name])]:
            with suppress(KernelError):  # ssh will say that it is blocked
                self._nft.run(let_out(name, cgroup))

    @property
    def is_plain(self) -> bool:
        """True if somebody else may alter what this session blocks."""
        return self._name is not None and self._is_plain

    def forget(self) -> None:
        """Somebody else has altered it: the next plan makes it anew, and not beside the old."""
        if self._name is not None:
            self._delete(self._name)
        self._name = self._before = None

    def lift(self) -> None:
        """Block no more."""
        if self._name is not None:
            self._delete(self._name)
        self._name = self._before = None

    def lift_dead(self) -> list[str]:
        """Remove what dead sessions have left, and name it."""
        return [f"inet {name}" for name in self._dead() if self._delete(str(name))]

    def _make(self, name: str, texts: Mapping[bool, str]) -> None:
        """Old kernels refuse the flag in several ways; see ``Nftables.make``."""
        if self._persists:
            try:
                self._nft.fill("inet", name, texts[True], owner=True, persists=True)
            except KernelError as error:
                if error.kind in BROKEN:
                    raise
            else:
                self._is_plain = False
                return
        self._nft.fill("inet", name, texts[False], owner=False)
        self._is_plain = True

    def _dead(self) -> list[BlockName]:
        """Those of dead sessions over which we have power; none if they can't be listed."""
        try:
            names = [read_block_name(name) for name in block_tables()]
        except KernelError:
            return []
        return [
            name
            for name in names
            if name is not None
            and name.session != self._session
            and self._uid in (0, name.uid)
            and not self._marks.is_alive(table_name(name.session))
        ]

    def _delete(self, name: str) -> bool:
        try:
            self._nft.delete(("inet", name))
        except KernelError:
            return False  # it has gone, or is somebody's after all
        return True


def peer_keys(plan: Plan) -> dict[str, list[bytes]]:
    """What is in the bypass sets, as the kernel compares it."""
    return {
        name: [endpoint_key(address, port) for address, port in peers]
        for name, peers in block_peers(plan).items()
    }
