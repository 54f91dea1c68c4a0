"""Whom this host's programs ask names, as root sees it. Linux.

Who may start the helper may answer what all of this host's programs ask of their resolvers; that is
what --dns is. Not what somebody asks of any other address: so the client's word for whom they ask
is not enough, and root reads for himself what the host's administrator has said:

    /etc/resolv.conf                     whom programs ask
    /run/systemd/resolve/resolv.conf     whom systemd-resolved asks, where they ask it

They are looked up from the root that we were started in, which stays open: later those folders are
out of our sight (privileges). Links are followed from there, too, those of folders among them: the
kernel would look for what they name in the root that we have then.
"""

import os
from ipaddress import ip_address

from sshunt.helper.protocol import KernelError, Refusal

_FILES = ("etc/resolv.conf", "run/systemd/resolve/resolv.conf")

#: The resolver that the C library asks if none is named (resolv.conf(5)).
_DEFAULT = "127.0.0.1"

_MOST_BYTES = 64 * 1024
_MOST_LINKS = 8


class HostResolvers:
    """Make it before mounts are separated."""

    def __init__(self, root: str = "/") -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def addresses(self) -> frozenset[str]:
        """All of them, without scopes."""
        lines = [line.split() for name in _FILES for line in self._lines(name)]
        words = [line[1] for line in lines if len(line) > 1 and line[0] == "nameserver"]
        return frozenset(filter(None, map(_address, words))) or frozenset([_DEFAULT])

    def asked_here(self, resolvers: tuple[str, ...], *, some: bool = False) -> tuple[str, ...]:
        """Those that this host's programs ask; raises KernelError if there should be ``some``.

        They may have changed since the client looked: then it is about to say so.
        """
        here = self.addresses()
        found = tuple(address for address in resolvers if address in here)
        if some and resolvers and not found:
            raise KernelError(Refusal.RESOLVER, f"this host does not ask {', '.join(resolvers)}")
        return found

    def _lines(self, path: str) -> list[str]:
        try:
            descriptor = os.open(self._target(path), os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._root)
        except OSError:
            return []
        try:
            return os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            return []  # a folder
        finally:
            os.close(descriptor)

    def _target(self, path: str) -> str:
        """Where the path leads, without links; "" if they don't end."""
        found: list[str] = []
        left = path.split("/")[::-1]
        links = 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del found[-1:]
                continue
            try:
                link = os.readlink("/".join([*found, part]), dir_fd=self._root)
            except OSError:
                found.append(part)  # it is none
                continue
            links += 1
            if links > _MOST_LINKS:
                return ""
            if link.startswith("/"):
                found.clear()
            left += link.split("/")[::-1]
        return "/".join(found)


def _address(word: str) -> str:
    try:
        return str(ip_address(word.partition("%")[0]))
    except ValueError:
        return ""
