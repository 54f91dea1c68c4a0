"""Waiting for the end of what was started, whatever is cancelled meanwhile.

cancelled     cancel a task, and again, until it is done
to_its_end    finish a short piece of work although we are being cancelled
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

#: The pause between two cancellations of the same task. One may be swallowed: ``wait_for`` of
#: Python 3.11 and older does that to one that comes together with what it waits for.
AGAIN_S = 0.1


async def cancelled(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel ``tasks`` until all are done. What they raise then is of no interest any more; who
    wants a result asks it afterwards. If we are cancelled meanwhile, that is raised when all are
    done.
    """
    was_cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_S)
        except asyncio.CancelledError:
            was_cancelled = True
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: asyncio need not complain of it
    if was_cancelled:
        raise asyncio.CancelledError


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``, which is short; a cancellation, or several, is raised when it is done."""
    working = asyncio.ensure_future(work)
    was_cancelled = False
    while not working.done():
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError
