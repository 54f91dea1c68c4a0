"""The packet process: a child of the helper that looks at packets, and makes some. Root; Linux.

It has what needs a quick answer: the helper may be busy with thousands of routes for a second, and
meanwhile no packet must wait. So it is a process of its own, with sockets of its own (raw ones,
NFLOG's, conntrack's) and two capabilities (CAP_NET_ADMIN, CAP_NET_RAW). It never has the netlink
socket that owns our table, which lives as long as that is open anywhere.

    client <==SOCK_SEQPACKET==> packet process <==stream, plans== helper

What it does is in its parts, each of which serves a range of kinds (packet_protocol) and has
descriptors of its own. **What a client may have of it**: only what concerns packets that the part
has seen itself, or connections of the plan's own listeners. So somebody who has taken the client
over can't make packets of his own, nor ask about the connections of others. Each part says in its
head why that is so.

It ends with the helper, and the helper with it: rules that log and drop need somebody who reads.
If the helper is killed, the kernel kills us (PR_SET_PDEATHSIG).

Not here: the parts; when it is started (apply).
"""

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from sshunt.capture.plan import Plan
from sshunt.helper.echoes import Echoes
from sshunt.helper.held_syns import HeldSyns
from sshunt.helper.listening import with_own_listeners
from sshunt.helper.packet_protocol import (
    ECHO_KINDS,
    MAX_MESSAGE_BYTES,
    SYN_KINDS,
    UDP_KINDS,
    PacketError,
)
from sshunt.helper.part import Out, Part
from sshunt.helper.privileges import NET_ADMIN, NET_RAW, drop_capabilities, end_with_parent
from sshunt.helper.processes import close_others, hear_no_signals
from sshunt.helper.protocol import Apply, KernelError, Refusal, Undo
from sshunt.helper.starter import maker_of
from sshunt.helper.udp_flows import UdpFlows
from sshunt.helper.wire import decode_request_untrusted, encode_request, taken_line

#: How often parts look at what has become old.
TICK_S = 0.5

#: Messages of the client's that are taken before the others have their turn.
_MESSAGES_A_TURN = 64

#: The deadline for the child to begin, and to take a plan of thousands of routes.
_DEADLINE_S = 10.0

_READ_BYTES = 64 * 1024

#: How the child says that it has begun: the NFLOG groups of SYNs and echo requests, 0: none; and
#: whether flows of UDP can be looked up.
_BEGUN = struct.Struct("!HH?")


def parts(out: Out) -> list[Part]:
    """What the process does; a part that this kernel has nothing for is left out."""
    found: list[Part] = []
    makers: tuple[Callable[[Out], Part], ...] = (UdpFlows, HeldSyns, Echoes)
    for make in makers:
        with suppress(OSError):
            found.append(make(out))
    return found


class PacketProcess:
    """The process, as the helper sees it. ``syn_group`` and ``echo_group`` are for the rules; 0:
    there is none. ``has_udp``: flows of UDP can be looked up.
    """

    def __init__(self, channel: socket.socket, proc: int) -> None:
        """Start it; raises KernelError. ``channel`` is the client's; it is closed here."""
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_DEADLINE_S)
        parent = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    end_with_parent(parent)
                    close_others({theirs.fileno(), channel.fileno(), proc}, proc)
                    _live(theirs, channel, proc)
                finally:
                    os._exit(0)
        except OSError as error:
            self._control.close()
            raise KernelError(Refusal.KERNEL, f"no process for packets: {error}")
        finally:
            theirs.close()
            channel.close()
        begun = b""
        with suppress(OSError):
            begun = self._control.recv(_BEGUN.size)
        if len(begun) != _BEGUN.size:
            self.end()
            raise KernelError(Refusal.KERNEL, "the packet process ended")
        self.syn_group, self.echo_group, self.has_udp = _BEGUN.unpack(begun)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._control.fileno()

    def tell(self, plan: Plan | None) -> None:
        """This is what is captured now; raises KernelError."""
        line = encode_request(Undo() if plan is None else Apply(plan))
        try:
            self._control.sendall(line)
        except OSError as error:
            raise KernelError(Refusal.KERNEL, f"the packet process takes no plan: {error}")

    def end(self) -> None:
        """End it, whatever it does."""
        self._control.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


# --- the process itself -------------------------------------------------------------------------


def _live(control: socket.socket, channel: socket.socket, proc: int) -> None:
    hear_no_signals()
    drop_capabilities((NET_ADMIN, NET_RAW))
    all_parts = parts(Out(channel))
    groups = {part.kinds.start: part.group for part in all_parts}
    logged = (groups.get(kinds.start, 0) for kinds in (SYN_KINDS, ECHO_KINDS))
    control.send(_BEGUN.pack(*logged, UDP_KINDS.start in groups))
    with suppress(PacketError):
        _Loop(control, channel, all_parts, proc).run()


class _Loop:
    def __init__(
        self, control: socket.socket, channel: socket.socket, all_parts: list[Part], proc: int
    ) -> None:
        self._proc = proc
        _, self._user = maker_of(channel)
        self._plan: Plan | None = None  # what is applied
        self._told: Plan | None = None  # ... as far as it is the client's to name
        self._control = control
        self._channel = channel
        self._parts = all_parts
        self._by_kind = {kind: part for part in all_parts for kind in part.kinds}
        self._by_descriptor = {
            descriptor: part for part in all_parts for descriptor in part.descriptors()
        }
        self._said = bytearray()  # by the helper, and not a whole line yet
        self._poll = select.poll()
        for descriptor in (control.fileno(), channel.fileno(), *self._by_descriptor):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> None:
        """Until the helper has hung up; raises PacketError."""
        tick_at = time.monotonic() + TICK_S
        while True:
            left_s = max(tick_at - time.monotonic(), 0.0)
            for descriptor, _ in self._poll.poll(left_s * 1000):
                if descriptor == self._control.fileno():
                    if not self._hear():
                        return
                elif descriptor == self._channel.fileno():
                    self._take_messages()
                else:
                    self._by_descriptor[descriptor].on_readable(descriptor)
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + TICK_S
                self._tell_plan()
                for part in self._parts:
                    part.on_tick(now)

    def _hear(self) -> bool:
        data = self._control.recv(_READ_BYTES)
        self._said += data
        while line := taken_line(self._said):
            request = decode_request_untrusted(line)
            self._plan = request.plan if isinstance(request, Apply) else None
            self._tell_plan(anew=True)
        return bool(data)

    def _tell_plan(self, *, anew: bool = False) -> None:
        """Let the parts know it, without listeners that are another's by now."""
        plan = self._plan
        if plan is not None:
            plan = with_own_listeners(plan, self._user, self._proc)
        if anew or plan != self._told:
            self._told = plan
            for part in self._parts:
                part.on_plan(plan)

    def _take_messages(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            try:
                message = self._channel.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                message = b""
            if not message:  # the client has hung up, and the helper hears of it, too
                self._poll.unregister(self._channel.fileno())
                return
            part = self._by_kind.get(message[0])
            if part is None:
                raise PacketError(f"a message of kind {message[0]}")
            part.on_message(message[0], message[1:])
