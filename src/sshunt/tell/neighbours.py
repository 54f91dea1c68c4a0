"""Whom other sessions of this user are connected to, so that a new one does not get into their way.

Tunnels may lead through tunnels: where the routes of a session hold the server of one that begins
later, the later one's ssh is captured as any program is. The other way round it must not be. If the
later one's routes hold the earlier one's server (``0/0``), the earlier one's ssh would be captured
when it has to connect again; and where the later one leads through it, both would wait for each
other for ever.

So a session that begins asks those that are there whom they are connected to, and leaves that alone
as it does its own server. What it has left alone it tells those that begin after it, too. One that
is lost just then names nobody: the new one may be meant to be its way.

Not here: the conversation (control), other users' sessions, which are not ours to ask.
"""

import time

from sshunt.errors import UserError
from sshunt.model import Endpoint, check_endpoint
from sshunt.tell.control import MOST_ENDPOINTS, ask, sessions

#: The time that a session has to answer. They do at once, unless they are stopped (Ctrl-Z).
ANSWER_S = 0.5

#: The time for all of them: a start waits for it, and so does a stop meanwhile. Another user may
#: hold names that look like this user's sessions, and let callers wait.
ASKING_S = 2.0

#: Sessions that are asked, at most. Users have a few.
MOST_ASKED = 16


def ways_of_others() -> tuple[Endpoint, ...]:
    """Whom they are connected to. Waits ANSWER_S for each at most, ASKING_S for all."""
    found: dict[Endpoint, None] = {}
    deadline_s = time.monotonic() + ASKING_S
    for session in sessions()[:MOST_ASKED]:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        try:
            answer = ask(session, "about", deadline_s=min(ANSWER_S, left_s))
        except UserError:
            continue  # it begins or ends just now, is stopped, or is nobody of ours
        found.update(dict.fromkeys(ways_untrusted(answer.get("ways"))))
    return tuple(found)[:MOST_ENDPOINTS]


def ways_untrusted(said: object) -> list[Endpoint]:
    """What a session says of whom it is connected to, as far as that is endpoints."""
    found = []
    for each in said[:MOST_ENDPOINTS] if isinstance(said, list) else []:
        match each:
            case [str(address), int(port)] if not isinstance(port, bool):
                try:
                    check_endpoint((address, port))
                except ValueError:
                    continue
                found.append((address, port))
    return found
