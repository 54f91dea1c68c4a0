"""A stand-in for the client, for ``test_capture``: the real helper, and listeners that tell.

    python capturing.py [--plain | --impatient] CONTROL_FD SESSION

Every accepted connection is answered with "captured ADDRESS PORT" (the original destination) and
closed. Commands come as JSON lines on the control socket, each is answered by one line:

    ["guard"]                                       true or false
    ["apply", routes, listen4, listen6, bypass]     [port4, port6, owner]; listen*: address or null,
                                                    or [address, port] of somebody else's listener
    ["bypass", endpoints]                           null
    ["keep", addresses]                             null
    ["undo"]                                        null
    ["connect", address, port]                      what the other side says
    ["peers", address, port]                        ssh_peers of ourselves, connected to there
    ["close"]                                       null, after the helper has ended
    ["helper"]                                      true if it is still there

PROGRAMS in the environment is where programs are looked for, instead of PATH. The first line says
"ready", or the UserError that kept the helper from starting. ``--plain`` starts a helper that makes
tables without the owner flag, ``--impatient`` one whose sweeper waits for it a second only.
"""

import asyncio
import json
import os
import socket
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import sshunt
from sshunt.capture.plan import Plan, redirects
from sshunt.errors import UserError
from sshunt.front.original import NotRedirected, OriginalDestinations
from sshunt.host.helper import Helper, start_helper
from sshunt.model import Action, Endpoint, Route
from sshunt.transport.peers import ssh_peers

# A test can't wait for half a minute.
_SPECIAL = """
import socket, sys
sys.path.append(sys.argv[1])
from sshunt.capture import nft
from sshunt.helper import server, sweeper
nft.ALIVE_S, server.RENEW_EVERY_S, sweeper.PATIENCE_S = 2, 0.5, 1.0
server.serve(socket.socket(fileno=0), owner=sys.argv[2] != "--plain")
"""


async def start_special_helper(session: str, option: str) -> Helper:
    ours, theirs = socket.socketpair()
    source = Path(sshunt.__path__[0]).parent
    await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-B", "-c", _SPECIAL, str(source), option),
        stdin=theirs.fileno(),
        start_new_session=True,
    )
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    helper = Helper(reader, writer)
    await helper.greet(session, 10.0)
    return helper


def listen(address: str | list[Any] | None) -> Endpoint | None:
    if address is None:
        return None
    if isinstance(address, list):
        return address[0], address[1]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.create_server((address, 0), family=family)
    sock.setblocking(False)
    original = OriginalDestinations(sock)

    def accept() -> None:
        accepted, _ = sock.accept()
        with accepted:
            try:
                accepted.sendall("captured {} {}\n".format(*original.of(accepted)).encode())
            except NotRedirected:
                accepted.sendall(b"not redirected\n")

    asyncio.get_running_loop().add_reader(sock, accept)
    return address, sock.getsockname()[1]


def connect(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=5) as sock:
        return sock.makefile().readline().strip()


def peers(address: str, port: int) -> tuple[Endpoint, ...]:
    with socket.create_connection((address, port), timeout=5):
        return ssh_peers(os.getpid())


async def obey(helper: Helper, session: str, command: list[Any]) -> Any:
    loop = asyncio.get_running_loop()
    match command:
        case ["guard"]:
            return await helper.guard()
        case ["apply", routes, listen4, listen6, bypass]:
            listeners = [listen(address) for address in (listen4, listen6)]
            plan = Plan(
                session,
                redirects([listener for listener in listeners if listener is not None]),
                tuple(Route(ip_network(net), Action(action), a, b) for net, action, a, b in routes),
                tuple((address, port) for address, port in bypass),
            )
            await helper.apply(plan)
            return [*(listener and listener[1] for listener in listeners), helper.owner]
        case ["bypass", endpoints]:
            return await helper.bypass([(address, port) for address, port in endpoints])
        case ["keep", addresses]:
            return await helper.retain(addresses)
        case ["undo"]:
            return await helper.undo()
        case ["connect", address, port]:
            return await loop.run_in_executor(None, connect, address, port)
        case ["peers", address, port]:
            return await loop.run_in_executor(None, peers, address, port)
        case ["close"]:
            return await helper.close()
        case ["helper"]:
            return not helper.gone.is_set()
    raise ValueError(f"unknown command: {command}")


async def main() -> None:
    *options, descriptor, session = sys.argv[1:]
    if "PROGRAMS" in os.environ:
        os.environ["PATH"] = os.environ["PROGRAMS"]
    control = socket.socket(fileno=int(descriptor))
    reader, writer = await asyncio.open_connection(sock=control, limit=16 * 1024 * 1024)

    def say(value: Any) -> None:
        writer.write(json.dumps(value).encode() + b"\n")

    try:
        start = (
            start_special_helper(session, *options) if options else start_helper(session=session)
        )
        helper = await start
    except UserError as error:
        say([error.message, error.hint, error.exit_code])
        return
    say("ready")
    while line := await reader.readline():
        try:
            say(await obey(helper, session, json.loads(line)))
        except UserError as error:
            say([error.message, error.hint, error.exit_code])
        except OSError as error:
            say(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
