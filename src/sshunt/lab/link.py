"""An emulated link between two hosts of the lab: rate, delay, queue and loss, changeable.

    host A  to-B [TUN] --> up:   queue -> rate -> delay --> [TUN] to-A  host B
    host A  to-B [TUN] <-- down: delay <- rate <- queue <-- [TUN] to-A  host B

Theory of operation. Each host's end is a TUN device, so its kernel's own TCP runs over it; a
program of its own (``python -m sshunt.lab.link``) holds the two descriptors and moves the packets.
A packet that finds more than ``queue_bytes`` waiting is dropped (a tail-drop FIFO, what most
routers are); it leaves when those before it have left at ``rate_bit_s``; it arrives ``delay_s``
later. Packets never overtake each other, also when the delay falls. A link that is cut drops
everything, both ways and without a word, as a pulled cable does.

Why not the kernel's netem: it is not to be had everywhere. The program runs with real-time priority
where that is allowed, because on a machine of two cores its packets would otherwise wait for those
who are being measured. It costs about 15 us of processor time a packet: use an MTU of 9000 above
200 Mbit/s.

Shapes come as lines of JSON on standard input, ``{"up": {...}, "down": {...}}`` with the fields of
``Shape``; the program ends with its standard input.
"""

import ctypes
import fcntl
import gc
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass

from sshunt.lab.hosts import Host, python

DEFAULT_MTU = 1500

#: The largest packet that a TUN device hands over.
_PACKET_BYTES = 65536

#: How many packets are moved before the clock is looked at again.
_BATCH = 64

#: How often the program looks at its clock while there are no packets.
_IDLE_S = 1.0

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000

_PR_SET_TIMERSLACK = 29  # linux/prctl.h


@dataclass(frozen=True)
class Shape:
    """One direction of a link. ``loss`` is the probability that a packet is lost, 0 to 1."""

    rate_bit_s: float = 1e9
    delay_s: float = 0.0
    queue_bytes: int = 1_000_000
    loss: float = 0.0


class Link:
    """The parent's side of a running link: make it with ``start_link``."""

    def __init__(self, process: "subprocess.Popen[bytes]", up: Shape, down: Shape) -> None:
        self._process = process
        self.up = up
        self.down = down

    def change(self, *, up: Shape | None = None, down: Shape | None = None) -> None:
        """From now on packets that enter the link see these shapes."""
        self.up = up or self.up
        self.down = down or self.down
        self._tell(up=asdict(self.up), down=asdict(self.down))

    def cut(self) -> None:
        """Drop everything from now on, both ways."""
        self._tell(up=None, down=None)

    def mend(self) -> None:
        """Carry packets again."""
        self.change()

    def _tell(self, **shapes: object) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the link was started without its standard input")
        self._process.stdin.write(json.dumps(shapes).encode() + b"\n")
        self._process.stdin.flush()


def start_link(
    one: Host, one_device: str, other: Host, other_device: str, *, up: Shape, down: Shape
) -> Link:
    """Join two hosts by TUN devices of these names; ``up`` is from ``one`` to ``other``.

    The devices exist when this returns; addresses and state are the caller's affair. The program
    ends with ``one``'s other programs.
    """
    with one.entered():
        one_fd = _open_tun(one_device)
    with other.entered():
        other_fd = _open_tun(other_device)
    try:
        process = one.popen(
            python("sshunt.lab.link", str(one_fd), str(other_fd)),
            stdin=subprocess.PIPE,
            pass_fds=(one_fd, other_fd),
        )
    finally:
        os.close(one_fd)
        os.close(other_fd)
    link = Link(process, up, down)
    link.change()
    return link


def _open_tun(name: str) -> int:
    """A new TUN device of the network namespace that the thread is in."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


# --- the program ------------------------------------------------------------------------------


class _Direction:
    """One direction: packets between ``source`` and ``sink``."""

    def __init__(self, source: int, sink: int, seed: int) -> None:
        self.source = source
        self._sink = sink
        self._random = random.Random(seed)
        self._shape: Shape | None = None
        self._free_at = 0.0  # when the last packet so far will have left
        self._arrivals: deque[tuple[float, bytes]] = deque()

    def reshape(self, fields: dict[str, float] | None) -> None:
        """A new shape; None cuts the direction, and what is on its way is lost."""
        self._shape = None if fields is None else Shape(**fields)  # type: ignore[arg-type]
        if fields is None:
            self._arrivals.clear()
            self._free_at = 0.0

    def take(self, now: float) -> None:
        """Put the packets that have come on their way."""
        for _ in range(_BATCH):
            try:
                packet = os.read(self.source, _PACKET_BYTES)
            except BlockingIOError:
                return
            shape = self._shape
            if shape is None or (shape.loss and self._random.random() < shape.loss):
                continue
            leaves = max(self._free_at, now)
            if (leaves - now) * shape.rate_bit_s / 8 > shape.queue_bytes:
                continue
            self._free_at = leaves + len(packet) * 8 / shape.rate_bit_s
            arrives = self._free_at + shape.delay_s
            if self._arrivals and self._arrivals[-1][0] > arrives:
                arrives = self._arrivals[-1][0]
            self._arrivals.append((arrives, packet))

    def deliver(self, now: float) -> float:
        """Hand over the packets that have arrived; when the next one does."""
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now:
            # EIO: the device is down; the packet is lost, as on any link.
            with suppress(OSError):
                os.write(self._sink, arrivals[0][1])
            arrivals.popleft()
        return arrivals[0][0] if arrivals else now + _IDLE_S


def run(one_fd: int, other_fd: int) -> None:
    """Move packets until standard input ends."""
    up, down = _Direction(one_fd, other_fd, 1), _Direction(other_fd, one_fd, 2)
    commands = b""
    while True:
        now = time.monotonic()
        due = min(up.deliver(now), down.deliver(now))
        ready = select.select([one_fd, other_fd, 0], [], [], max(due - time.monotonic(), 0))[0]
        now = time.monotonic()
        for direction in (up, down):
            if direction.source in ready:
                direction.take(now)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, commands = (commands + data).split(b"\n")
            for line in lines:
                shapes = json.loads(line)
                up.reshape(shapes["up"])
                down.reshape(shapes["down"])


def _be_punctual() -> None:
    """Real-time priority, exact timers, no pauses of the collector: each where it can be had."""
    gc.disable()
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


if __name__ == "__main__":
    _be_punctual()
    run(int(sys.argv[1]), int(sys.argv[2]))
