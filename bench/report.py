"""Medians, tables and the JSON file.

Results are plain dictionaries, so that any tool can read them.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Number: TypeAlias = float | int | None
Row: TypeAlias = dict[str, float | None]

OUT = Path(__file__).resolve().parent / "out"


def median(values: Sequence[Number]) -> float | None:
    """Return the median of the values that there are, or None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value below which ``percent`` of the values lie, or None without any."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def medians(rounds: Sequence[Row]) -> Row:
    """Return the median of each field over the rounds."""
    fields: dict[str, None] = dict.fromkeys(field for row in rounds for field in row)
    return {field: median([row.get(field) for row in rounds]) for field in fields}


def ratio(one: Number, other: Number) -> float | None:
    """Return one / other where both are known."""
    return one / other if one is not None and other else None


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str | Number]]) -> None:
    """Print a table, the first column to the left, all others to the right."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())


def write(name: str, options: Mapping[str, object], results: Mapping[str, object]) -> Path:
    """Write bench/out/NAME-TIME.json and return its path."""
    OUT.mkdir(exist_ok=True)
    when = time.strftime("%Y%m%d-%H%M%S")
    path = OUT / f"{name}-{when}.json"
    document = {
        "benchmark": name,
        "when": when,
        "machine": machine(),
        "options": dict(options),
        **results,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten: {path}")
    return path


def machine() -> dict[str, object]:
    """Return what figures depend on."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False)
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssh": ssh.stderr.strip(),
    }


def _cell(value: str | Number) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}"
