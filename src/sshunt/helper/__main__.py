"""What sudo runs: ``python3 -I -S -B .../sshunt/helper/__main__.py``, the socketpair as its stdin.

With ACCEPTED_WORD behind it, it is what the service manager runs (contrib/systemd), with a
connection as its stdin that was made to SERVICE_SOCKET.

The client trusts us with its wishes and we trust it with nothing. Before the first byte is read, in
stages that each assume the ones before:

1. Ctrl-C and hang-ups belong to the client; it says goodbye, or its socket closes. What else he who
   started us had blocked or ignored, which sudo hands on, is as usual again.
2. Standard input must be a socketpair's end, and nothing else that has a peer (``starter``); the
   service manager's must be a connection that it has accepted, of somebody who may. sudo
   replaces it by a pipe where the administrator has it record input (``log_input``), and then there
   is nobody to talk to.
3. Only that socket stays open, the umask is 077, the environment is empty, we stand in ``/``.
4. A child in a session of its own does the work, and we exit at once. sudo ends with us, gives the
   terminal back, and nothing of it stays: neither its monitor process nor the pseudo-terminal it
   made (``use_pty``), through which a Ctrl-C or a closed window might reach us. The service
   manager has one process for each who connects, and is to know which: there, no child is made.

So the helper has no terminal and no stderr: whatever it has to say goes through the socket. It
needs neither: with the socket's end its work ends.

-I and -S: neither the user's environment nor site-packages are looked at. -B: root must not leave
byte code in a user's directories. The package is found by this file's own place, and is searched
last.
"""

import os
import signal
import socket
import sys


def main() -> int:
    """Stages 1 to 4, then the conversation; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from sshunt.helper import starter
    from sshunt.helper.protocol import EXIT_NO_SOCKET
    from sshunt.helper.service import ACCEPTED_WORD

    accepted = sys.argv[1:] == [ACCEPTED_WORD]
    if not (starter.is_accepted(0) if accepted else starter.is_one_of_a_pair(0)):
        return EXIT_NO_SOCKET
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # stderr may be closed: nothing of ours may take its place, for it is replaced
        null = os.dup(null)
    client = socket.socket(fileno=os.dup(0))
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != client.fileno():
            _close(int(name))
    os.umask(0o077)
    user = starter.caller_of(client) if accepted else starter.user_of(client, os.environ)
    if user is None:
        return EXIT_NO_SOCKET
    by_first_process = accepted or os.getppid() == 1  # run0's, too
    elsewhere = by_first_process and starter.is_of_another_network(client)
    os.environ.clear()
    os.chdir("/")

    if not accepted:
        child = os.fork()
        if child:
            if by_first_process:
                starter.join(client, child)
            os._exit(0)
        os.setsid()

    from sshunt.helper.server import serve

    serve(client, user=user, elsewhere=elsewhere)
    return 0


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass  # the one that listdir itself had open


if __name__ == "__main__":
    sys.exit(main())
