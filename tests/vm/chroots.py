"""sshunt in roots of other Debians, without machines of their own: ./dev test-roots

README's installation on fresh Debians (``installing``), and servers of other Debians (``servers``).
Prints results as they come and writes them into docs/tested-on.md after a run of everything. The
exit code is 0 only if nothing failed.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

from sshunt.lab.world import Lab
from tests.vm import installing, results, roots, servers


def main(argv: Sequence[str]) -> int:
    """Try what is named, or everything."""
    options = _options(argv)
    begin = time.monotonic()
    installed, served = [], []
    with roots.work_folder() as folder:
        for name in _wanted(options.names, installing.RELEASES):
            print(f"roots: installing on {name}", flush=True)
            with Lab() as lab:
                lab.web(lab.target)
                installed.append(installing.try_all(name, folder, lab, renew=options.fresh))
        for name in _wanted(options.names, servers.SERVERS):
            print(f"roots: a server of {name}", flush=True)
            with Lab(sshd=False) as lab:
                lab.web(lab.target)
                served.append(servers.try_all(name, folder, lab, renew=options.fresh))
    failed = [result for column in (*installed, *served) for result in column.failed]
    print(f"roots: {len(failed)} failed")
    if not options.names:
        results.write_part("installations", _part(installed, time.monotonic() - begin))
        results.write_part("servers", results.table(served))
        print(f"roots: wrote {results.PAGE}")
    return 1 if failed else 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev test-roots", description=__doc__.partition("\n")[0]
    )
    known = (*installing.RELEASES, *servers.SERVERS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="; ".join(dict.fromkeys(known)))
    parser.add_argument("--fresh", action="store_true", help="make cached roots anew")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _wanted(names: Sequence[str], known: Iterable[str]) -> list[str]:
    return [name for name in known if not names or name in names]


def _part(columns: Sequence[results.Column], seconds: float) -> str:
    minutes = f"{seconds / 60:.0f} minutes, the servers below included"
    run = f"The run of {results.today()} took {minutes}."
    return f"{run}\n\n{results.table(columns)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
