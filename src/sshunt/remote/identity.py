"""Who we are to the far side: the session's token, and the numbers of its lanes. No I/O.

    none .......... the next HELLO asks for a new session, under a token just drawn
    resumable ..... ``accepted``: the far side has made it; the next HELLOs ask for a lane of it
    none again .... ``forget``: it is over at the far side, whatever it had is lost

A lane's number is drawn for each attempt and never used for two lanes at once: the answer of one in
vain may have been lost, and the far side think it is up. Such numbers, and those of lanes that are
over, are remembered until the far side can be told (``dead_lanes``).

Not here: the session itself (mux), how the HELLO travels (transport).
"""

import secrets
from collections.abc import Container

from sshunt.mux.hello import (
    CLIENT,
    FEATURE_CREATE,
    FEATURE_DETACHED,
    TOKEN_BYTES,
    Hello,
    make_hello,
)
from sshunt.mux.limits import DEAD_LANES

#: A HELLO has 16 bits for a lane's number.
LANE_NUMBERS = 1 << 16


class Identity:
    """The token of the session that the far side may hold, and numbers for its lanes. ``wishes``:
    features that a new session is asked for.
    """

    def __init__(self, *, grace_s: int, wishes: int) -> None:
        self.grace_s = grace_s
        self.agent_host = b""  # which machine the session's agent is on, if it said so
        self._wishes = wishes
        self._token = b""  # b"": there is no session that could be resumed
        self._next_number = 0
        self._dead: set[int] = set()

    @property
    def is_resumable(self) -> bool:
        """True if the far side may still hold the session."""
        return bool(self._token)

    def hello(self, number: int) -> Hello:
        """What opens the session's channel: a new session, or one more lane of the present one."""
        if self._token:
            return make_hello(CLIENT, self._token, lane=number, grace_s=self.grace_s)
        features = FEATURE_CREATE | self._wishes
        token = secrets.token_bytes(TOKEN_BYTES)
        return make_hello(CLIENT, token, lane=number, features=features, grace_s=self.grace_s)

    def hello_beside(self, number: int) -> Hello:
        """What opens a further lane of the present session."""
        return make_hello(CLIENT, self._token, lane=number)

    def is_current(self, ours: Hello) -> bool:
        """True if the session that ``ours`` asked for is the present one, or a new one."""
        return bool(ours.features & FEATURE_CREATE) or ours.token == self._token

    def accepted(self, ours: Hello, theirs: Hello) -> None:
        """The far side has made the session that ``ours`` asked for."""
        self._token, self.agent_host = ours.token, theirs.host

    def forget(self) -> None:
        """The session is over at the far side."""
        self._token = b""
        self._dead.clear()

    # --- numbers ------------------------------------------------------------------------------

    def take_number(self, in_use: Container[int]) -> int:
        """A number for another lane."""
        while self._next_number in in_use:
            self._next_number = (self._next_number + 1) % LANE_NUMBERS
        number = self._next_number
        self._next_number = (self._next_number + 1) % LANE_NUMBERS
        return number

    def note_dead(self, number: int) -> None:
        """The lane of this number is over, or never was, but the far side may not know."""
        self._dead.add(number)
        if len(self._dead) > DEAD_LANES:
            self._dead.discard(min(self._dead))

    def note_alive(self, number: int) -> None:
        """It is up after all."""
        self._dead.discard(number)

    def take_dead(self) -> list[int]:
        """The dead numbers, to be told to the far side now."""
        dead = sorted(self._dead)
        self._dead.clear()
        return dead


def is_detached(theirs: Hello) -> bool:
    """True if the agent that has answered lives on without its lanes."""
    return bool(theirs.features & FEATURE_DETACHED)
