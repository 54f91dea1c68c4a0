"""In which order the resolvers of this host are asked. Pure.

As the C library does: always from the first of resolv.conf on (with ``rotate`` from the next one
each time). The first often knows names that the others, say a public one, deny, so one lost
datagram or one slow answer must not put another in front of it.

Unlike the C library, which would wait for a dead one with each query, a resolver that left
SILENT_NAMES different names in a row without any answer is *behind*. One name is not enough: its
own servers may be the silent ones. What is behind is not forgotten: with every query it is asked
along with the one that now comes first, and with whatever it answers it is in its place again.
"""

from typing import Dict, List, Set, Tuple

from sshunt.relay.dns import Settings

#: Names in a row without an answer that put a resolver behind. With each of them a program has
#: waited for the C library's 5 s; more of them would make a network with one dead server unusable.
SILENT_NAMES = 3


class Order:
    """What is known of each resolver."""

    def __init__(self) -> None:
        self._silent: Dict[str, Set[bytes]] = {}  # names without an answer since the last one
        self._queries = 0

    def of(self, settings: Settings) -> Tuple[List[str], List[str]]:
        """Whom to ask one after the other, and whom to ask along with the first of them."""
        hosts = list(dict.fromkeys(settings.resolvers))
        if settings.rotate:
            first = self._queries % len(hosts)
            hosts = hosts[first:] + hosts[:first]
            self._queries += 1
        for host in set(self._silent) - set(hosts):
            del self._silent[host]  # this host does not ask it any more
        good = [host for host in hosts if not self.is_behind(host)]
        if not good:
            return hosts, []
        along = hosts[: hosts.index(good[0])]
        late = [host for host in hosts if host not in good and host not in along]
        return good + late, along

    def is_behind(self, host: str) -> bool:
        """True if it is not believed to live."""
        return len(self._silent.get(host, ())) >= SILENT_NAMES

    def note_answer(self, host: str) -> None:
        """It lives."""
        self._silent.pop(host, None)

    def note_silence(self, host: str, name: bytes) -> None:
        """It had time enough to answer."""
        names = self._silent.setdefault(host, set())
        if len(names) < SILENT_NAMES:
            names.add(name)
