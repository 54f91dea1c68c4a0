"""Hears what happens, and shows it: a line of the console for each event that has a sentence.

Not here: the words (sentences), how a line comes onto a terminal (console).
"""

from sshunt.tell.console import Console
from sshunt.tell.report import Event, LoginEnded, LoginStarted, Report
from sshunt.tell.sentences import ALWAYS, DETAIL, RAW, sentence


class Printer:
    """Shows on ``console`` what ``report`` passes on, as fine as was asked for."""

    def __init__(self, console: Console, report: Report) -> None:
        self._console = console
        report.subscribe(self._hear, streams=console.verbosity >= DETAIL)

    def _hear(self, event: Event) -> None:
        if isinstance(event, LoginStarted):
            self._console.give_way()
        elif isinstance(event, LoginEnded):
            self._console.take_back()
        told = sentence(event)
        if told is None:
            return
        level, text = told
        if level == RAW:
            self._console.raw(text)
        elif level == ALWAYS:
            self._console.line(text)
        else:
            self._console.detail(level, text)
