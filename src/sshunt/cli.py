"""The command line: words in, ``Options`` out, and the process' exit status.

Options mean what sshuttle's manual says of them. Nothing is done here but to understand what was
typed, to run it, and to show errors as two lines: what happened, what to do.
"""

import argparse
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import NoReturn

from sshunt import __version__
from sshunt.config.options import (
    ANYWHERE4,
    ANYWHERE6,
    DEFAULT_GRACE_S,
    DEFAULT_LANES,
    DEFAULT_LISTEN4,
    DEFAULT_LISTEN6,
    MAX_GRACE_S,
    MAX_LANES,
    Options,
)
from sshunt.config.remotes import parse_remote
from sshunt.config.targets import Target, parse_target, read_target_file
from sshunt.config.wordfiles import expand
from sshunt.errors import ExitCode, UserError
from sshunt.model import LINK_NAME, Endpoint
from sshunt.tell.console import Console

_LISTEN = re.compile(
    r"(?P<alone>\d{1,5})|(?:\[(?P<bracketed>[^\]]+)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>\d{1,5}))?"
)

_BROADCAST = ip_address("255.255.255.255")

#: What people type who know other programs. As the name of a target it needs "up" in front.
_NO_COMMANDS = {
    "status": "it says how it is on the terminal or in the log that it was started with",
    "stop": "Ctrl-C stops it, or from elsewhere: pkill -x sshunt",
    "down": "Ctrl-C stops it, or from elsewhere: pkill -x sshunt",
    "start": "to start: sshunt -r HOST TARGET...",
    "restart": "to connect again: sshunt reconnect",
    "version": "the version: sshunt --version",
}

