"""Payload that stays in the kernel: references to the pages that came in, held by a pipe.

    socket --splice--> pipe --tee--> ssh's stdin
                        | acknowledged: splice to /dev/null
                        | its lane died: tee again, to another lane

The payload has a pipe of its own while it lives. What tee(2) gave to ssh is still in it, so it is
also the copy that can be sent again. tee always begins with the first byte of a pipe; so where
ssh's pipe took only a part of it, that part is moved aside into a second one, and the rest is
first.

Every operation that finds no pipe, or not enough room in one (what bounds a pipe is references,
not bytes, and cutting makes two of one), reads the bytes into memory, where everything is
always possible. Small payloads are read at once: a pipe is worth its system calls from PIPED_BYTES
on, and no reference to a page should hold it for a few bytes.

Invariants: the pool knows every pipe; a pipe that goes back is empty; a payload's bytes are those
aside, then those in its pipe, or all of them in memory. Whatever the kernel refuses, no byte is
lost.

Not here: when a payload is better read into memory in the first place (tcp).
"""

import asyncio
import errno
import fcntl
import os
import time
from typing import List, Optional, Set

from sshunt.mux.payload import Payload
from sshunt.relay.linux import can_tee, splice, tee
from sshunt.relay.sockets import OUT_OF_RESOURCES, is_reserved

#: The size from which on bytes are worth the system calls that keep them in the kernel.
PIPED_BYTES = 32 * 1024

#: Asked for each pipe: as many references to pages as the largest frame may need; or at least so
#: many. A user has a quota for all pipes together (pipe(7), pipe-user-pages-soft, 64 MiB), and
#: beyond that new ones are of 8 KiB.
PIPE_BYTES = 1024 * 1024
LEAST_PIPE_BYTES = 64 * 1024

#: Pipes at most: what a fast LAN has in flight, and two frames for each of several streams.
MOST_PIPES = 32

#: When there was none to be had, how long it is before the next is asked for.
SHORTAGE_S = 10.0

#: How long a free pipe is kept before it is closed: other programs of this user have the same
#: quota.
SPARE_S = 10.0

#: What the kernel says where it, or somebody's filter in front of it, does none of this.
REFUSALS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)

_F_SETPIPE_SZ = 1031  # Linux; named in fcntl only since Python 3.10


def widen_pipe(fd: int, size: int) -> int:
    """Ask for a pipe of ``size`` bytes; 0 if it stays as it is: not a pipe, not Linux, over the
    user's quota.
    """
    try:
        return fcntl.fcntl(fd, _F_SETPIPE_SZ, size)
    except OSError:
        return 0


