"""By which way ssh logs in next, after the connection is lost. Pure.

Not here: when (remote.attempts), the options that a way comes to (ssh).
"""

from typing import NamedTuple

from sshunt.errors import ExitCode

#: What another attempt does not mend, only a person.
NEEDS_A_PERSON = (ExitCode.AUTH, ExitCode.HOST_KEY)


class Way(NamedTuple):
    """How to log in. ``shares``: through the user's own shared connection (ControlPath), if there
    is one. ``by_address``: to the address that ssh was connected to last, without a look-up.
    """

    shares: bool
    by_address: bool


class Ways:
    """The next way to log in.

    A shared connection of the user's saves a second login, but after a change of networks it may be
    dead, and whoever opens a channel through it then waits until its TCP gives up, a quarter of an
    hour. If the old lane has only fallen silent, it was in that connection: then the first login
    goes past it. After that, the two take turns.

    Where ssh asks a daemon for its server's name (nscd, a local resolver) whose own queries we
    answer, there is no answer while the connection is lost. So after a name that could not be
    resolved it is the last known address's turn, and then the name's again.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._way = Way(is_shared, by_address=False)
        self._tried: set[bool] = set()  # with sharing, without

    @property
    def next(self) -> Way:
        """The one to take now."""
        return self._way

    @property
    def is_another_untried(self) -> bool:
        """True if logging in past (or through) the shared connection has yet to be tried."""
        return self._is_shared and len(self._tried) < 2

    def start(self, *, is_silent: bool) -> None:
        """The connection is lost; ``is_silent``: there is a lane that may yet answer."""
        self._way = Way(self._is_shared and not is_silent, by_address=False)
        self._tried.clear()

    def start_anew(self) -> None:
        """All have been tried, and it is to be tried again after a long time."""
        self._tried.clear()

    def on_failure(self, exit_code: ExitCode, *, has_address: bool) -> None:
        """The login failed. ``has_address``: it is known where ssh was connected to."""
        shares, by_address = self._way
        self._tried.add(shares)
        if exit_code is ExitCode.NAME and has_address and not by_address:
            self._way = Way(shares=False, by_address=True)
        else:
            self._way = Way(self._is_shared and not shares, by_address=False)
