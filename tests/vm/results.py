"""Results of checks, on the terminal while they come and in docs/tested-on.md at the end.

The page has one part for each program that writes it (the guests', the installations'), between
two marks; a run replaces its own and leaves the others alone.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.vm.guests import CHECKOUT

PAGE = CHECKOUT / "docs" / "tested-on.md"

OK, FAILED, IMPOSSIBLE = "ok", "failed", "can't"


class Result(NamedTuple):
    """One check: its name, what came out of it, what was seen, how long it took."""

    name: str
    result: str
    why: str
    seconds: float


class Column(NamedTuple):
    """All that was found out about one system."""

    name: str
    facts: Mapping[str, str]
    results: Sequence[Result]

    @property
    def failed(self) -> list[Result]:
        """Those that should have held and did not."""
        return [result for result in self.results if result.result == FAILED]


def show(result: Result) -> None:
    """Print one line about a check that has just ended."""
    print(
        f"  {result.result:<7} {result.seconds:6.1f} s  {result.name}"
        + (f"\n                    {result.why}" if result.why else ""),
        flush=True,
    )


def today() -> str:
    """The date, for the page."""
    return datetime.date.today().isoformat()


def table(columns: Sequence[Column]) -> str:
    """Return a Markdown table: a column for each system, a row for each fact and each check."""
    facts = _in_order(name for column in columns for name in column.facts)
    checks = _in_order(result.name for column in columns for result in column.results)
    lines = [_row("", [column.name for column in columns]), _row("---", ["---"] * len(columns))]
    lines += [_row(name, [column.facts.get(name, "") for column in columns]) for name in facts]
    for name in checks:
        lines.append(_row(name, [_cell(column, name) for column in columns]))
    return "\n".join(lines)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _row(first: str, rest: Sequence[str]) -> str:
    return f"| {' | '.join([first, *rest])} |"


def _cell(column: Column, name: str) -> str:
    for result in column.results:
        if result.name == name:
            shown = result.result if result.result == OK else f"**{result.result}**"
            why = result.why.replace("|", "\\|").replace("\n", " ")
            return f"{shown}: {why}" if why else shown
    return "not tried"


def write_part(part: str, text: str) -> None:
    """Replace one part of the page, which has a place for it."""
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->\n"
    page = PAGE.read_text()
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")