class Pipe:
    """Both ends of one; in the process that made it, for nobody else. Raises OSError."""

    __slots__ = ("read_fd", "whose", "write_fd")

    def __init__(self) -> None:
        self.whose: object = None  # while it holds payload
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if not (
            widen_pipe(self.write_fd, PIPE_BYTES) or widen_pipe(self.write_fd, LEAST_PIPE_BYTES)
        ):
            self.close()
            raise OSError(errno.EPERM, "over the quota of pipes")
        if is_reserved(self.write_fd):
            self.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def close(self) -> None:
        """Drop what is in it, too."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class Pipes:
    """The pool, for all sessions. Owns all pipes. ``most``: how many there may be, 0 for none;
    ``least_bytes``: smaller payloads are read into memory; ``loop``: closes spare pipes in time.
    """

    def __init__(
        self,
        most: int = MOST_PIPES,
        least_bytes: int = PIPED_BYTES,
        loop: Optional[asyncio.AbstractEventLoop] = None,
    ) -> None:
        self.least_bytes = least_bytes
        self._most = most if most and can_tee() else 0
        self._free: List[Pipe] = []
        self._in_use: Set[Pipe] = set()
        self._null = -1
        self._short_at = -SHORTAGE_S  # when a pipe was last not to be had
        self._loop = loop
        self._sweeping: Optional[asyncio.TimerHandle] = None
        self._spare = 0  # the fewest free ones since the last sweep

    @property
    def in_use(self) -> int:
        """How many hold payload now."""
        return len(self._in_use)

    def receive(self, source: int, size: int, whose: object = None) -> Optional[Payload]:
        """Up to ``size`` bytes of what the socket ``source`` has, for the session ``whose``.

        None if there is no pipe for them, or nothing came. That need not mean that there is nothing
        (an urgent byte may be next): only reading into memory tells. Raises OSError if the
        connection is broken.
        """
        pipe = self.take(whose)
        if pipe is None:
            return None
        moved = 0
        try:
            moved = splice(source, pipe.write_fd, size)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in REFUSALS:
                self.refuse()
            elif error.errno not in OUT_OF_RESOURCES:
                self.give_back(pipe, 0)
                raise
        if not moved:
            self.give_back(pipe, 0)
            return None
        payload = PipedPayload(self, pipe, moved)
        if moved < self.least_bytes:
            payload.keep()
        return payload

    def take(self, whose: object = None) -> Optional[Pipe]:
        """An empty pipe, for the session ``whose``; None if there is none to be had."""
        if self._free:
            pipe = self._free.pop()
            self._spare = min(self._spare, len(self._free))
        elif len(self._in_use) >= self._most or time.monotonic() - self._short_at < SHORTAGE_S:
            return None
        else:
            try:
                pipe = Pipe()
            except OSError:  # the user's quota, or descriptors, are spent
                self._short_at = time.monotonic()
                return None
            if self._loop is not None and self._sweeping is None:
                self._sweeping = self._loop.call_later(SPARE_S, self._sweep)
        pipe.whose = whose
        self._in_use.add(pipe)
        return pipe

    def _sweep(self) -> None:
        """Close what nobody has needed since the last time."""
        for pipe in self._free[: self._spare]:
            pipe.close()
        del self._free[: self._spare]
        self._spare = len(self._free)
        self._sweeping = None
        if self._loop is not None and (self._free or self._in_use):
            self._sweeping = self._loop.call_later(SPARE_S, self._sweep)

    def give_back(self, pipe: Pipe, size: int) -> None:
        """Nobody needs ``pipe`` any more, nor the ``size`` bytes in it."""
        if pipe not in self._in_use:
            return  # closed meanwhile
        self._in_use.discard(pipe)
        pipe.whose = None
        if not self._most:
            pipe.close()
            return
        try:
            if size and self._null < 0:
                self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            while size:
                size -= splice(pipe.read_fd, self._null, size)
        except OSError:
            pipe.close()
        else:
            self._free.append(pipe)

    def refuse(self) -> None:
        """The kernel does not do what we need, or it is over: no more pipes from now on."""
        self._most = 0
        while self._free:
            self._free.pop().close()

    def give_up(self, whose: object = None) -> None:
        """The session ``whose`` is over: nobody needs what its pipes hold."""
        for pipe in [pipe for pipe in self._in_use if pipe.whose is whose]:
            self._in_use.discard(pipe)
            pipe.close()

    def close(self) -> None:
        """Close every pipe, and with it what is in there."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.refuse()
        while self._in_use:
            self._in_use.pop().close()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1


