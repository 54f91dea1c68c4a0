"""How a remote is just now, as a value: figures that change all the time.

Taken when somebody wants to look: the status line, and whoever asks from outside.
"""

from typing import NamedTuple


class Snapshot(NamedTuple):
    """Bytes since the session began, lanes that are over included."""

    connections: int  # those that wait for it to come back, too
    received_bytes: int
    sent_bytes: int
    rtt_s: float
    lost_for_s: float | None = None  # None: it is not lost
    next_attempt_s: float | None = None  # None: one is under way
