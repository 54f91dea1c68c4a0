"""One session's conversation with its client: order, deadlines, and undoing at the end.

The loop is synchronous: there is one client and hardly anything to do meanwhile. It sleeps in
poll(2) on the client's socket, a pipe into which the kernel's SIGTERM is written, so that no signal
interrupts a request half-way, and the kernel's news of addresses; where the table is a plain one it
wakes now and then to say that we live. SIGTERM and news are heard while a reply waits, too.

Which request is allowed when::

    state   HELLO    GUARD,  APPLY      BYPASS, RESOLVERS,       UNDO     end of stream, SIGTERM
                     PACKETS            RETAIN, SUSPECTS
    NEW     -> IDLE  -       -          -                        -        exit
    IDLE    -        IDLE    -> ACTIVE  -                        IDLE     undo, exit
    ACTIVE  -        ACTIVE  ACTIVE     ACTIVE                   -> IDLE  undo, exit

    UNBLOCK is allowed in IDLE and ACTIVE, CLEANUP in IDLE; neither changes the state.

The end of the packet process is the end of the conversation, too: nobody reads what rules log then.

What is not in the table is refused with WRONG_ORDER and changes nothing. What does not decode is
refused with BAD_REQUEST, and then the conversation ends, because a client that sends such bytes is
not ours. A bug ends it too: the client gets the traceback (we have no terminal, see ``__main__``).

A request must have come whole some seconds after its first byte, and its reply must be taken in
the same time; else the conversation ends in order, as if the client were gone. What is done for a
request has deadlines of its own (nftables, guard). The client has the same open socket as we: it
may make it a blocking one behind our back, or read what we were told is there. So no call of ours
trusts in what the socket was made to be.

Requests are carried out at a pace (``pace``): who asks without pause waits, and has what there is
for him. Each is written down (``audit``).

Each of a user's helpers has a slot from its first moment on, whether the client ever says anything
or not. One too many waits for the greeting, since nobody reads an answer before, and says so;
how many may wait like that is limited, too, and one more of these ends without a word.

Not here: what a request means to the kernel (apply).
"""

import math
import os
import select
import signal
import socket
import time
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum, auto

from sshunt.capture.nft import RENEW_EVERY_S
from sshunt.capture.plan import Method
from sshunt.helper.apply import Kernel, begin
from sshunt.helper.audit import Audit
from sshunt.helper.iptables import IptablesKernel
from sshunt.helper.marks import Mark, Marks
from sshunt.helper.pace import Pace
from sshunt.helper.protocol import (
    MAX_HELPERS,
    VERSION,
    Applied,
    Apply,
    Bypass,
    Cleaned,
    Cleanup,
    Done,
    Guard,
    Guarded,
    Hello,
    KernelError,
    Lost,
    Packets,
    Refusal,
    Refused,
    Reply,
    Request,
    RequestError,
    Resolvers,
    Retain,
    Suspected,
    Suspects,
    Unblock,
    Undo,
    Welcome,
    described,
)
from sshunt.helper.starter import maker_of
from sshunt.helper.wire import decode_request_untrusted, encode_reply, taken_line

#: The deadline for a request to come whole, and for a reply to be taken. Each takes milliseconds.
REQUEST_DEADLINE_S = 10.0

_READ_BYTES = 64 * 1024

#: Sockets that may ride on what is read at once, or wait for the request that they belong to.
_MOST_RIDERS = 4

_RIDERS_BYTES = socket.CMSG_SPACE(_MOST_RIDERS * array("i").itemsize)

#: The least time between two times at which the client hears what others have taken away.
_TELL_EVERY_S = 1.0

_AT_ONCE = socket.MSG_DONTWAIT

#: The most helpers of a user beyond MAX_HELPERS that wait to say so.
_MOST_REFUSED = 2

#: Their longest wait for the greeting, which the client sends when it has been loaded.
_REFUSED_WAIT_S = 60.0


class State(Enum):
    """Where the conversation is."""

    NEW = auto()
    IDLE = auto()
    ACTIVE = auto()


_ALLOWED = {
    State.NEW: (Hello,),
    State.IDLE: (Guard, Packets, Apply, Undo, Unblock, Cleanup),
    State.ACTIVE: (Guard, Packets, Apply, Bypass, Resolvers, Retain, Suspects, Undo, Unblock),
}


def serve(
    client: socket.socket, *, user: int = 0, elsewhere: bool = False, owner: bool = True
) -> None:
    """Carry out requests until the client is gone or SIGTERM comes; leaves nothing behind.

    ``user`` is whose helper this is, who is refused if he is ``elsewhere`` (starter).
    ``owner=False`` makes plain tables even where the kernel could own them.
    """
    client.setblocking(False)
    begin()
    audit = Audit(user, maker_of(client)[0])
    slot: Mark | None = None
    try:
        marks = Marks()
        if user:
            slot = marks.take_slot(user, MAX_HELPERS + _MOST_REFUSED)
            if slot is None:
                return
            if slot.number >= MAX_HELPERS:
                raise KernelError(
                    Refusal.TOO_MANY, f"{MAX_HELPERS} helpers of this user are running"
                )
        if elsewhere:
            raise KernelError(Refusal.ELSEWHERE, "the helper is in another network namespace")
        _converse(client, _Service(client, marks, audit, user=user, owner=owner))
    except KernelError as error:
        _refuse(client, Refused(error.kind, error.message))
    finally:
        audit.close()
        if slot is not None:
            slot.close()


