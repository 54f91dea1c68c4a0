"""Where every sshunt begins: the installed command, ``python -m sshunt``, this file by its path.

What must be right before anything else is loaded, and whatever is wrong with it:

* Ctrl-C ends us without a word, as it ends any program that does not look: loading takes a tenth of
  a second, in which Python would answer with a traceback. Who has something to undo says so later.
* Descriptors 0, 1 and 2 are open, here and in what we start: a socket that took the place of a
  closed stderr would be written to by everybody who has something to say.
* A Python that is too old is told so in words. So this file has the syntax of Python 3.6.

By its path is how root runs us (``demo``): ``python -I -B .../sshunt/__main__.py`` looks for
modules neither in the current directory, as ``-m`` does, nor in one that the environment names.
Then the package is found by this file's own place, and is searched last.

Not here: what the words mean (cli).
"""

import os
import signal
import sys

MIN_PYTHON = (3, 10)


def main() -> int:
    """Run the command line; the exit status. What ended for a signal ends by that signal, but for
    SIGQUIT, which would leave a core file.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_descriptors()
    if sys.version_info < MIN_PYTHON:
        return _too_old()
    from sshunt.cli import main as run
    from sshunt.errors import ExitCode

    try:
        status = run()
    finally:
        _flush()
    number = status - ExitCode.SIGNALLED
    if number > 0 and number != signal.SIGQUIT:
        _die_by(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and the status is what it is
    return status


def _open_standard_descriptors() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(descriptor, True)
    # Python's own objects, None where there was nothing: print() and argparse need something.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flush() -> None:
    """Print what has not been printed. Whoever reads it may have enough, as ``head`` has: then
    Python would complain of it at its end.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError:
        pass  # a full disk: that Python may complain of


def _too_old() -> int:
    wanted, found = (".".join(map(str, version)) for version in (MIN_PYTHON, sys.version_info[:3]))
    sys.stderr.write(
        "sshunt: error: this is Python {} ({}), and sshunt needs {} or newer\n"
        "sshunt: hint: start it with another one, such as python3.11 -m sshunt;"
        " on the server any from 3.6 on will do\n".format(found, sys.executable, wanted)
    )
    return 2


def _die_by(number: int) -> None:
    """So that a shell, and whatever else waits for us, knows it was the signal. (Nothing happens in
    a container's first process; then the status has to do.)
    """
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    if not __package__:
        here = os.path.dirname(os.path.abspath(__file__))
        sys.path[:] = [*(path for path in sys.path if path != here), os.path.dirname(here)]
    sys.exit(main())
