"""Connections to the real hosts, for near ends that wait for them.

They are told the truth: refused with the system's own reason when the connection does not come
about, and opened when it is up, if they want to hear of that. What they have said already waits in
the relay meanwhile. A numeric address is connected at once, without a task; a name is looked up
here, in a thread, and its addresses are tried in the resolver's order.

Connects that don't come about are given up after a minute, and sooner where the program has left;
one timer looks at all of them, for most connects are over before it would. getaddrinfo(3) has no
deadline and can't be interrupted, so a look-up that takes too long is given up and its thread left
to itself; LOOKUP_THREADS bounds those.

An sshunt on this very host must not capture what is connected here, or a connection would go round
and round: sockets bear a priority until they are connected, by which its rules know them
(DIALED_PRIORITY). A look-up by the C library bears none.

The last descriptors are not for connections (``is_reserved``): with them the next lane comes.
"""

import asyncio
import concurrent.futures
import errno
import os
import socket
from typing import Any, Dict, List, Optional, Set

from sshunt.mux import frames
from sshunt.relay.flow import Connection, Endpoint, Relay
from sshunt.relay.reactor import Reactor
from sshunt.relay.readiness import settle
from sshunt.relay.sockets import (
    DIALED_PRIORITY,
    error_of,
    is_reserved,
    keep_alive,
    reset_code,
    set_priority,
    without_delay,
)

#: How long a connect may take; the kernel's own limit is about two minutes of SYNs (tcp(7),
#: tcp_syn_retries), and a scan of dead addresses would hold a descriptor for each of them as long.
CONNECT_DEADLINE_S = 60.0

#: The same where the program has hung up meanwhile without a word: nobody waits for it any more.
#: Not at once, for it may be one that only listens.
ABANDONED_DEADLINE_S = 5.0

#: How often slow connects are looked at. Most are over before they are ever seen.
SWEEP_EVERY_S = 1.0

#: How long one of a name's addresses may take before the next is tried.
ADDRESS_DEADLINE_S = 10.0

#: How long a name may take: resolv.conf(5) has two servers asked twice for 5 s each by default.
LOOKUP_DEADLINE_S = 20.0

#: Names being looked up at the same time; each keeps a thread.
LOOKUP_THREADS = 16

#: Names being looked up or waiting for it; a browser that restores its tabs has some hundreds.
MAX_LOOKUPS = 512

_CODE_OF_EAI = {
    socket.EAI_AGAIN: frames.RESET_TIMED_OUT,  # no server has answered
    socket.EAI_MEMORY: frames.RESET_NO_RESOURCES,
}