class PipedPayload(Payload):
    """``size`` bytes in ``pipe``, which belongs to it from now on."""

    __slots__ = ("_aside", "_aside_bytes", "_pipe", "_pipes", "_sent_bytes", "_size")

    def __init__(self, pipes: Pipes, pipe: Pipe, size: int) -> None:
        super().__init__(b"")
        self._pipes = pipes
        self._pipe: Optional[Pipe] = pipe  # None: in memory (``view``), or released
        self._aside: Optional[Pipe] = None
        self._aside_bytes = 0
        self._size = size
        self._sent_bytes = 0

    def __len__(self) -> int:
        return self._size

    @property
    def is_piped(self) -> bool:
        """False once the bytes are in memory, or released."""
        return self._pipe is not None

    # --- to a lane ----------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """What ``send`` has still to send."""
        return self._size - self._sent_bytes

    @property
    def unsent(self) -> memoryview:
        """The same, of a payload that is in memory."""
        return self.view[self._sent_bytes :]

    def send(self, sink: int) -> int:
        """Give the lane's pipe ``sink`` as much as it takes; how many bytes. What is left then is
        still piped, or not any more. Raises OSError, BlockingIOError if it takes nothing now.
        """
        pipe = self._pipe
        if pipe is None:
            return 0
        left = self._size - self._sent_bytes
        moved = tee(pipe.read_fd, sink, left)
        self._sent_bytes += moved
        if moved < left:
            self._set_aside(pipe, moved)
        return moved

    def _set_aside(self, pipe: Pipe, size: int) -> None:
        """tee shall find behind the next ``size`` bytes, which were sent."""
        if self._aside is None:
            self._aside = self._pipes.take(pipe.whose)
        try:
            while self._aside is not None and size:
                moved = splice(pipe.read_fd, self._aside.write_fd, size)
                self._aside_bytes += moved
                size -= moved
        except OSError:
            pass  # as many references as it holds
        if size:
            self.keep()

    def rewind(self) -> None:
        """What was sent is lost: send it again."""
        if self._aside is not None:
            self.keep()
        self._sent_bytes = 0

    # --- as any other -------------------------------------------------------------------------

    def cut(self, size: int) -> Payload:
        """Split off the first ``size`` bytes; of what was not sent yet."""
        head = None if self._pipe is None else self._cut_pipe(self._pipe, size)
        if head is None:
            self.keep()
            head = super().cut(size)
        self._size -= size
        return head

    def _cut_pipe(self, pipe: Pipe, size: int) -> Optional[Payload]:
        """The first ``size`` bytes in a pipe of their own; None if there is none for them."""
        least_bytes = self._pipes.least_bytes
        if size < least_bytes or self._size - size < least_bytes:
            return None
        begin = self._pipes.take(pipe.whose)
        if begin is None:
            return None
        try:
            moved = splice(pipe.read_fd, begin.write_fd, size)
        except OSError:
            self._pipes.give_back(begin, 0)
            return None
        head = PipedPayload(self._pipes, begin, moved)
        if len(head) < size:  # never of fewer references than the first pipe held, but to be sure
            self._aside, self._aside_bytes = begin, len(head)
            return None
        return head

    def duplicate(self) -> Payload:
        """The same bytes, to be released on their own."""
        self.keep()
        return super().duplicate()

    def keep(self) -> None:
        """Read the bytes into memory."""
        if self._pipe is None:
            return
        data = bytearray()
        if self._aside is not None:
            _read(self._aside, self._aside_bytes, data)
        _read(self._pipe, self._size - self._aside_bytes, data)
        self.view = memoryview(data)
        self._let_go()

    def release(self) -> None:
        """Nobody wants the bytes any more."""
        if self._pipe is not None:
            self._let_go(self._aside_bytes, self._size - self._aside_bytes)
        super().release()
        self._size = self._sent_bytes = 0

    def _let_go(self, aside_bytes: int = 0, left_bytes: int = 0) -> None:
        """Give back both pipes, which hold ``aside_bytes`` and ``left_bytes``."""
        if self._aside is not None:
            self._pipes.give_back(self._aside, aside_bytes)
        if self._pipe is not None:
            self._pipes.give_back(self._pipe, left_bytes)
        self._pipe = self._aside = None
        self._aside_bytes = 0


def _read(pipe: Pipe, size: int, data: bytearray) -> None:
    """Add the next ``size`` bytes in ``pipe`` to ``data``."""
    while size:
        more = os.read(pipe.read_fd, size)
        data += more
        size -= len(more)
