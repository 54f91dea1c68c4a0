"""The client's conversation with the privileged helper: asking it, noticing its death.

``start_helper`` greets a helper that ``elevate`` has started. ``Helper`` turns requests into
coroutines with deadlines, and refusals into UserErrors.

The socket is the only tie. Its end means death: to the helper ours, to us the helper's (``gone``).
When it fires, the client has to stop or to start another helper. Rules that the kernel owns are
already gone then; others may be there still, if the helper was killed.

Not here: starting it (elevate), what it does (helper.server), what it is asked, and when (rules).
"""

import asyncio
import errno
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence

from sshunt.capture.plan import Method, Plan
from sshunt.errors import ExitCode, UserError
from sshunt.helper.protocol import (
    EXIT_NO_SOCKET,
    MAX_REPLY_BYTES,
    NOT_PACKETED,
    VERSION,
    Applied,
    Apply,
    Bypass,
    Cleaned,
    Cleanup,
    Guard,
    Guarded,
    Hello,
    Lost,
    Packeted,
    Packets,
    Part,
    Refusal,
    Refused,
    Reply,
    ReplyError,
    Request,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Unblock,
    Undo,
    described,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.host.elevate import SERVICE, HelperProcess
from sshunt.model import Endpoint
from sshunt.tell.report import HelperAsked, Report

#: The deadline for the greeting where a password is asked for: sudo's own passwd_timeout is 5
#: minutes for each of three tries.
PASSWORD_DEADLINE_S = 960.0

#: The deadline for it without a password: a Python start (50 ms) on a machine that may be slow and
#: busy. The same for the end of what started it.
START_DEADLINE_S = 60.0

#: The pause between two looks whether sudo has ended, in the moment in which it does.
STARTER_POLL_S = 0.002

#: The deadline for a request: a little more than the helper's own for two calls into libnftables,
#: so that what it has to say about them comes first.
REQUEST_DEADLINE_S = 125.0

#: The deadline for undoing, and for the helper's end: whoever has asked us to stop does not wait
#: for one that is stuck, which its own deadline ends.
CLOSE_DEADLINE_S = 12.0

_HINTS = {
    Refusal.NO_NFT: "install it: apt install nftables, or dnf install nftables",
    Refusal.NOT_PERMITTED: "in a container it needs CAP_NET_ADMIN (docker run --cap-add NET_ADMIN)",
    Refusal.KERNEL: "nftables with nat is needed: Linux 5.2 or newer with nf_tables and nft_nat",
    Refusal.NO_NF_TABLES: "modprobe nf_tables; a kernel that was built without it can't redirect",
    Refusal.NO_IPTABLES: "install it: apt install iptables, or dnf install iptables",
    Refusal.IPTABLES: "does somebody hold its lock? What does `sudo iptables-save -t nat` say?",
    Refusal.NO_PLACE: "root must be able to write /run (docker run --tmpfs /run)",
    Refusal.TOO_MANY: "end some of the other sshunt sessions first",
    Refusal.TOO_MANY_BLOCKS: "let them through again: sshunt cleanup",
    Refusal.CRASHED: "does `sudo nft list ruleset` crash, too? A table that a newer nft has made,"
    " in a container with this host's network, does that: update nftables, or remove it there",
    Refusal.STUCK: "does `sudo nft list ruleset` get stuck, too? then the kernel or nftables does",
    Refusal.TOO_COMPLEX: "use fewer port ranges, or wider networks",
    Refusal.LISTENER: "give --listen an address of this host",
    Refusal.RESOLVER: "--dns stands in for the resolvers in this host's /etc/resolv.conf only",
    Refusal.NOT_OURS: "what is kept is what this host has had since sshunt was started",
    Refusal.NOT_RETAINED: "a TUN device is needed: modprobe tun,"
    " or docker run --device /dev/net/tun",
    Refusal.VERSION: "two versions of sshunt are mixed here: install it again (where the helper was"
    " installed for all: sshunt install-helper, as root)",
    Refusal.ELSEWHERE: "run it as root there: root's sshunt starts a helper of its own",
}


async def start_helper(
    *,
    session: str,
    process: HelperProcess | None = None,
    report: Report | None = None,
    method: Method = Method.NFT,
) -> "Helper":
    """A running helper for this session; raises UserError. May ask for a password.

    ``report`` hears of each request; None: nobody does.
    ``process`` is one that was started earlier; it belongs to this call from now on.
    """
    process = HelperProcess() if process is None else process
    try:
        reader, writer = await asyncio.open_connection(sock=process.take(), limit=MAX_REPLY_BYTES)
    except BaseException:
        process.close()
        raise
    helper = Helper(reader, writer, report)
    try:
        await _greet(helper, process, session, method)
    except BaseException:
        helper.abandon()
        process.end()
        raise
    return helper


class CaptureRefused(UserError):  # noqa: N818 (an error for people, like its base)
    """The helper can't capture here; ``kind`` says why."""

    def __init__(self, message: str, hint: str, exit_code: ExitCode, kind: Refusal) -> None:
        super().__init__(message, hint, exit_code)
        self.kind = kind


class Helper:
    """A helper at work. Requests are carried out one after another.

    ``gone`` is set when the conversation has ended, whoever ended it.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        report: Report | None = None,
    ) -> None:
        self._report = report
        self._lost: set[Part] = set()  # until somebody takes it from here
        self._has_lost = asyncio.Event()
        self.gone = asyncio.Event()
        self.guarded = False  # True: a cgroup keeps our own connections from being captured
        self.owner = False  # True: the kernel removes the rules by itself
        self.others_block = 0  # dead sessions' kill switches that are still there
        self.holds = True  # connections are held back, if the plan wants that
        self._applied = False  # True: there are rules
        self._writer = writer
        self._turn = asyncio.Lock()
        self._unanswered: deque[asyncio.Future[Reply | None]] = deque()  # in the order of asking
        self._listening = asyncio.create_task(self._listen(reader))

    async def guard(self) -> bool:
        """Keep what we and our future children connect to from being captured.

        False if that can't be had here; then ``bypass`` has to do. Sockets that exist already are
        not covered.
        """
        reply = await self._ask(Guard())
        self.guarded = isinstance(reply, Guarded) and reply.guarded
        return self.guarded

    async def packets(self, channel: socket.socket) -> Packeted:
        """Have packets looked at; whoever has the other end of ``channel`` hears of them (packets).
        Closes ``channel``. Raises UserError.
        """
        with channel:
            reply = await self._ask(Packets(), riders=(channel.fileno(),))
        return reply if isinstance(reply, Packeted) else NOT_PACKETED

    async def apply(self, plan: Plan) -> None:
        """Capture what the plan says, instead of what one before it said; raises UserError, and
        then nothing has changed. Retained addresses stay so.
        """
        try:
            reply = await self._ask(Apply(plan))
        except ValueError as error:
            raise UserError(str(error), "use fewer, wider networks", ExitCode.USAGE)
        self.owner = isinstance(reply, Applied) and reply.owner
        self.others_block = reply.others_block if isinstance(reply, Applied) else 0
        self.holds = isinstance(reply, Applied) and reply.holds
        self._applied = True

    async def bypass(self, endpoints: Iterable[Endpoint]) -> None:
        """Never capture connections to these, instead of those named before."""
        await self._ask(Bypass(tuple(endpoints)))

    async def resolvers(self, addresses: Iterable[str]) -> None:
        """Capture what is asked of these, instead of those named before."""
        await self._ask(Resolvers(tuple(addresses)))

    async def retain(self, addresses: Iterable[str]) -> None:
        """Let these addresses, and no others, stay this host's own, until ``undo`` or our end.

        Only while a plan is applied. Raises UserError, and then those that were retained are so
        still; ValueError for what Retain does not take: see ``can_be_retained``, MAX_RETAINED.
        """
        await self._ask(Retain(tuple(addresses)))

    async def suspects(self) -> tuple[str, ...]:
        """Chains of others that may stop what is captured, for a person to read."""
        reply = await self._ask(Suspects())
        return reply.chains if isinstance(reply, Suspected) else ()

    async def undo(self) -> None:
        """Leave the kernel as it was; the helper stays."""
        await self._ask(Undo())
        self._applied = False

    async def unblock(self) -> None:
        """Lift the kill switch, if there is one. Nothing else does."""
        await self._ask(Unblock())

    async def cleanup(self) -> tuple[str, ...]:
        """Remove what dead sessions have left, their kill switches included; names it."""
        reply = await self._ask(Cleanup())
        return reply.removed if isinstance(reply, Cleaned) else ()

    async def lost(self) -> list[Part]:
        """What somebody else has removed or altered since the last call; waits until there is
        something.
        """
        await self._has_lost.wait()
        self._has_lost.clear()
        lost = sorted(self._lost)
        self._lost.clear()
        return lost

    async def close(self) -> None:
        """Undo, and wait until the helper has ended. Never raises UserError."""
        try:
            if not self.gone.is_set():
                self._writer.write_eof()  # means UNDO, whatever state it is in
                await asyncio.wait_for(self.gone.wait(), CLOSE_DEADLINE_S)
        except (OSError, asyncio.TimeoutError):
            pass  # stuck; its own deadline ends it
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the socket, which is a goodbye too: the helper undoes everything and ends."""
        self._listening.cancel()
        self._writer.close()
        self._on_gone()

    async def greet(self, session: str, deadline_s: float, method: Method = Method.NFT) -> None:
        """The first request; ``start_helper`` makes it."""
        await self._ask(Hello(VERSION, session, method), deadline_s)

    async def _ask(
        self,
        request: Request,
        deadline_s: float = REQUEST_DEADLINE_S,
        riders: Sequence[int] = (),
    ) -> Reply:
        """Its reply; raises UserError, and ValueError for a request that is too large."""
        line = encode_request(request)
        begin = time.monotonic()
        refusal = "no answer"
        try:
            reply = await self._ask_encoded(line, deadline_s, riders)
            refusal = reply.kind.value if isinstance(reply, Refused) else ""
        finally:
            if self._report is not None:
                took_s = time.monotonic() - begin
                self._report.say(HelperAsked(described(request), took_s, refusal))
        if isinstance(reply, Refused):
            raise _refusal(reply)
        return reply

    async def _ask_encoded(self, line: bytes, deadline_s: float, riders: Sequence[int]) -> Reply:
        async with self._turn:
            if self.gone.is_set():
                raise _lost(self._fate_of_rules)
            replied: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
            try:
                if riders:
                    self._send_with(line, riders)
                else:
                    self._writer.write(line)
                self._unanswered.append(replied)
                await asyncio.wait_for(self._writer.drain(), deadline_s)
                reply = await asyncio.wait_for(replied, deadline_s)
            except (asyncio.TimeoutError, OSError):
                reply = None
            if reply is None:
                # Also after a deadline: a late reply must not answer a later request.
                self.abandon()
                raise _lost(self._fate_of_rules)
        return reply

    def _send_with(self, line: bytes, riders: Sequence[int]) -> None:
        """All of it at once, past asyncio: what was asked before has been answered, so there is
        room for a line. Raises OSError.
        """
        with self._writer.get_extra_info("socket").dup() as sock:
            if socket.send_fds(sock, [line], riders) != len(line):
                raise OSError(errno.ENOBUFS, "no room for a line")

    @property
    def _fate_of_rules(self) -> str:
        """What becomes of the rules if the helper is gone now, for the end of a sentence."""
        if not self._applied:
            return ""
        return ", and its rules with it" if self.owner else "; its rules may still be in place"

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand replies to who has asked until the helper is gone; what is not a reply, or one to
        nothing, is the end as well.
        """
        try:
            while line := await reader.readline():
                reply = decode_reply(line)
                if isinstance(reply, Lost):
                    self._lost.add(reply.part)
                    self._has_lost.set()
                    continue
                if not self._unanswered:
                    break
                replied = self._unanswered.popleft()
                if not replied.done():  # else it was given up, by who was cancelled meanwhile
                    replied.set_result(reply)
        except (OSError, ValueError, ReplyError):
            pass
        self._on_gone()

    def _on_gone(self) -> None:
        self.gone.set()
        for replied in self._unanswered:
            if not replied.done():
                replied.set_result(None)
        self._unanswered.clear()


# --- the greeting -------------------------------------------------------------------------------


async def _greet(helper: Helper, process: HelperProcess, session: str, method: Method) -> None:
    """Say HELLO and wait for the end of what was started; raises UserError."""
    refused: UserError | None = None
    try:
        deadline_s = PASSWORD_DEADLINE_S if process.asks else START_DEADLINE_S
        await helper.greet(session, deadline_s, method)
    except _LostError as error:
        refused = _no_service() if process.tool == SERVICE else error
    except UserError as error:
        refused = error
    try:
        status = await asyncio.wait_for(_end_of(process), START_DEADLINE_S)
    except asyncio.TimeoutError:
        raise _not_started("did not answer in time", process.tool)
    if status == EXIT_NO_SOCKET:
        raise _not_started("replaced the helper's input (log_input in sudoers?)", process.tool)
    if status != 0:
        raise _not_started(f"ended with status {status}", process.tool)
    if refused is not None:
        raise refused


async def _end_of(process: HelperProcess) -> int:
    """Its exit status, which is there as soon as the helper has answered or has failed."""
    while (status := process.poll()) is None:
        await asyncio.sleep(STARTER_POLL_S)
    return status


def _not_started(what: str, tool: str | None) -> UserError:
    if tool is None:
        return UserError(f"the helper {what}", "please report this as a bug", ExitCode.PRIVILEGE)
    return UserError(
        f"{tool} did not start the privileged helper: it {what}",
        f"its own message is above; check that `{tool} true` works, or run sshunt as root",
        ExitCode.PRIVILEGE,
    )


def _no_service() -> UserError:
    return UserError(
        f"the service {SERVICE} did not answer",
        f"`journalctl -u '{SERVICE}@*'` may say why; without it, sudo is asked:"
        f" systemctl stop {SERVICE}.socket",
        ExitCode.PRIVILEGE,
    )


class _LostError(UserError):
    """The conversation has ended."""


def _lost(fate_of_rules: str) -> UserError:
    return _LostError(
        f"the privileged helper is gone{fate_of_rules}",
        "was it killed? start sshunt again (it removes what is left of such sessions)",
        ExitCode.CAPTURE,
    )


def _refusal(reply: Refused) -> UserError:
    if reply.kind is Refusal.NOT_PERMITTED:
        return UserError(
            f"the kernel does not permit rules here: {reply.message}",
            _HINTS[reply.kind],
            ExitCode.PRIVILEGE,
        )
    if reply.kind in (Refusal.NOT_RETAINED, Refusal.NOT_OURS):
        return UserError(
            f"can't keep this host's former addresses: {reply.message}",
            _HINTS[reply.kind],
            ExitCode.CAPTURE,
        )
    hint = _HINTS.get(reply.kind)
    if hint is None:
        return UserError(
            f"the helper refused ({reply.kind.value}): {reply.message}",
            "please report this as a bug",
            ExitCode.INTERNAL,
        )
    exit_code = ExitCode.LISTEN if reply.kind is Refusal.LISTENER else ExitCode.CAPTURE
    message = f"can't capture connections: {reply.message}"
    return CaptureRefused(message, hint, exit_code, reply.kind)
