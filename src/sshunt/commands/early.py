"""The first step of ``sshunt up``: what takes other programs' time is started before the rest is
loaded, which takes as long.

    SshConfigQuery   ``ssh -G`` says what is configured
    HelperProcess    the privileged helper, where starting it asks nobody. If a password must be
                     typed for it, mistakes in the targets are told first

So little is imported here, and ``up`` when both are under way. Whoever is started here is ended
here, whatever becomes of us.
"""

import gc
import sys
from contextlib import ExitStack
from dataclasses import replace

from sshunt.config.options import Options
from sshunt.host.elevate import HelperProcess, is_free
from sshunt.host.namespace import entered, opened
from sshunt.tell.console import Console
from sshunt.transport.ssh_choices import SshConfigQuery


def run(options: Options, console: Console) -> int:
    """Bring the tunnel up, see ``up.run``; the exit status. Raises UserError."""
    _prepare_process()
    options = _with_namespace(options)
    with ExitStack() as started:
        with entered(options.namespace):
            helper_process = HelperProcess() if is_free() else None
        if helper_process is not None:
            started.callback(helper_process.close)
        query = SshConfigQuery(options.remote)
        started.callback(query.close)
        from sshunt.commands import up

        return up.run(options, console, query, helper_process)


def dry_run(options: Options, console: Console) -> str:
    """What would be done, as text: see ``up.dry_run``. Nothing is started for it."""
    _prepare_process()
    from sshunt.commands import up

    return up.dry_run(_with_namespace(options), console)


def _with_namespace(options: Options) -> Options:
    """With the path by which it is entered, in the place of its name; raises UserError."""
    if not options.namespace:
        return options
    return replace(options, namespace=opened(options.namespace))


def _prepare_process() -> None:
    gc.disable()  # start-up makes much that stays; ``up`` turns the collector on again
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # see agent.main
