"""A far side whose first lane is a real agent's and whose others end at once, one way or another.

An sshd's ForceCommand: short_lived.py FOLDER. Each login leaves a file in FOLDER, whose file "what"
says how a lane is to end: "gone", "gone elsewhere", "goodbye", "garbage" or "nothing".
"""

import os
import sys
from pathlib import Path

from sshunt.agent.rendezvous import host_id
from sshunt.mux import frames
from sshunt.mux.hello import (
    AGENT,
    FEATURE_DETACHED,
    REFUSED_SESSION_GONE,
    make_hello,
)
from sshunt.transport.hello_search import HelloSearch


def main() -> None:
    folder = Path(sys.argv[1])
    first = not list(folder.glob("login-*"))
    (folder / f"login-{os.getpid()}").touch()
    if first:
        os.execv("/bin/sh", ["/bin/sh", "-c", os.environ["SSH_ORIGINAL_COMMAND"]])
    search = HelloSearch()
    theirs = None
    while theirs is None:
        data = os.read(0, 65536)
        if not data:
            return
        theirs = search.feed(data)
    what = (folder / "what").read_text()
    answer = make_hello(
        AGENT,
        theirs.token,
        lane=theirs.lane,
        features=FEATURE_DETACHED,
        grace_s=theirs.grace_s,
        status=REFUSED_SESSION_GONE if what.startswith("gone") else 0,
        host=b"another." if what == "gone elsewhere" else host_id(),
    )
    behind = {
        "goodbye": frames.encode_goodbye(frames.GOODBYE_INTERNAL, "no more"),
        "garbage": b"\xff" * 64,
    }
    os.write(1, answer.encode() + behind.get(what, b""))


main()
