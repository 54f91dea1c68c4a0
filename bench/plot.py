"""Pictures of what happened over time: throughput above, the echo's latency below, peers as lines.

Not here: measuring (wan.py) and medians (report.py). matplotlib is a tool of developers and slow to
import, so only the one who asks for a picture pays for it. Drawn without pyplot, which would keep
state and look for a display.
"""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Lines of (seconds since the load began, value): ``down_mbit_s``, ``up_mbit_s`` and ``ECHO``.
Timeline: TypeAlias = dict[str, list[tuple[float, float]]]

ECHO = "echo_ms"

DOCS = Path(__file__).resolve().parent.parent / "docs"

#: The ratio of latencies from which on the scale is logarithmic: at the foot of a linear one they
#: could not be told apart.
LOG_FROM = 5.0

#: The style of the pictures: the same on white and dark pages, with text that can be searched, and
#: drawing the same figures again gives the same file.
#: (Any: matplotlib's stubs name each key, and not the same ones in each version.)
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sshunt", "font.size": 11}

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: told apart by everybody
_DASHES = {"down_mbit_s": "-", "up_mbit_s": "--"}


def draw(name: str, title: str, peers: dict[str, Timeline]) -> Path:
    """Write docs/wan-NAME.svg and return its path."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained", facecolor="white")
        above, below = figure.subplots(2, 1, sharex=True)
        above.set_title(title)
        _throughput(above, peers)
        _latency(below, peers)
        below.set_xlabel("seconds since the load began")
        # Outside, because the lines of one peer or another go through every corner.
        figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        path = DOCS / f"wan-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
    print(f"drawn: {path}")
    return path


def _throughput(axes: "Axes", peers: dict[str, Timeline]) -> None:
    for colour, (peer, timeline) in zip(_COLOURS, peers.items(), strict=False):
        ways = [line for line in timeline if line != ECHO]
        for way in ways:
            label = f"{peer}, {way.removesuffix('_mbit_s')}" if len(ways) > 1 else peer
            at_s, mbit_s = zip(*timeline[way], strict=True)
            style = _DASHES[way] if len(ways) > 1 else "-"
            axes.plot(at_s, mbit_s, color=colour, linestyle=style, label=label)
    axes.set_ylabel("throughput, Mbit/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _latency(axes: "Axes", peers: dict[str, Timeline]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    typical = []
    for colour, timeline in zip(_COLOURS, peers.values(), strict=False):
        at_s, took_ms = zip(*timeline[ECHO], strict=True)
        typical.append(statistics.median(ms for s, ms in timeline[ECHO] if s > 0))
        axes.plot(at_s, took_ms, color=colour)
    if max(typical) > LOG_FROM * min(typical):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("echo of 16 bytes, ms")
    axes.grid(alpha=0.3)
