"""A conversation with the real helper, which runs on a host of the lab: ask, hear."""

import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import sshunt
from sshunt.helper.protocol import (
    VERSION,
    Hello,
    Lost,
    Part,
    Reply,
    Request,
    Welcome,
)
from sshunt.helper.wire import decode_reply, encode_request
from sshunt.lab.hosts import Host

DEADLINE_S = 20.0

SESSION = "0123456789abcdef"

#: Serves as the real one does; the words behind the source say how it differs from that.
_PROGRAM = """
import socket, sys
sys.path.append(sys.argv[1])
from sshunt.capture import echo_rules, nft, nft_held
from sshunt.helper import nftables, server
if "hasty" in sys.argv:
    server.REQUEST_DEADLINE_S = 0.5
if "patient" in sys.argv:
    server.REQUEST_DEADLINE_S = 600.0
if "logless" in sys.argv:
    nft_held.SNAP_BYTES = "none"
if "echoless" in sys.argv:
    echo_rules.RATE = "none"
if "impatient" in sys.argv:
    nftables.CALL_DEADLINE_S = 3.0
user = [int(word[5:]) for word in sys.argv if word.startswith("user=")]
server.serve(socket.socket(fileno=0), user=sum(user), owner="plain" not in sys.argv)
"""


class Conversation:
    """``logless``: the kernel refuses rules that log SYNs. ``echoless``: those of echo requests.

    ``hasty``: a client's request must come whole within half a second. ``impatient``: a call
    into libnftables is stuck after three. ``patient``: a reply may wait for ten minutes until it is
    taken. ``plain``: tables that the kernel does not own. ``user=UID``: he has asked, not root.
    """

    def __init__(self, host: Host, *differences: str) -> None:
        self.host = host
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        self.lost: list[Part] = []
        self._lines = self.socket.makefile("rb")
        source = Path(sshunt.__path__[0]).parent
        program = [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(source), *differences]
        with theirs:
            self.process = host.popen(program, stdin=theirs.fileno(), stderr=subprocess.DEVNULL)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hang_up()
        self.process.wait(DEADLINE_S)

    def hang_up(self) -> None:
        self._lines.close()
        self.socket.close()

    def ask(self, request: Request) -> Reply:
        return self.say(encode_request(request))

    def say(self, line: bytes) -> Reply:
        self.socket.sendall(line)
        while isinstance(reply := decode_reply(self.line()), Lost):
            self.lost.append(reply.part)  # which may come before any reply
        return reply

    def line(self) -> bytes:
        """The next thing that it says."""
        return self._lines.readline()

    def greet(self, session: str = SESSION) -> None:
        assert self.ask(Hello(VERSION, session)) == Welcome(VERSION)

    def has_hung_up(self) -> bool:
        try:
            return self._lines.readline() == b""
        except ConnectionResetError:  # and has not read all that was said
            return True

    def tables(self) -> list[str]:
        """The host's tables, as nft lists them: "inet NAME"."""
        listing = self.host.run(["nft", "list", "tables"]).stdout
        return [line.removeprefix("table ") for line in listing.splitlines()]

    def rules(self) -> str:
        return self.host.run(["nft", "list", "ruleset"]).stdout