class Dialer:
    """Connects. Owns the look-ups under way."""

    def __init__(self, reactor: Reactor) -> None:
        self._loop = reactor.loop
        self._lookups: "Set[asyncio.Future[None]]" = set()
        self._resolving = 0
        self._threads: Optional[concurrent.futures.ThreadPoolExecutor] = None
        self._fresh: List[Relay] = []  # began to connect since the last sweep
        self._slow: Dict[Relay, float] = {}  # were still connecting then, and since when
        self._sweeping: Optional[asyncio.TimerHandle] = None

    def connect(self, connection: Connection) -> None:
        """Connect it or refuse it."""
        network, destination, _, _ = connection.flow
        if network != frames.TCP or not destination[1]:
            connection.refused(frames.RESET_NOT_PERMITTED)
            return
        relay = connection.relay()
        family = family_of(destination[0])
        if family is not None:
            self._connect(relay, family, destination)
            return
        if self._resolving >= MAX_LOOKUPS:
            relay.abort(frames.RESET_NO_RESOURCES)
            return
        self._resolving += 1
        lookup = asyncio.ensure_future(self._look_up(relay, destination), loop=self._loop)
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)

    async def look_up(self, destination: Endpoint) -> List[Any]:
        """What getaddrinfo(3) finds, for somebody else; raises OSError, UnicodeError, RuntimeError.
        See ``lookup_code``.
        """
        if self._resolving >= MAX_LOOKUPS:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self._resolving += 1
        try:
            return await self._resolve(destination)
        finally:
            self._resolving -= 1

    def close(self) -> None:
        """Give up the look-ups under way, and watch connects no more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for lookup in list(self._lookups):
            lookup.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _connect(self, relay: Relay, family: int, destination: Endpoint) -> None:
        """Connect to a numeric address; success or failure is the relay's to report."""
        try:
            sock = _new_socket(family)
        except OSError as error:
            relay.abort(reset_code(error.errno or 0))
            return
        error_number = sock.connect_ex(destination)
        if error_number in (0, errno.EINPROGRESS):
            relay.connect(sock)
            self._fresh.append(relay)
            if self._sweeping is None:
                self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)
        else:
            sock.close()
            relay.abort(reset_code(error_number))

    def _sweep(self) -> None:
        """Give up connects that have taken too long."""
        now = self._loop.time()
        for relay in self._fresh:
            if relay.is_connecting:
                self._slow[relay] = now
            if not relay.is_over:  # most connections are over by then
                keep_alive(relay.sock)
        self._fresh = []
        for relay, since in list(self._slow.items()):
            deadline_s = ABANDONED_DEADLINE_S if relay.is_abandoned else CONNECT_DEADLINE_S
            if not relay.is_connecting:
                del self._slow[relay]
            elif now - since > deadline_s:
                del self._slow[relay]
                relay.abort(frames.RESET_TIMED_OUT)
        self._sweeping = None
        if self._slow:
            self._sweeping = self._loop.call_later(SWEEP_EVERY_S, self._sweep)

    async def _look_up(self, relay: Relay, destination: Endpoint) -> None:
        """Connect to the first address of a name that answers."""
        try:
            found = await self._resolve(destination)
        except (OSError, UnicodeError, RuntimeError) as error:
            if not relay.is_over:
                relay.abort(lookup_code(error))
            return
        finally:
            self._resolving -= 1
        code = frames.RESET_NAME_UNKNOWN
        for family, _, _, _, address in found:
            if relay.is_over:
                return  # the client gave up meanwhile
            try:
                sock = await _connected(self._loop, family, address)
            except OSError as error:
                code = reset_code(error.errno or 0)
                continue
            if not relay.is_over:
                keep_alive(sock)
                relay.take_connection(sock)
            else:
                sock.close()
            return
        if not relay.is_over:
            relay.abort(code)

    async def _resolve(self, destination: Endpoint) -> List[Any]:
        """What getaddrinfo finds; raises OSError, UnicodeError (no name at all), RuntimeError (no
        thread to be had).
        """
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(LOOKUP_THREADS)
        finding = self._loop.run_in_executor(
            self._threads,
            _getaddrinfo,
            *destination,
        )
        try:
            await asyncio.wait([finding], timeout=LOOKUP_DEADLINE_S)
            if not finding.done():
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            return finding.result()
        finally:
            finding.cancel()  # one that still waits for a thread need not get one


async def _connected(loop: asyncio.AbstractEventLoop, family: int, address: Any) -> socket.socket:
    """A socket connected to ``address``, within ADDRESS_DEADLINE_S; raises OSError.

    Not loop.sock_connect under wait_for: when that is given up, Python 3.6 forgets the descriptor
    a turn of the loop later, and by then the next socket may have its number.
    """
    sock = _new_socket(family)
    try:
        error_number = sock.connect_ex(address)
        if error_number == errno.EINPROGRESS:
            error_number = await _outcome(loop, sock)
        if error_number:
            raise OSError(error_number, os.strerror(error_number))
    except BaseException:
        sock.close()
        raise
    set_priority(sock, 0)
    return sock


async def _outcome(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> int:
    """The error number that a connect under way ends with; 0 is success."""
    ended: "asyncio.Future[int]" = loop.create_future()
    loop.add_writer(sock.fileno(), settle, ended, 0)
    deadline = loop.call_later(ADDRESS_DEADLINE_S, settle, ended, errno.ETIMEDOUT)
    try:
        return await ended or error_of(sock)
    finally:
        deadline.cancel()
        loop.remove_writer(sock.fileno())


def _getaddrinfo(host: str, port: int) -> List[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def lookup_code(error: Exception) -> int:
    """The reset code for a look-up that failed."""
    if isinstance(error, socket.gaierror):  # its errno is one of the EAI_ codes
        return _CODE_OF_EAI.get(error.errno or 0, frames.RESET_NAME_UNKNOWN)
    if isinstance(error, OSError):
        return reset_code(error.errno or 0)
    if isinstance(error, UnicodeError):
        return frames.RESET_NAME_UNKNOWN
    return frames.RESET_NO_RESOURCES


def _new_socket(family: int) -> socket.socket:
    # Made non-blocking where the system can; elsewhere it takes a second system call.
    sock = socket.socket(family, socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0))
    if sock.gettimeout() != 0:
        sock.setblocking(False)
    if is_reserved(sock.fileno()):
        sock.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    without_delay(sock)
    set_priority(sock, DIALED_PRIORITY)
    return sock


def family_of(host: str) -> Optional[int]:
    """The address family of a numeric address, None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, UnicodeEncodeError):
            continue
        return family
    return None
