"""Who answers a query: the first of this host's resolvers that can, each with time enough.

    0 s           the first is asked, and with it those that are behind (order)
    5 s           nothing yet: the second as well; the others share what is left of DEADLINE_S
    any failure   the next at once (SERVFAIL, REFUSED, ICMP: port unreachable)
    any answer    it is the answer; the first's still counts while others are being asked
    DEADLINE_S    the first failure is the answer, or nothing is

The C library does the same, with two differences: it listens to one resolver at a time, so that an
answer which takes 6 s is lost to it; and it begins with a dead one each time. Where the one that
should be first is behind, another's answer that there is no such name waits for HOLD_S: the first
may be back, and know it. Nor does a failure wait longer for one that is behind.

resolv.conf's ``timeout`` is how long the first has before the second is asked, up to FIRST_S. One
time more than its ``attempts`` a question leaves by UDP (exchange), for the program's own second
attempt comes late.
"""

import asyncio
import errno
from typing import Awaitable, Callable, Dict, List, Optional, Set

from sshunt.direct.exchange import Exchange, Heard
from sshunt.direct.order import Order
from sshunt.relay import dns
from sshunt.relay.reactor import Reactor

#: What the C library of a program takes before it asks again, and gives up after twice that.
FIRST_S = 5.0
DEADLINE_S = 9.0

#: How long a denial waits for a resolver that is behind. A living one answers what it knows in a
#: few milliseconds; while it is dead, only names that don't exist take that long.
HOLD_S = 0.5

#: Exchanges of one resolver that are listened to although their queries have been answered.
MOST_LINGERING = 4

Ask = Callable[[Exchange], Awaitable[Heard]]


class Racing:
    """Runs races. Owns the exchanges of those that are over."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.order = Order()
        self._lingering: Dict[str, Set["asyncio.Future[Heard]"]] = {}

    async def ask(self, query: bytes, ask: Ask) -> Optional[Heard]:
        """The best answer that a resolver gives, None if none does."""
        return await _Race(self, query, ask).run()

    def linger(self, host: str, exchange: "asyncio.Future[Heard]") -> None:
        """Its answer comes too late for its query; that it comes shows that the host lives."""
        lingering = self._lingering.setdefault(host, set())
        if len(lingering) >= MOST_LINGERING:
            _drop(exchange)
            return
        lingering.add(exchange)

        def done(exchange: "asyncio.Future[Heard]") -> None:
            lingering.discard(exchange)
            if _was_heard(exchange):
                self.order.note_answer(host)
            if not lingering and self._lingering.get(host) is lingering:
                del self._lingering[host]

        exchange.add_done_callback(done)

    def close(self) -> None:
        """Listen to nobody any more."""
        for lingering in list(self._lingering.values()):
            for exchange in list(lingering):
                exchange.cancel()


class _Race:
    def __init__(self, racing: Racing, query: bytes, ask: Ask) -> None:
        self._racing = racing
        self._loop = racing.reactor.loop
        self._query = query
        self._ask = ask
        self._settings = dns.settings()
        self._turn, self._along = racing.order.of(self._settings)
        self._asked: Dict["asyncio.Future[Heard]", str] = {}
        self._latest = ""  # who had its turn last
        now = self._loop.time()
        self._deadline = now + DEADLINE_S
        self._next_at = now
        self._hold_until = now + HOLD_S
        self._denial: Optional[Heard] = None
        self._failure: Optional[Heard] = None

    async def run(self) -> Optional[Heard]:
        heard, over = None, False
        try:
            for host in self._along:
                self._begin(host)
            while heard is None and self._go_on():
                until = self._hold_until if self._denial else self._next_at
                waited_s = max(min(until, self._deadline) - self._loop.time(), 0)
                done, _ = await asyncio.wait(
                    self._asked, timeout=waited_s, return_when=asyncio.FIRST_COMPLETED
                )
                for exchange in done:
                    heard = heard or self._hear(exchange)
            heard = heard or self._denial or self._failure
            over = True
            return heard
        finally:
            self._end(heard, over)

    def _go_on(self) -> bool:
        """Ask the next if it is time; False if there is nothing to wait for."""
        now = self._loop.time()
        if self._denial is not None:
            return now < self._hold_until and any(host in self._along for host in self._under_way)
        while self._turn and (now >= self._next_at or self._latest not in self._under_way):
            self._note_silence(self._latest)
            is_first = not self._latest
            self._latest = self._turn.pop(0)
            self._next_at = now + self._patience_s(now, is_first)
            self._begin(self._latest)
            alone = len(self._asked) == 1 and self._racing.order.is_behind(self._latest)
            if self._failure is not None and alone:
                self._deadline = min(self._deadline, now + HOLD_S)
        if now >= self._deadline:
            self._note_silence(self._latest)
            return False
        return bool(self._asked)

    def _patience_s(self, now: float, is_first: bool) -> float:
        """How long ``_latest`` has until the next is asked."""
        left_s = self._deadline - now
        if not self._turn:
            return left_s
        timeout_s = min(self._settings.timeout_s, FIRST_S)
        return timeout_s if is_first else min(timeout_s, left_s / (len(self._turn) + 1))

    @property
    def _under_way(self) -> List[str]:
        return list(self._asked.values())

    def _begin(self, host: str) -> None:
        sends = self._settings.attempts + 1
        exchange = Exchange(self._racing.reactor, host, self._query, sends, self._deadline)
        self._asked[asyncio.ensure_future(self._ask(exchange), loop=self._loop)] = host

    def _hear(self, exchange: "asyncio.Future[Heard]") -> Optional[Heard]:
        """The answer, if this one is it."""
        host = self._asked.pop(exchange)
        try:
            heard = exchange.result()
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EMFILE):
                self._racing.order.note_silence(host, dns.name_asked(self._query))
            return None
        self._racing.order.note_answer(host)
        if dns.is_failure(heard.message):
            self._failure = self._first(self._failure, heard)
            return None
        awaited = any(other in self._along for other in self._under_way)
        if host not in self._along and awaited and dns.is_denial(heard.message):
            self._denial = self._first(self._denial, heard)
            return None
        return heard

    def _first(self, before: Optional[Heard], heard: Heard) -> Heard:
        """The one that was heard first; the other is closed."""
        if before is None:
            return heard
        heard.close()
        return before

    def _note_silence(self, host: str) -> None:
        if host in self._under_way:
            self._racing.order.note_silence(host, dns.name_asked(self._query))

    def _end(self, taken: Optional[Heard], over: bool) -> None:
        for heard in (self._denial, self._failure):
            if heard is not None and heard is not taken:
                heard.close()
        for exchange, host in self._asked.items():
            if over:
                self._racing.linger(host, exchange)
            else:
                _drop(exchange)


def _drop(exchange: "asyncio.Future[Heard]") -> None:
    exchange.cancel()
    exchange.add_done_callback(_was_heard)  # it may have been over before


def _was_heard(exchange: "asyncio.Future[Heard]") -> bool:
    """Close what came of it, if anything; False if nothing did."""
    if exchange.cancelled() or exchange.exception() is not None:
        return False
    exchange.result().close()
    return True
