"""Whether files are root's alone: nobody else can change what is found below a path.

A file is as safe as everything on the way to it: whoever may write a folder can put another one in
its place. So each component from / on is looked at, and where one is a symbolic link, the way that
it points, too. An access control list that lets somebody write shows in the mode: its mask is what
is shown as the group's rights (acl(5)).

Not here: what is done about it (commands.sudoers).
"""

import os
import pwd
import stat
from collections.abc import Iterable, Iterator

#: The most links on the way to a file, as in the kernel (path_resolution(7)).
_MOST_LINKS = 40


def problems(paths: Iterable[str]) -> list[str]:
    """What is wrong with these, a sentence each, none twice; nothing: they are root's alone."""
    seen: set[str] = set()
    found: list[str] = []
    for path in paths:
        found.extend(_along(path, seen))
    return found


def below(folder: str, *, but: Iterable[str] = ()) -> Iterator[str]:
    """The folder and all that is in it, except what lies in folders of these names."""
    left_out = set(but)
    yield folder
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]
        yield from (os.path.join(where, name) for name in (*folders, *files))


def _along(path: str, seen: set[str]) -> Iterator[str]:
    """What is wrong with the components of an absolute path that have not been ``seen``."""
    waiting, done = _words(path), "/"
    links = 0
    yield from _alone("/", seen)
    while waiting:
        word = waiting.pop(0)
        if word == "..":
            done = os.path.dirname(done)
            continue
        place = os.path.join(done, word)
        yield from _alone(place, seen)
        try:
            target = os.readlink(place)
        except OSError:
            done = place  # no link, or one that is not there: that has been said
            continue
        links += 1
        if links > _MOST_LINKS:
            yield f"{path} leads in a circle"
            return
        waiting = _words(target) + waiting
        if target.startswith("/"):
            done = "/"


def _words(path: str) -> list[str]:
    return [word for word in path.split("/") if word not in ("", ".")]


def _alone(place: str, seen: set[str]) -> Iterator[str]:
    if place in seen:
        return
    seen.add(place)
    try:
        status = os.lstat(place)
    except OSError as error:
        yield f"{place}: {error.strerror}"
        return
    if status.st_uid != 0:
        yield f"{place} is {_name(status.st_uid)}'s, not root's"
    elif not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
        who = "everybody" if status.st_mode & 0o002 else "its group"
        yield f"{place} can be written by {who}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
