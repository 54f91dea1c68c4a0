"""The rules of a session: a wanted state, and one worker that makes it so.

Whoever knows something new says what is wanted now (``want``), at any time and as often as he
likes, and needs not ask what was there before. The worker compares it with what is applied and asks
the helper for the difference, one request after another; what came meanwhile is one comparison.

**What may fail** (wanted): a required part that is refused is the end of the session: ``failed``
has the error then, once, and nothing more is asked for until something else is wanted. An optional
part is tried again after a pause, each longer than the one before, a few times; and as soon as
something else is wanted. Either leaves the kernel as it was (helper.protocol).

**A helper that is gone** is no failure of the rules: who waits for ``gone`` knows better what to
say about it.

**What others take away** (a firewall that flushes everybody's tables, somebody who moves us out of
our control group or deletes a device) is no longer applied, and so it is asked for again. The
helper tells of it, or we look (``check_guard``); a line says so.

**The end.** ``undo`` removes the rules and leaves the guard, since ssh is not yet at its end;
``unblock`` lifts the kill switch; ``close`` ends the helper, and with it all there is but that. All
have deadlines and raise nothing: there is nobody left who could do anything about it, and a helper
that is stuck ends by its own.

Invariants: one request at a time; what is applied is what was acknowledged, never what was refused.

Not here: which state is wanted (wanted), the conversation (helper).
"""

import asyncio
from contextlib import suppress

from sshunt.errors import UserError
from sshunt.helper.protocol import (
    NOT_PACKETED,
    Apply,
    Bypass,
    Guard,
    Packeted,
    Part,
    Request,
    Resolvers,
    Retain,
    Undo,
)
from sshunt.host.helper import CLOSE_DEADLINE_S, Helper
from sshunt.host.own import own_cgroup
from sshunt.host.packets import PacketChannel
from sshunt.host.wanted import (
    NOTHING,
    Wanted,
    after,
    after_refusal,
    next_optional,
    next_request,
    without,
)
from sshunt.tell.report import PartLost, Report, RulesRefused

#: Pauses before an optional part is tried again. What hinders it goes by itself within moments (the
#: helper has not yet seen that an address came or went) or not at all (there is no TUN device).
RETRY_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)


