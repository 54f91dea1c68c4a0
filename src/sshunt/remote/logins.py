"""What becomes of one login, said to the Report: a transport's ``Hearer``.

    FIRST_LOGIN     of a session         what ssh prints is for everybody
    LATER_LOGIN     after a loss         for who asked for details
    FURTHER_LOGIN   of one more lane     the same, finer: the first has shown the banner

Not here: which line a person reads of it (tell.sentences), the login (transport).
"""

from sshunt.tell.report import FarSideSilent, KnownAddressTried, Report, SshSaid
from sshunt.transport.channel import Channel


class Login:
    """One login to ``remote``, the far side's name for people; ``kind``: one of those above."""

    def __init__(self, report: Report, remote: str, kind: int) -> None:
        self.channel: Channel | None = None  # as soon as its program runs
        self._report = report
        self._remote = remote
        self._kind = kind

    def on_started(self, channel: Channel) -> None:
        """See ``transport.channel.Hearer``."""
        self.channel = channel

    def on_line(self, line: str) -> None:
        """See ``transport.channel.Hearer``."""
        self._report.say(SshSaid(self._remote, self._kind, line))

    def on_silence(self, why: str) -> None:
        """See ``transport.channel.Hearer``."""
        self._report.say(FarSideSilent(self._remote, self._kind, why))

    def on_known_address(self, address: str) -> None:
        """See ``transport.channel.Hearer``."""
        self._report.say(KnownAddressTried(self._remote, address))
