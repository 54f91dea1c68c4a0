"""Which of the relays' sockets can be read, can be written, or have died.

asyncio takes four objects and two system calls to watch a socket and to stop watching it, and two
more whenever a relay pauses; for short connections that was a tenth of everything. So these sockets
are in an epoll set of their own, which the event loop watches as one descriptor, and it tells only
changes (epoll(7), EPOLLET): what a relay does not use at once it need not take out of the set, it
only must not forget that it was told. Errors are told of every socket, also of one that nobody
reads or writes just now. A socket leaves the set when it is closed, without another call.

Where there is no epoll, asyncio's readers and writers do the same: ``is_level`` says that they tell
a state as long as it lasts, so that what is not wanted has to be taken out. Errors of sockets that
are neither read nor written are then noticed when that goes on.

Invariant: who is called back may close sockets, others' too, but adds none. So a number means one
socket as long as one round's events are told.

Not here: what an event means to a connection (tcp), how its bytes move (tcp, lane).
"""

import asyncio
import select
from typing import Callable, Dict, TypeVar, Union

#: Events, with their numbers in epoll_ctl(2).
READ = 0x1
URGENT = 0x2
WRITE = 0x4
ERROR = 0x8
HUNG_UP = 0x10
ENDED = 0x2000  # the peer sends nothing more

#: Those that say that there may be something to read; those of a socket that may have been reset.
READING = READ | URGENT | ENDED
DEAD = ERROR | HUNG_UP

_CHANGES = 1 << 31  # EPOLLET

OnEvent = Callable[[int], None]

T = TypeVar("T")


def note_failure(loop: asyncio.AbstractEventLoop, error: Exception) -> None:
    """A callback has failed, and the others have to be called nevertheless."""
    loop.call_exception_handler({"message": str(error), "exception": error})


def settle(future: "asyncio.Future[T]", value: T) -> None:
    """Give it its result, unless something else was faster."""
    if not future.done():
        future.set_result(value)


class Readiness:
    """Calls back with the events of each socket that were asked for, and ERROR and HUNG_UP."""

    is_level = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: Dict[int, OnEvent] = {}
        self._set = select.epoll()
        loop.add_reader(self._set.fileno(), self._on_events)

    def add(self, fd: int, on_event: OnEvent, events: int) -> None:
        """Watch ``fd``, in which nobody else is interested, for ``events``; 0: only whether it
        dies. Raises OSError: a user may have no more of them in such sets (epoll(7),
        max_user_watches).
        """
        self._set.register(fd, events | _CHANGES)
        self._callbacks[fd] = on_event

    def change(self, fd: int, events: int) -> None:
        """Watch for these events from now on; those that are there already are told."""
        self._set.modify(fd, events | _CHANGES)

    def remove(self, fd: int) -> None:
        """Watch it no more, although it stays open. Nothing happens if nothing is watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._set.unregister(fd)

    def forget(self, fd: int) -> None:
        """It will be closed at once."""
        self._callbacks.pop(fd, None)

    def close(self) -> None:
        """Watch nothing any more."""
        self._callbacks.clear()
        if not self._set.closed:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()

    def _on_events(self) -> None:
        for fd, events in self._set.poll(0):
            on_event = self._callbacks.get(fd)
            if on_event is None:
                continue
            try:
                on_event(events)
            # The events of the others are told only once.
            except Exception as error:  # noqa: BLE001
                note_failure(self._loop, error)


class LevelReadiness:
    """The same, by the event loop's own means."""

    is_level = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: Dict[int, OnEvent] = {}

    def add(self, fd: int, on_event: OnEvent, events: int) -> None:
        """As above, but errors reach only those who read or write."""
        self._callbacks[fd] = on_event
        self.change(fd, events)

    def change(self, fd: int, events: int) -> None:
        """As above."""
        on_event = self._callbacks[fd]
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        if events & READ:
            self._loop.add_reader(fd, on_event, READ)
        if events & WRITE:
            self._loop.add_writer(fd, on_event, WRITE)

    def remove(self, fd: int) -> None:
        """As above."""
        if self._callbacks.pop(fd, None) is not None:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    forget = remove

    def close(self) -> None:
        """As above."""
        for fd in list(self._callbacks):
            self.remove(fd)


def readiness(loop: asyncio.AbstractEventLoop) -> Union[Readiness, LevelReadiness]:
    """The one that this system has."""
    return Readiness(loop) if hasattr(select, "epoll") else LevelReadiness(loop)
