"""Tells at once that something about this host's network has changed, or that the machine slept.

Without it a connection over a Wi-Fi that has gone looks like any quiet one. The kernel knows better
and tells everybody who asks (rtnetlink(7)); that needs no privilege.

    an interface goes up or down, gets or loses its carrier     a link changed
    an address comes or goes, or may be used from now on        an address changed
    a route comes or goes; too much at once to be told          a route changed
    CLOCK_BOOTTIME, which counts sleep, gains on
    CLOCK_MONOTONIC, which does not                             the machine slept

The kernel tells more than is new: Wi-Fi scans repeat a link, router advertisements an address. What
was told last of each is remembered, and only a difference counts (the first message about each is
one). The loopback interface leads to no server and never counts.

One cause makes many messages. The first starts a timer; when it ends they are told as one change,
the most telling. What comes later starts it again, so the last of a burst is never lost.

Invariants: no more than one call in COALESCE_S; no more than REMEMBERED things are remembered; what
the socket returns never raises, and a socket that only fails is not read again. What can't be had
(another system, a sandbox) is done without.

Not here: what to do about it (remote.keeper); whether a server can be reached, which a change may
or may not have made a difference to.
"""

import asyncio
import errno
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

SLEPT = "the machine slept"
LINK = "a link changed"
ADDRESS = "an address changed"
ROUTE = "a route changed"
_MOST_TELLING_FIRST = (SLEPT, LINK, ADDRESS, ROUTE)

#: The time after a message in which further ones belong to it: a cable that is plugged in makes a
#: dozen within a few ms.
COALESCE_S = 0.2

#: The shortest sleep that is told of. Shorter ones break no connection, and reading two clocks
#: takes time on a busy machine.
LEAST_SLEEP_S = 2.0

#: The most interfaces and addresses that are remembered. A host full of containers has hundreds.
REMEMBERED = 4096

#: The bytes of one read, and the most reads before the event loop gets its turn. A message is a few
#: hundred bytes.
_READ_BYTES, _READS = 32768, 64

# linux/rtnetlink.h
_RTMGRP_LINK = 0x1
_RTMGRP_ADDRESSES = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_RTMGRP_ROUTES = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_F_CLONED = 0x200  # an entry of the IPv6 route cache
_RTA_OIF = 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40  # netdevice(7)
_LOOPBACK = 1  # its ifindex in every network namespace, since Linux 3.7 (LOOPBACK_IFINDEX)

_MESSAGE = struct.Struct("=IH10x")  # nlmsghdr: length and type
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length and type
_LINK_HEAD = struct.Struct("=4xiI4x")  # ifinfomsg: index, flags
_ADDRESS_HEAD = struct.Struct("=2xBxI")  # ifaddrmsg: flags, index
_ROUTE_HEAD = struct.Struct("=8xI")  # rtmsg: flags

#: An interface is its index and nothing; an address is its interface's index and its bytes.
_Thing: TypeAlias = tuple[int, bytes]


def subscribe() -> socket.socket:
    """Return a non-blocking socket on which the kernel tells changes.

    Raises OSError where there is none.
    """
    if sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, "netlink is Linux's")
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        netlink.setblocking(False)
        netlink.bind((0, _RTMGRP_LINK | _RTMGRP_ADDRESSES | _RTMGRP_ROUTES))
    except OSError:
        netlink.close()
        raise
    return netlink


def asleep_s() -> float:
    """How long the machine has slept since it was started; 0.0 where nobody counts it."""
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class NetworkEvents:
    """Calls ``on_change`` with what has changed, in words for people, until it is closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_change: Callable[[str], None],
        *,
        subscribe: Callable[[], socket.socket] = subscribe,
        asleep_s: Callable[[], float] = asleep_s,
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self._asleep_s = asleep_s
        self._slept_s = asleep_s()
        self._known = KnownNetwork()
        self._untold: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._has_overrun = False
        self._is_closed = False
        self._netlink: socket.socket | None = None
        try:
            self._netlink = subscribe()
        except OSError:
            return
        loop.add_reader(self._netlink, self._read, self._netlink)

    def check_clock(self) -> None:
        """Look whether the machine has slept. To be called now and then."""
        before_s, self._slept_s = self._slept_s, self._asleep_s()
        if self._slept_s - before_s > LEAST_SLEEP_S:
            self._note(SLEPT)

    def close(self) -> None:
        """Tell nothing more. May be called again."""
        self._is_closed = True
        self._stop_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self, netlink: socket.socket) -> None:
        for _ in range(_READS):
            try:
                datagram = netlink.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                if self._has_overrun:
                    self._known.forget()
                    self._has_overrun = False
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._stop_reading()
                    return
                # An overrun (netlink(7)): hundreds at once will have been routes, among others.
                # What is in the buffer is older than what was lost, so it is forgotten afterwards.
                self._note(ROUTE)
                self._has_overrun = True
                continue
            if not datagram:  # no message is empty
                self._stop_reading()
                return
            for change in self._known.learn(datagram):
                self._note(change)

    def _stop_reading(self) -> None:
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None

    def _note(self, change: str) -> None:
        if self._is_closed:
            return
        self._untold.add(change)
        if self._timer is None:
            self._timer = self._loop.call_later(COALESCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        most_telling = min(self._untold, key=_MOST_TELLING_FIRST.index)
        self._untold.clear()
        self._on_change(most_telling)


class KnownNetwork:
    """What rtnetlink has told of interfaces and addresses, to know what is new."""

    def __init__(self) -> None:
        self._flags: dict[_Thing, int] = {}

    def __len__(self) -> int:
        return len(self._flags)

    def forget(self) -> None:
        """Forget everything: whatever is told next is new."""
        self._flags.clear()

    def learn(self, datagram: bytes) -> Iterator[str]:
        """Yield the changes that ``datagram`` tells. What can't be understood tells nothing."""
        for kind, body in _split(datagram, _MESSAGE):
            if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK_HEAD.size:
                index, flags = _LINK_HEAD.unpack_from(body)
                if flags & _IFF_LOOPBACK:
                    continue
                state = flags & (_IFF_UP | _IFF_RUNNING) if kind == _RTM_NEWLINK else None
                if self._is_new((index, b""), state):
                    yield LINK
            elif kind in (_RTM_NEWADDR, _RTM_DELADDR) and len(body) >= _ADDRESS_HEAD.size:
                flags, index = _ADDRESS_HEAD.unpack_from(body)
                if index == _LOOPBACK:
                    continue
                state = flags if kind == _RTM_NEWADDR else None
                told = dict(_split(body[_ADDRESS_HEAD.size :], _ATTRIBUTE))
                address = told.get(_IFA_ADDRESS, b"") + told.get(_IFA_LOCAL, b"")
                if self._is_new((index, address), state):
                    yield ADDRESS
            elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and len(body) >= _ROUTE_HEAD.size:
                (flags,) = _ROUTE_HEAD.unpack_from(body)
                told = dict(_split(body[_ROUTE_HEAD.size :], _ATTRIBUTE))
                is_loopback = told.get(_RTA_OIF) == _LOOPBACK.to_bytes(4, sys.byteorder)
                if not flags & _RTM_F_CLONED and not is_loopback:
                    yield ROUTE

    def _is_new(self, thing: _Thing, flags: int | None) -> bool:
        """Remember what ``thing`` is like now (None: it has gone). False if it is as before."""
        if flags is None:
            self._flags.pop(thing, None)
            return True
        if self._flags.get(thing) == flags:
            return False
        if len(self._flags) >= REMEMBERED:
            self._flags.clear()  # a needless look or two
        self._flags[thing] = flags
        return True


def _split(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Yield (type, body) of what is in ``data`` one after the other, each aligned to 4 bytes.

    Messages and attributes alike are their length with the header, their type, and a body
    (netlink(3), rtnetlink(3)). The last may be cut off; after a wrong length nothing is yielded.
    """
    start = 0
    while start + header.size <= len(data):
        length, kind = header.unpack_from(data, start)
        if length < header.size:
            return
        yield kind, data[start + header.size : start + length]
        start += (length + 3) & ~3