def _converse(client: socket.socket, service: "_Service") -> None:
    ears = _Ears(client, service)
    pace = Pace()
    try:
        for line in _requests(client, ears, service):
            ears.rest(pace.wait_s(time.monotonic()))
            begun = time.monotonic()
            reply, last = service.answer(line)
            pace.spent(time.monotonic(), time.monotonic() - begun)
            _send(client, encode_reply(reply), ears)
            if last:
                break
    except (ConnectionError, TimeoutError, _TerminatedError):
        pass  # the client died, or is as good as dead; so does the session
    finally:
        service.close()


def _refuse(client: socket.socket, refusal: Refused) -> None:
    """Answer the greeting, if there ever is one."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    with suppress(OSError):
        if poll.poll(_milliseconds(_REFUSED_WAIT_S)) and client.recv(_READ_BYTES, _AT_ONCE):
            client.send(encode_reply(refusal), _AT_ONCE)  # nothing else is in its way


class _Service:
    """The state of the conversation."""

    def __init__(
        self, client: socket.socket, marks: Marks, audit: Audit, *, user: int, owner: bool
    ) -> None:
        self._client = client
        self._marks = marks
        self._audit = audit
        self._user = user
        self._owner = owner
        self._state = State.NEW
        self._session = ""
        self._method = Method.NFT
        self._kernel: Kernel | IptablesKernel | None = None
        self._riders: deque[socket.socket] = deque()  # for requests that are still to come

    def take_riders(self, descriptors: Iterable[int]) -> None:
        """These have come with what was read. What is no socket, or too many, is closed."""
        for descriptor in descriptors:
            try:
                rider = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
                continue
            if len(self._riders) < _MOST_RIDERS:
                self._riders.append(rider)
            else:
                rider.close()

    def answer(self, line: bytes) -> tuple[Reply, bool]:
        """The reply to a request, and whether it is the last one."""
        try:
            request = decode_request_untrusted(line)
        except RequestError as error:
            refused = Refused(Refusal.BAD_REQUEST, str(error))
            self._audit.answered(self._session, "what is no request", refused)
            return refused, True
        reply, last = self._answer(request)
        self._audit.answered(self._session, described(request), reply)
        return reply, last

    def _answer(self, request: Request) -> tuple[Reply, bool]:
        try:
            return self._carry_out(request), False
        except KernelError as error:
            return Refused(error.kind, error.message), self._kernel is None
        except Exception:  # noqa: BLE001 (the top of the process: told, then the session ends)
            return Refused(Refusal.INTERNAL, traceback.format_exc()), True

    @property
    def must_renew(self) -> bool:
        """True if there is a plain table."""
        return self._kernel is not None and self._kernel.is_plain

    def renew(self) -> None:
        """To be called every RENEW_EVERY_S."""
        if self._kernel is not None:
            with suppress(KernelError):  # somebody's "flush ruleset", or it succeeds the next time
                self._kernel.renew()

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors of the kernel's news, and what to do about these."""
        return {} if self._kernel is None else self._kernel.watched()

    @property
    def has_lost(self) -> bool:
        """True if ``take_lost`` has something to say."""
        return self._kernel is not None and bool(self._kernel.lost)

    def take_lost(self) -> list[Lost]:
        """What has been taken away by others since it was last told."""
        if self._kernel is None:
            return []
        lost = [Lost(part) for part in sorted(self._kernel.lost)]
        self._kernel.lost.clear()
        return lost

    @property
    def packet_process(self) -> int:
        """A descriptor that is readable when the packet process has ended; -1 if there is none."""
        return -1 if self._kernel is None else self._kernel.packet_process

    def close(self) -> None:
        """Undo whatever is done."""
        while self._riders:
            self._riders.popleft().close()
        if self._kernel is not None:
            with suppress(KernelError):  # there is nobody left to tell; our end does the rest
                self._kernel.close()

    def _carry_out(self, request: Request) -> Reply:
        if not isinstance(request, _ALLOWED[self._state]):
            name = type(request).__name__
            return Refused(Refusal.WRONG_ORDER, f"{name} in state {self._state.name}")
        if isinstance(request, Hello):
            return self._hello(request)
        if self._kernel is None:
            raise RuntimeError("a state beyond NEW without a kernel")
        match request:
            case Guard():
                return Guarded(self._kernel.guard())
            case Packets():
                if not self._riders:
                    return Refused(Refusal.NO_CHANNEL, "no socket rides on the request")
                return self._kernel.packets(self._riders.popleft())
            case Apply():
                if (request.plan.session, request.plan.method) != (self._session, self._method):
                    return Refused(Refusal.BAD_REQUEST, "a plan of another session")
                owner = self._kernel.apply(request.plan)
                self._state = State.ACTIVE
                return Applied(owner, self._kernel.blocked_by_others, self._kernel.holds)
            case Bypass():
                self._kernel.bypass(request.endpoints)
            case Resolvers():
                self._kernel.resolvers(request.addresses)
            case Retain():
                self._kernel.retain(request.addresses)
            case Suspects():
                return Suspected(self._kernel.suspects())
            case Undo():
                self._kernel.undo()
                self._state = State.IDLE
            case Unblock():
                self._kernel.unblock()
            case Cleanup():
                return Cleaned(self._kernel.clean_up())
        return Done()

    def _hello(self, request: Hello) -> Reply:
        if request.version != VERSION:
            return Refused(Refusal.VERSION, f"the helper speaks version {VERSION} only")
        self._session = request.session
        if request.method is Method.NAT:
            self._kernel = IptablesKernel(request.session, self._client, self._marks)
        else:
            self._kernel = Kernel(
                request.session, self._client, self._marks, user=self._user, owner=self._owner
            )
        self._method = request.method
        self._state = State.IDLE
        return Welcome(VERSION)


