"""Hears what happens, and shows it: a line of the console for each event that has a sentence.

A front that pauses says so twice a second for as long as it does; it is shown now and then.

Not here: the words (sentences), how a line comes onto a terminal (console).
"""

import time

from sshunt.tell.console import Console
from sshunt.tell.report import Event, FrontPaused, LoginEnded, LoginStarted, Report
from sshunt.tell.sentences import ALWAYS, DETAIL, RAW, sentence

#: The interval after which a front may complain again.
COMPLAIN_EVERY_S = 10.0


class Printer:
    """Shows on ``console`` what ``report`` passes on, as fine as was asked for."""

    def __init__(self, console: Console, report: Report) -> None:
        self._console = console
        self._complained_at: dict[str, float] = {}  # by front
        report.subscribe(self._hear, streams=console.verbosity >= DETAIL)

    def _hear(self, event: Event) -> None:
        if isinstance(event, LoginStarted):
            self._console.give_way()
        elif isinstance(event, LoginEnded):
            self._console.take_back()
        told = sentence(event)
        if told is None or (isinstance(event, FrontPaused) and not self._may_complain(event.front)):
            return
        level, text = told
        if level == RAW:
            self._console.raw(text)
        elif level == ALWAYS:
            self._console.line(text)
        else:
            self._console.detail(level, text)

    def _may_complain(self, front: str) -> bool:
        now = time.monotonic()
        if now - self._complained_at.get(front, float("-inf")) <= COMPLAIN_EVERY_S:
            return False
        self._complained_at[front] = now
        return True
