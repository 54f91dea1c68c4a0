"""Where the ssh program is, and what to say if it can't be started."""

import os
import shutil

from sshunt.errors import ExitCode, UserError

#: Where ssh is when PATH does not say (sudo's secure_path, cron, launchd).
_USUAL_PLACES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/local/bin", "/bin")


def find_program(program: str) -> str:
    """The path of an ssh program; raises UserError."""
    usual = os.pathsep.join(_USUAL_PLACES)
    found = shutil.which(program) or shutil.which(program, path=usual)
    if found is None:
        raise no_ssh(program, "there is no such program")
    return found


def no_ssh(program: str, reason: str) -> UserError:
    """The ssh program itself can't be started."""
    return UserError(
        f"{program} can't be started: {reason}",
        "install the OpenSSH client, or name the program with -e",
        ExitCode.CONNECT,
    )