class _TerminatedError(Exception):
    """SIGTERM has come, or the packet process or the client is gone."""


class _Ears:
    """Waits for the client, and hears SIGTERM and the kernel's news whatever it waits for."""

    def __init__(self, client: socket.socket, service: _Service) -> None:
        self._client = client
        self._service = service
        self._termination = _termination()
        self._poll = select.poll()
        self._poll.register(self._termination, select.POLLIN)
        self._heard: set[int] = set()  # descriptors of the service's

    def wait(self, event: int, wait_s: float) -> bool:
        """True if the client's socket is ready for ``event`` (poll(2)), or has ended; False after
        so long, or if something else was heard; raises _TerminatedError.
        """
        self._poll.register(self._client, event)
        watched, packets = self._service.watched(), self._service.packet_process
        for descriptor in {*watched, packets} - self._heard - {-1}:
            self._poll.register(descriptor, select.POLLIN)
            self._heard.add(descriptor)
        ready = {descriptor for descriptor, _ in self._poll.poll(_milliseconds(wait_s))}
        if self._termination in ready or packets in ready:
            raise _TerminatedError
        for descriptor in watched.keys() & ready:
            watched[descriptor]()
        return self._client.fileno() in ready

    def rest(self, wait_s: float) -> None:
        """Ask no more of the kernel for so long; raises _TerminatedError, also when the client has
        gone meanwhile.
        """
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            if self.wait(0, min(left_s, RENEW_EVERY_S)):  # POLLHUP is always told
                raise _TerminatedError
            if self._service.must_renew:
                self._service.renew()


def _requests(client: socket.socket, ears: _Ears, service: _Service) -> Iterator[bytes]:
    """Whole lines, and at last a line that is too long; ends at EOF, or when a line is not whole in
    time; raises _TerminatedError. Lets the service renew meanwhile.
    """
    buffer = bytearray()
    renewal, deadline, telling = 0.0, math.inf, 0.0
    while True:
        line = taken_line(buffer)
        now = time.monotonic()
        if not line and now >= deadline:
            return
        if now >= renewal:
            service.renew()
            renewal = now + RENEW_EVERY_S
        if service.has_lost and now >= telling:
            telling = now + _TELL_EVERY_S
            for lost in service.take_lost():
                _send(client, encode_reply(lost), ears)
        next_telling = telling if service.has_lost else math.inf
        wait_s = min(deadline, renewal if service.must_renew else math.inf, next_telling) - now
        # A thousand requests may be in the buffer: before each we hear what else there is.
        is_readable = ears.wait(select.POLLIN, 0.0 if line else wait_s)
        if line:
            yield line
            deadline = time.monotonic() + REQUEST_DEADLINE_S if buffer else math.inf
        elif is_readable:
            try:
                data, ancillary, _, _ = client.recvmsg(_READ_BYTES, _RIDERS_BYTES, _AT_ONCE)
            except BlockingIOError:
                continue  # somebody else has read it
            service.take_riders(_descriptors(ancillary))
            if not data:
                return
            buffer += data
            deadline = min(deadline, time.monotonic() + REQUEST_DEADLINE_S)


def _send(client: socket.socket, data: bytes, ears: _Ears) -> None:
    """All of it, at once if it can be; else raises TimeoutError, or _TerminatedError."""
    deadline = time.monotonic() + REQUEST_DEADLINE_S
    while data:
        try:
            data = data[client.send(data, _AT_ONCE) :]
        except BlockingIOError:
            left_s = deadline - time.monotonic()
            if left_s < 0:
                raise TimeoutError("nobody takes the reply")
            ears.wait(select.POLLOUT, left_s)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Those that have come. (socket.recv_fds hears no flags, and might wait for nothing.)"""
    found = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _milliseconds(wait_s: float) -> int | None:
    """As poll(2) takes it, rounded up; None means for ever."""
    return None if wait_s == math.inf else max(0, math.ceil(wait_s * 1000))


def _termination() -> int:
    """A descriptor that becomes readable at SIGTERM."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    return read_end
