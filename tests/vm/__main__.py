"""sshunt in virtual machines with Debian's own kernels: ./dev test-vm [GUEST...] [--keep]

Starts one guest after the other (``guests``), prints what it checks (``inside/checks.py``) as the
results come, and writes the table in docs/tested-on.md, from the last run of each. The exit code is
0 only if no check failed. What a guest that failed had on its console is kept.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.vm import guests, qemu, results, roots


def main(argv: Sequence[str]) -> int:
    """Run the guests that are named, or all."""
    options = _options(argv)
    columns = []
    for name in options.guests or guests.GUESTS:
        with roots.work_folder() as folder:
            columns.append(_run(guests.GUESTS[name], options, folder))
        if not options.only:
            _remember(columns[-1])
    for column in columns:
        count = sum(result.result == results.OK for result in column.results)
        print(
            f"vm: {column.name}: {count} of {len(column.results)} ok, {len(column.failed)} failed"
        )
    latest = [_remembered(name) for name in guests.GUESTS]
    if not options.only and all(latest):
        results.write_part("guests", results.table([column for column in latest if column]))
        print(f"vm: wrote {results.PAGE}")
    return 1 if any(column.failed for column in columns) else 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev test-vm", description=__doc__.partition("\n")[0])
    names = ", ".join(guests.GUESTS)
    parser.add_argument("guests", nargs="*", metavar="GUEST", help=f"{names}; all if none is named")
    parser.add_argument("--keep", action="store_true", help="leave each guest running until Ctrl-C")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CHECK", help="functions of inside/checks.py"
    )
    parser.add_argument("--fresh", action="store_true", help="make cached roots anew")
    options = parser.parse_args(argv)
    unknown = set(options.guests) - set(guests.GUESTS)
    if unknown:
        parser.error(f"no guest {', '.join(sorted(unknown))}; there are {names}")
    return options


def _run(guest: guests.Guest, options: argparse.Namespace, folder: Path) -> results.Column:
    """Make a guest's disk, run it, and return what it told."""
    begin = time.monotonic()
    column = results.Column(guest.name, {}, [])
    try:
        with guests.disk_of(guest, folder=folder, fresh=options.fresh, only=options.only) as disk:
            accelerator = qemu.accelerator(disk, folder / "trial")
            how = "with KVM" if accelerator == "kvm" else "emulated: /dev/kvm is of no use here"
            made = time.monotonic() - begin
            print(f"vm: {guest.name}: disk made in {made:.0f} s; starting it, {how}", flush=True)
            with qemu.running(disk, accelerator, folder) as machine:
                column = _listen(guest, machine)
                if options.keep:
                    _wait_for_person(folder)
        seconds = time.monotonic() - begin
        run = f"{results.today()}, {seconds / 60:.0f} minutes, {accelerator}"
        told = {**column.facts, "run": run}
        return column._replace(facts=told)
    finally:
        if column.failed or not column.results:
            _keep_logs(guest, folder)


def _listen(guest: guests.Guest, machine: qemu.Running) -> results.Column:
    """Collect what a guest tells until it is done, or does not go on."""
    facts: dict[str, str] = {}
    found: list[results.Result] = []
    begin = time.monotonic()
    log = roots.cache_folder() / f"{guest.name}.failures.log"
    log.unlink(missing_ok=True)
    try:
        for event in machine.events():
            kind = event["event"]
            if kind in ("booted", "rebooting"):
                print(
                    f"vm: {guest.name}: {kind} after {time.monotonic() - begin:.0f} s", flush=True
                )
            elif kind == "facts":
                facts = event["facts"]
                print(f"vm: {guest.name}: {', '.join(f'{k} {v}' for k, v in facts.items())}")
            elif kind == "check":
                result = results.Result(
                    event["name"], event["result"], event["why"], event["seconds"]
                )
                found.append(result)
                results.show(result)
                if event["log"]:
                    with log.open("a") as file:
                        file.write(f"=== {result.name}: {result.result}\n{event['log']}\n")
    except qemu.GuestError as error:
        result = results.Result("comes to its end", results.FAILED, str(error), 0.0)
        found.append(result)
        results.show(result)
    return results.Column(guest.name, facts, found)


def _keep_logs(guest: guests.Guest, folder: Path) -> None:
    for name in ("console.log", "qemu.log"):
        kept = roots.cache_folder() / f"{guest.name}.{name}"
        if (folder / name).exists():
            shutil.copy(folder / name, kept)
            print(f"vm: see {kept}", flush=True)
    print(f"vm: see {roots.cache_folder()}/{guest.name}.failures.log", flush=True)


def _wait_for_person(folder: Path) -> None:
    print(
        f"vm: the guest is kept; root is logged in on its console:\n"
        f"    sudo socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{folder}/console.socket\n"
        f"    (Ctrl-] leaves); /opt/checks/run NAME runs a check of inside/checks.py again.\n"
        f"vm: press Ctrl-C here to end it",
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def _remember(column: results.Column) -> None:
    """Keep the results of a guest's last run: the page shows those of all guests."""
    path = roots.cache_folder() / f"{column.name}.results.json"
    path.write_text(json.dumps(column))


def _remembered(name: str) -> results.Column | None:
    path = roots.cache_folder() / f"{name}.results.json"
    if not path.exists():
        return None
    name, facts, found = json.loads(path.read_text())
    return results.Column(f"Debian {name}", facts, [results.Result(*result) for result in found])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