_EPILOG = """\
targets:
  10.0.0.0/8                 a network; 0/0 is everything
  192.0.2.7:443              one port; 10.0.0.0/8:8000-9000 a range of ports
  2001:db8::/32              IPv6; with ports: [2001:db8::1]:80
  git.corp.example           a name: all its addresses, as this host resolves it
  @FILE                      the words of a file, one a line: options, too, such as -e, which
                             runs a command. For lists that others wrote: -s FILE

  The most specific target or exclusion wins.

examples:
  sshunt -r alice@gate.corp.example 10.0.0.0/8
  sshunt -r gate 0/0 -x 192.168.1.0/24          everything but the network at home
  sshunt --dns -r gate 10.0.0.0/8               names of the network over there, too
  sshunt -r gate -l 0.0.0.0:0 10.0.0.0/8        for the hosts behind this router, too
  sshunt -r gate --from docker0 10.0.0.0/8      ... for containers on that bridge
  sshunt reconnect                              connect again now, not at the next attempt
  sshunt cleanup                                remove what a session that was killed has left
  sshunt sudoers                                the line that spares you the password
  sshunt demo                                   see it work on a throw-away network

exit status:
  0 asked to stop   1 a bug of sshunt   2 usage   10 unknown name   11 ssh can't connect
  12 login refused  13 ssh host key     14 no Python there          15 the far side failed
  20 no privilege   21 no rules made    22 can't listen             23 lost after it was up
  130 asked to stop by Ctrl-C while still starting; 143 by SIGTERM, 129 by SIGHUP
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        if words[:1] == ["demo"]:
            from sshunt.commands import demo

            return demo.main(words[1:])
        if words[:1] == ["reconnect"]:
            from sshunt.commands import reconnect

            return reconnect.reconnect(words[1:], console)
        if words[:1] == ["sudoers"]:
            from sshunt.commands import sudoers

            return sudoers.sudoers(words[1:], console)
        if words[:1] == ["install-helper"]:
            from sshunt.commands import install_helper

            return install_helper.install_helper(words[1:], console)
        if words[:1] == ["cleanup"]:
            from sshunt.commands import cleanup

            return cleanup.cleanup(words[1:], console)
        if words[:1] == ["help"]:
            words[0] = "--help"
        if words[:1] == ["up"]:
            del words[0]
        elif words and words[0] in _NO_COMMANDS:
            raise _no_such_command(words[0])
        options = parse(words)
        console.verbosity = options.verbosity
        from sshunt.commands import early

        if options.dry_run:
            text = early.dry_run(options, console)
            with suppress(BrokenPipeError):  # whoever reads it has enough: | head
                print(text, end="")
            return ExitCode.OK
        return early.run(options, console)
    except UserError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.SIGNALLED + signal.SIGINT
    except ModuleNotFoundError as error:
        if error.name != "psutil":
            return _bug(console)
        console.error(
            UserError(
                f"the module psutil is not there for this Python ({sys.executable})",
                "install it: apt install python3-psutil; or install sshunt with pip, which does",
                ExitCode.USAGE,
            )
        )
        return ExitCode.USAGE
    except Exception:  # noqa: BLE001 (the top of the program: a bug, not an answer)
        return _bug(console)


def _no_such_command(word: str) -> UserError:
    return UserError(
        f"there is no command {word!r};"
        " there are up, reconnect, sudoers, install-helper, demo and help",
        f"{_NO_COMMANDS[word]} (for a host of that name: sshunt up ... {word})",
        ExitCode.USAGE,
    )


def _bug(console: Console) -> int:
    import traceback

    console.raw(traceback.format_exc())
    console.error(
        UserError("this is a bug in sshunt", "please report the lines above", ExitCode.INTERNAL)
    )
    return ExitCode.INTERNAL


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as everybody else's: two lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "see: sshunt --help", ExitCode.USAGE)


def parse(words: Sequence[str]) -> Options:
    """The options in ``words``; raises UserError."""
    args = _parser().parse_intermixed_args(expand(words))
    targets = [parse_target(word) for word in args.targets]
    for path in args.subnets:
        targets.extend(read_target_file(path))
    excludes: list[Target] = [parse_target(word) for word in args.exclude]
    for path in args.exclude_from:
        excludes.extend(read_target_file(path))
    if not args.remote:
        raise UserError("no remote host was given", "give one: -r [user@]host", ExitCode.USAGE)
    if not targets:
        raise UserError(
            "no target was given",
            "name what should be reached, such as 10.0.0.0/8; 0/0 is everything",
            ExitCode.USAGE,
        )
    links = tuple(dict.fromkeys(args.links))
    listen4, listen6, served = _listen(args.listen, ipv6=not args.disable_ipv6, others=bool(links))
    return Options(
        remote=parse_remote(
            args.remote,
            ssh_command=args.ssh_cmd,
            python=args.python,
            delimiter=not args.no_cmd_delimiter,
        ),
        targets=tuple(targets),
        excludes=tuple(excludes),
        listen4=listen4,
        listen6=listen6,
        verbosity=args.verbose,
        dry_run=args.dry_run,
        lanes=args.lanes,
        grace_s=args.grace,
        max_retries=args.max_retries,
        fail_open=args.fail == "open",
        fail_block=args.fail == "block",
        links=links,
        served=served,
        namespace=args.namespace,
        method=args.method,
        zero_copy=args.zero_copy,
        dns=args.dns,
        ping=not args.no_ping,
        udp=args.udp,
        any_peer=args.udp_filter == "none",
        connect=args.connect,
    )


def _parser() -> _Parser:
    parser = _Parser(
        prog="sshunt",
        usage="sshunt [up] -r [USER@]HOST[:PORT] [options] TARGET...\n"
        "       sshunt reconnect [SESSION]\n       sshunt cleanup\n"
        "       sshunt sudoers [--user NAME] [--doas]\n"
        "       sshunt install-helper [--socket]\n       sshunt demo",
        description="Reach a remote network from unmodified programs over a plain ssh login.\n"
        "Nothing is installed on the server, no root is needed there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=True,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="what to reach through the remote host")
    add("-r", "--remote", metavar="[USER@]HOST[:PORT]", help="the ssh server; ssh://... works, too")
    add("-x", "--exclude", action="append", default=[], metavar="TARGET", help="leave this alone")
    add(
        "-X",
        "--exclude-from",
        action="append",
        default=[],
        metavar="FILE",
        help="leave alone what the file names, one target a line",
    )
    add(
        "-s",
        "--subnets",
        action="append",
        default=[],
        metavar="FILE",
        help="reach what the file names, one target a line",
    )
    add(
        "--dns",
        action="store_true",
        help="look up names on the far side: what this host's programs ask its resolvers (those in "
        "/etc/resolv.conf) is asked of the far side's instead",
    )
    add(
        "--no-ping",
        action="store_true",
        help="leave ping and traceroute alone; else programs hear what hosts and routers there "
        "answer",
    )
    add(
        "--no-udp",
        dest="udp",
        action="store_false",
        help="carry TCP only; UDP goes the way that it went before",
    )
    add(
        "--udp-filter",
        choices=("address", "none"),
        default="address",
        help="whose datagrams a program hears: of hosts that it has sent something to, from "
        "any port (address), or of all in the targets (none; games and calls between peers need "
        "it); default: address",
    )
    add("-e", "--ssh-cmd", default="ssh", metavar="CMD", help="ssh and its options; default: ssh")
    add("--python", metavar="PROGRAM", help="the Python on the remote host; default: found there")
    add(
        "-l",
        "--listen",
        metavar="[IP][:PORT][,...]",
        help="accept redirected connections here, for IPv4, IPv6 or both; an address that other "
        "hosts can reach captures what this host forwards, too: 0.0.0.0:0 from every link, one "
        "address, or several, from the link that has it; "
        "default, also for the family that is not named: any port of localhost",
    )
    add(
        "--namespace",
        default="",
        metavar="NAME|PID",
        help="capture in this network namespace (of ip netns, or of a process), while ssh runs "
        "outside of it; for root only",
    )
    add(
        "--from",
        dest="links",
        action="append",
        type=_link,
        default=[],
        metavar="IFACE",
        help="capture what comes in by this interface and is forwarded, and of others' nothing "
        "else; may be given several times; without --listen, any port of all addresses is "
        "listened on",
    )
    add(
        "--connect",
        choices=["auto", "honest", "fast"],
        default="auto",
        help="when a program's connect() succeeds: honest, when the far side has connected (and it "
        "fails as that fails), which takes a round trip; fast, at once; "
        "default: auto, honest except where somebody has answered in the last half minute",
    )
    add(
        "--lanes",
        type=_lanes,
        default=DEFAULT_LANES,
        metavar="N",
        help="ssh connections at most; further ones are opened when one is what limits the speed, "
        f"and never ask for a password; default: {DEFAULT_LANES}",
    )
    add(
        "--grace",
        type=_duration,
        default=DEFAULT_GRACE_S,
        metavar="TIME",
        help="how long the far side keeps open connections while there is no ssh connection: "
        "seconds, or 90m, 12h, 2d; 0: they end with the ssh connection; default: 1h",
    )
    add(
        "--max-retries",
        type=_count,
        metavar="N",
        help="attempts to connect again that may fail, one after the other; the next failure ends "
        "sshunt; default: no limit",
    )
    add(
        "--fail",
        choices=("closed", "open", "block"),
        default="closed",
        help="while the connection is lost, connections to the targets wait (closed), or go the "
        "way they would without sshunt (open: unprotected, by whatever network there is); block: "
        "as closed, and nothing reaches the targets another way, even if sshunt is killed, until "
        "it is started again or sshunt cleanup; default: closed",
    )
    add(
        "--zero-copy",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether data stays in the kernel on its way through sshunt, at both ends; auto: "
        "where the system can and speed makes it matter; default: auto",
    )
    add(
        "--method",
        type=_method,
        choices=("auto", "nft", "nat"),
        default="auto",
        help="what captures: nft (nftables: TCP, UDP, ping, DNS), nat (iptables: TCP and DNS); "
        "auto: nft, and nat where there are no nftables; default: auto",
    )
    add("--disable-ipv6", action="store_true", help="leave IPv6 alone")
    add(
        "--no-cmd-delimiter",
        action="store_true",
        help="put no -- before the remote command, for ssh commands that don't know it",
    )
    add(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more: when each step was done, every connection",
    )
    add("--dry-run", action="store_true", help="print the exact rules and change nothing")
    add("-V", "--version", action="version", version=f"sshunt {__version__}")
    return parser


#: Ways to capture of other systems, and what there is to say about them.
_NOT_HERE = {
    "pf": "it is the firewall of macOS, FreeBSD and OpenBSD, on which sshunt does not run yet",
    "ipfw": "FreeBSD's older firewall is not among what sshunt knows",
    "tproxy": "there is none: nft captures UDP as well and needs no policy routing",
}


def _method(text: str) -> str:
    """Whether it is one at all, argparse knows; raises UserError for those of other systems."""
    if text in _NOT_HERE:
        raise UserError(
            f"--method {text}: {_NOT_HERE[text]}",
            "leave it out: what this host has is found",
            ExitCode.USAGE,
        )
    return text


def _lanes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_LANES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_LANES}")
    return int(text)


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else -1
    if not 0 <= seconds <= MAX_GRACE_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time up to 7d, such as 3600, 90m, 1h")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of attempts")
    return int(text)


def _link(text: str) -> str:
    if LINK_NAME.fullmatch(text) is None or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of an interface")
    return text


def _listen(
    text: str | None, *, ipv6: bool, others: bool = False
) -> tuple[Endpoint | None, Endpoint | None, tuple[str, ...]]:
    """The IPv4 and the IPv6 listener; and, where several addresses of one family are named, all
    those whose links are served: there is one socket then, on all addresses.

    A family that is not named keeps its default: nothing that was asked for should go another way
    because the other family was configured. With ``others`` other hosts must be able to reach them.
    """
    asked: dict[int, list[Endpoint]] = {}
    for part in text.split(",") if text is not None else ():
        family, endpoint = _endpoint(part)
        asked.setdefault(family, []).append(endpoint)
    named = {family: _together(endpoints) for family, endpoints in asked.items()}
    several = any(len(endpoints) > 1 for endpoints in asked.values())
    served = [
        a for endpoints in asked.values() for a, _ in endpoints if several and _is_of_a_link(a)
    ]
    for address, _ in named.values() if others else ():
        if ip_address(address).is_loopback:
            raise _bad_listen(address, "what comes from other hosts (--from) never gets there")
    default4, default6 = (ANYWHERE4, ANYWHERE6) if others else (DEFAULT_LISTEN4, DEFAULT_LISTEN6)
    listen6 = named.get(socket.AF_INET6, default6)
    listen4 = named.get(socket.AF_INET, default4)
    return listen4, listen6 if ipv6 else None, tuple(served)


def _together(endpoints: list[Endpoint]) -> Endpoint:
    """One for all that are of one family; raises UserError."""
    if len(endpoints) == 1:
        return endpoints[0]
    first, port = endpoints[0]
    for address, other_port in endpoints:
        if not _is_of_a_link(address):
            raise _bad_listen(address, "a second address of the same family")
        if other_port != port:
            raise _bad_listen(address, "several addresses of one family have one port")
    return (ANYWHERE6 if ":" in first else ANYWHERE4)[0], port


def _is_of_a_link(address: str) -> bool:
    return not (ip_address(address).is_loopback or ip_address(address).is_unspecified)


def _endpoint(text: str) -> tuple[int, Endpoint]:
    """The (family, endpoint) of ``IP``, ``:PORT``, ``PORT``, ``IP:PORT``, ``[IPv6]:PORT`` or a name
    in the place of IP.
    """
    found = _LISTEN.fullmatch(text.strip())
    if found is None:
        raise _bad_listen(text, "not an address and a port")
    host = found["bracketed"] or found["plain"] or DEFAULT_LISTEN4[0]
    port = int(found["port"] or found["alone"] or 0)
    if port > 65535:
        raise _bad_listen(text, "ports are 0 to 65535")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _bad_listen(text, f"{host!r} is no address of this host")
    family, _, _, _, address = addresses[0]
    numeric = ip_address(str(address[0]).partition("%")[0])
    if numeric.is_multicast or numeric == _BROADCAST:
        raise _bad_listen(text, "nobody can connect to such an address")
    return family, (str(address[0]), port)


def _bad_listen(text: str, problem: str) -> UserError:
    return UserError(
        f"--listen {text}: {problem}",
        "examples: 12300, 0.0.0.0, 0.0.0.0:0, 127.0.0.1:12300,[::1]:12300",
        ExitCode.USAGE,
    )
