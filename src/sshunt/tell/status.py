"""The status line: figures that change all the time, as a value and in one line.

While the connection works: how many connections there are, how fast they go. While it is lost: for
how long it has been, who waits, what comes next.

Not here: where the figures come from; how a status line stays below the others (console).
"""

from sshunt.tell.console import Console
from sshunt.tell.figures import bit_rate, counted
from sshunt.tell.snapshot import Snapshot


class StatusLine:
    """Shows snapshots that are taken every ``every_s`` seconds."""

    def __init__(self, console: Console, first: Snapshot, every_s: float) -> None:
        self._console = console
        self._before = first
        self._every_s = every_s

    def show(self, now: Snapshot) -> None:
        """The next one."""
        if now.lost_for_s is not None:
            self._console.status(_lost(now, now.lost_for_s))
            return
        down = (now.received_bytes - self._before.received_bytes) * 8 / self._every_s
        up = (now.sent_bytes - self._before.sent_bytes) * 8 / self._every_s
        self._console.status(
            f"{counted(now.connections, 'connection')}, "
            f"down {bit_rate(down)}, up {bit_rate(up)}, RTT {now.rtt_s * 1000:.1f} ms"
        )
        self._before = now


def _lost(now: Snapshot, lost_for_s: float) -> str:
    waiting = counted(now.connections, "connection")
    text = f"no connection for {lost_for_s:.0f} s, {waiting} waiting"
    if now.next_attempt_s is None:
        return text + ", connecting"
    return text + f", next attempt in {now.next_attempt_s:.0f} s"