class Rules:
    """What a session has in the kernel. ``failed`` is set when a required part could not be had."""

    def __init__(self, helper: Helper, report: Report) -> None:
        """The helper belongs to us from now on."""
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[UserError] = loop.create_future()
        self._helper = helper
        self._report = report
        self._wanted = self._applied = NOTHING
        self._error: UserError | None = None  # of what is wanted now
        self._failures = 0  # of the optional part, in a row
        self._retry_at = 0.0
        self._news = asyncio.Event()
        self._is_settled = asyncio.Event()
        #: The conversation with the packet process.
        self.packets = PacketChannel(loop)
        self._looking: asyncio.Future[Packeted] | None = None
        self._lost: set[Part] = set()  # by others, and to be put back
        self._cgroup = ""  # ours, as of when we were guarded
        self._worker = asyncio.ensure_future(self._work())
        self._worker.add_done_callback(self._on_worker_end)
        self._following = asyncio.ensure_future(self._follow())

    @property
    def gone(self) -> asyncio.Event:
        """Set when the helper has ended, whoever ended it."""
        return self._helper.gone

    @property
    def guarded(self) -> bool:
        """True if a control group keeps our own connections from being captured."""
        return self._helper.guarded

    @property
    def owner(self) -> bool:
        """True if the kernel removes the rules by itself."""
        return self._helper.owner

    @property
    def holds(self) -> bool:
        """True if rules hold connections back where the plan wants that."""
        return self._helper.holds

    @property
    def others_block(self) -> int:
        """How many dead sessions' kill switches there are beside what was applied."""
        return self._helper.others_block

    def start_packets(self) -> None:
        """Have packets looked at from now on; see ``looks_at``."""
        self._looking = asyncio.ensure_future(self._helper.packets(self.packets.theirs))
        self._looking.add_done_callback(_seen)

    async def looks_at(self) -> Packeted:
        """Which packets can be looked at here, once ``start_packets`` was called; raises
        UserError.
        """
        return NOT_PACKETED if self._looking is None else await self._looking

    async def suspects(self) -> tuple[str, ...]:
        """Chains of others that may stop what is captured, for a person to read; raises
        UserError.
        """
        return await self._helper.suspects()

    def want(self, wanted: Wanted) -> None:
        """Let this be the state of the kernel, instead of what was wanted before."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._error = None
        self._failures, self._retry_at = 0, 0.0
        self._is_settled.clear()
        self._news.set()

    def check_guard(self) -> None:
        """To be called once a second: whether somebody has taken us out of our control group."""
        if self._applied.guard and self.guarded and own_cgroup() != self._cgroup:
            self._lose(Part.GUARD)

    async def settled(self) -> None:
        """Wait until all that is required is as it is wanted by then; raises UserError if that
        can't be had.
        """
        await self._settle()
        if self._worker.done():
            self._worker.result()
        if self._error is not None:
            raise self._error

    async def undo(self) -> None:
        """Remove the rules, leave the guard."""
        self.want(Wanted(guard=self._wanted.guard))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settle(), CLOSE_DEADLINE_S)

    async def unblock(self) -> None:
        """Lift the kill switch."""
        with suppress(UserError, asyncio.TimeoutError):
            await asyncio.wait_for(self._helper.unblock(), CLOSE_DEADLINE_S)

    async def close(self) -> None:
        """Undo everything, and wait until the helper has ended."""
        self._worker.cancel()
        self._following.cancel()
        if self._looking is not None:
            self._looking.cancel()
        with suppress(UserError):
            await self._helper.close()
        self.packets.close()

    async def _settle(self) -> None:
        if not self._worker.done():  # by a mistake of ours
            await self._is_settled.wait()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            while self._lost:
                self._applied = without(self._applied, self._lost.pop())
            request = None if self._error else next_request(self._applied, self._wanted)
            if request is not None:
                await self._require(request)
                continue
            self._is_settled.set()
            optional = None if self._error else next_optional(self._applied, self._wanted)
            if optional is None or self._failures > len(RETRY_AFTER_S):
                await self._news.wait()
            elif loop.time() < self._retry_at:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), self._retry_at - loop.time())
            else:
                await self._try(optional)

    async def _follow(self) -> None:
        while True:
            for part in await self._helper.lost():
                self._lose(part)

    def _lose(self, part: Part) -> None:
        """Have it put back."""
        if part not in self._lost:
            self._report.say(PartLost(part.value))
        self._lost.add(part)
        self._failures, self._retry_at = 0, 0.0
        self._is_settled.clear()
        self._news.set()

    async def _require(self, request: Request) -> None:
        wanted = self._wanted
        try:
            await self._ask(request)
        except UserError as error:
            self._applied = after_refusal(self._applied, request)
            if wanted == self._wanted:
                self._error = error
            if not self.failed.done() and not self.gone.is_set():
                self.failed.set_result(error)

    async def _try(self, request: Request) -> None:
        wanted = self._wanted
        try:
            await self._ask(request)
        except UserError as error:
            if wanted == self._wanted:
                self._failures += 1
                pause_s = RETRY_AFTER_S[min(self._failures, len(RETRY_AFTER_S)) - 1]
                self._retry_at = asyncio.get_running_loop().time() + pause_s
            self._report.say(RulesRefused(error.message))

    async def _ask(self, request: Request) -> None:
        """Have it done; raises UserError, and then it is not."""
        helper = self._helper
        match request:
            case Guard():
                if await helper.guard():
                    self._cgroup = own_cgroup()
            case Apply():
                await helper.apply(request.plan)
            case Resolvers():
                await helper.resolvers(request.addresses)
            case Bypass():
                await helper.bypass(request.endpoints)
            case Retain():
                await helper.retain(request.addresses)
            case Undo():
                await helper.undo()
        self._applied = after(self._applied, request)

    def _on_worker_end(self, worker: "asyncio.Future[None]") -> None:
        """Let the loop's handler of exceptions end the session, and nobody wait for ever."""
        self._is_settled.set()
        if not worker.cancelled() and (error := worker.exception()) is not None:
            context = {"message": "the rules' worker ended", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _seen(done: "asyncio.Future[Packeted]") -> None:
    """Whoever wants to know what became of it asks; if we end before, nobody does."""
    if not done.cancelled():
        done.exception()
