"""Logins that ask nobody, not even those whom BatchMode does not reach.

BatchMode keeps ssh itself from asking. It does not keep an agent from asking for a confirmation
(``ssh-add -c``, 1Password, gpg-agent's pinentry), nor a security key from waiting for a touch, nor
a smart card. Nobody should be asked that in the middle of a download, by a login of which he knows
nothing; and who is away does not answer.

    the first login was quick   nobody was asked, and so nobody will be: log in the same way
    it took somebody's time     log in with what needs nobody: key files, Kerberos, host based
    there was none              the same: the user's own connection, through which the session goes,
                                may have taken somebody's time

Whether somebody was asked can't be seen (the agent's protocol does not tell), but a person takes
half a second at the very least, where a login takes some round trips. A login that was slow for
another reason, its server's say, costs nothing where the key lies in a file. With a key in an agent
the second login is refused then, and further lanes are channels over the first connection
(``remote.pool``): on a long fat path as fast, for it is the window that limits there; on a lossy
one not.

Open question: a touch or a click within half a second of the question passes for nobody. The second
login asks once more then; if it is not answered, it was the last (``remote.pool``).
"""

import os
from collections.abc import Mapping

#: Round trips that a login is allowed. From TCP's first to the agent's HELLO there are about 12
#: (measured at 80 ms); with fewer allowed, a person's time does not hide in those of a long path.
LOGIN_RTTS = 9

#: What else it may take: key exchange, the start of a shell and of Python.
LOGIN_S = 0.5

#: What the names of algorithms contain that need a security key.
_SECURITY_KEY = "sk-"


def took_a_person(login_s: float, rtt_s: float) -> bool:
    """True if a login of ``login_s``, on a path of ``rtt_s``, may have waited for somebody."""
    return login_s > LOGIN_S + LOGIN_RTTS * rtt_s


def options(configured: Mapping[str, str]) -> list[str]:
    """What keeps an ssh, configured as ``ssh -G`` says, from asking. Only what it names is
    overridden: what an older one does not know would be an error.
    """
    wanted = []
    if "identityagent" in configured:
        wanted.append("IdentityAgent=none")
    if "pkcs11provider" in configured:
        wanted.append("PKCS11Provider=none")
    # The second is the first's name since OpenSSH 8.5.
    for name in ("PubkeyAcceptedKeyTypes", "PubkeyAcceptedAlgorithms"):
        algorithms = configured.get(name.lower(), "").split(",")
        rest = [algorithm for algorithm in algorithms if _SECURITY_KEY not in algorithm]
        if rest != algorithms and rest:
            wanted.append(f"{name}={','.join(rest)}")
    return [word for option in wanted for word in ("-o", option)]


def environment() -> dict[str, str]:
    """Ours, without the way to an agent."""
    return {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
