"""``sshunt cleanup``: removes what sessions that were killed have left in the kernel.

    tables and chains      where the kernel does not remove them by itself: plain ones, iptables'
    kill switches          of --fail block: those of the user who asks; of everybody if that is root
    control groups         empty ones, of where we are and above

The first and the last are removed by the start of any session, too; a kill switch only by one that
routes the same networks. It is the helper that does it, and so a password may be asked for. What
belongs to a session that lives is left alone.

Not here: how a dead session is told from a living one (helper.marks, helper.blocks).
"""

import argparse
import asyncio
import secrets
from collections.abc import Sequence
from typing import NoReturn

from sshunt.capture.plan import Method
from sshunt.errors import ExitCode, UserError
from sshunt.helper.protocol import Refusal
from sshunt.host.helper import CaptureRefused, start_helper
from sshunt.tell.console import Console

_HELP = """\
Removes what sessions of sshunt that were killed have left: rules, control groups, and what --fail
block keeps blocked. Prints a line for each. Sessions that live are left alone.
"""


def cleanup(argv: Sequence[str], console: Console) -> int:
    """The verb ``sshunt cleanup``; raises UserError."""
    _parser().parse_args(argv)
    removed = asyncio.run(_removed())
    for thing in removed:
        print(f"removed: {thing}")
    if not removed:
        console.line("there is nothing to remove")
    return ExitCode.OK


async def _removed() -> tuple[str, ...]:
    by_nft = await _removed_by(Method.NFT)
    try:
        return (*by_nft, *await _removed_by(Method.NAT))
    except CaptureRefused as error:
        if error.kind is not Refusal.NO_IPTABLES:
            raise
        return by_nft  # there is none, and so nothing of it


async def _removed_by(method: Method) -> tuple[str, ...]:
    helper = await start_helper(session=secrets.token_hex(4), method=method)
    try:
        return await helper.cleanup()
    finally:
        await helper.close()


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as everybody else's: two lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, "see: sshunt cleanup --help", ExitCode.USAGE)


def _parser() -> _Parser:
    return _Parser(
        prog="sshunt cleanup",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
