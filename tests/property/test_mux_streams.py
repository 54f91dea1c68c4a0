"""Properties of a stream's two halves, each alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sshunt.mux.limits import EARLY_JOIN_BYTES
from sshunt.mux.payload import Payload
from sshunt.mux.streams import Sender
from tests.sim.oracle import CountedPayload, Ledger
from tests.unit.mux.ends import receiver_of

pytestmark = pytest.mark.fuzz

WINDOW_BYTES = 300


class DataInAnyOrder(RuleBasedStateMachine):
    """A receiver that gets arbitrary pieces of one content, in any order, over and over."""

    @initialize(content=st.binary(max_size=3 * WINDOW_BYTES))
    def begin(self, content: bytes) -> None:
        self.content = content
        self.receiver = receiver_of(WINDOW_BYTES)
        self.arrived: set[int] = set()
        self.handed_out = b""
        self.ended = False

    @property
    def limit(self) -> int:
        return min(self.receiver.window.limit, len(self.content))

    @precondition(lambda self: self.limit > 0)
    @rule(start=st.integers(0, 1000), size=st.integers(1, 120))
    def receive(self, start: int, size: int) -> None:
        start %= self.limit
        piece = self.content[start : min(start + size, self.limit)]
        self._give(start, piece)

    @precondition(lambda self: len(self.handed_out) < self.limit)
    @rule(size=st.integers(1, 60))
    def receive_what_is_missing(self, size: int) -> None:
        start = len(self.handed_out)
        self._give(start, self.content[start : min(start + size, self.limit)])

    def _give(self, start: int, piece: bytes) -> None:
        buffer = bytearray(piece)
        for payload in self.receiver.receive(start, Payload(memoryview(buffer))):
            self.handed_out += bytes(payload.view)
        buffer[:] = b"\xee" * len(buffer)
        self.arrived |= set(range(start, start + len(piece)))
        self._look_for_the_end()

    @rule()
    def grant_more(self) -> None:
        window = self.receiver.window
        window.limit = window.top = len(self.handed_out) + WINDOW_BYTES

    @precondition(lambda self: self.receiver.window.limit >= len(self.content))
    @rule()
    def finish(self) -> None:
        self.receiver.finish(len(self.content))
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        if self.receiver.take_fin():
            assert not self.ended
            self.ended = True
            assert self.handed_out == self.content

    @invariant()
    def what_is_handed_out_is_the_longest_prefix_that_has_arrived(self) -> None:
        length = 0
        while length in self.arrived:
            length += 1
        assert self.handed_out == self.content[:length]

    @invariant()
    def no_byte_is_kept_twice_and_none_beyond_the_window(self) -> None:
        early = {at for at in self.arrived if at >= len(self.handed_out)}
        assert self.receiver.early_bytes == len(early) <= WINDOW_BYTES

    @invariant()
    def the_end_is_known_when_it_is_known(self) -> None:
        known = self.receiver.final is not None
        assert self.ended == (known and self.handed_out == self.content)


class SendingHalf(RuleBasedStateMachine):
    """A sender whose frames are acknowledged or lost in any order."""

    @initialize(limit=st.integers(1, 200))
    def begin(self, limit: int) -> None:
        self.ledger = Ledger()
        self.sender = Sender(limit)
        self.limit = limit
        self.serial = 0
        self.written = b""
        self.acked: set[int] = set()
        self.under_way: list[tuple[int, Payload]] = []
        self.fin_wanted = self.fin_under_way = self.fin_acked = self.reset_done = False

    @precondition(lambda self: not self.fin_wanted and not self.reset_done)
    @rule(data=st.binary(min_size=1, max_size=80))
    def write(self, data: bytes) -> None:
        self.sender.write(CountedPayload(data, self.ledger))
        self.written += data

    @precondition(lambda self: not self.fin_wanted and not self.reset_done)
    @rule()
    def finish(self) -> None:
        self.sender.finish()
        self.fin_wanted = True

    @rule(more=st.integers(0, 100))
    def grant(self, more: int) -> None:
        self.limit += more
        self.serial += 1
        self.sender.grant(self.limit, self.serial)
        self.sender.grant(self.limit - 1, self.serial - 1)

    @rule(less=st.integers(0, 100))
    def call_back(self, less: int) -> None:
        self.serial += 1
        self.sender.grant(self.limit - less, self.serial)
        self.limit = self.sender.limit
        assert self.limit >= self.sender.next_offset

    @rule(size=st.integers(1, 60))
    def take(self, size: int) -> None:
        had_work = self.sender.has_work
        item = self.sender.take(size)
        assert had_work == (item is not None)
        if item is None:
            return
        offset, payload = item
        if payload is None:
            assert self.fin_wanted
            assert offset == len(self.written)
            assert not self.fin_under_way
            assert not self.fin_acked
            self.fin_under_way = True
            return
        end = offset + len(payload)
        assert 0 < len(payload) <= size
        assert end <= self.limit
        assert bytes(payload.view) == self.written[offset:end]
        taken = set(range(offset, end))
        assert not taken & self.acked, "sent again what was acknowledged"
        assert not taken & self._bytes_under_way(), "sent again what is under way"
        self.under_way.append((offset, payload))

    def _bytes_under_way(self) -> set[int]:
        return {at for start, p in self.under_way for at in range(start, start + len(p))}

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 1000))
    def acknowledge(self, index: int) -> None:
        offset, payload = self.under_way.pop(index % len(self.under_way))
        self.acked |= set(range(offset, offset + len(payload)))
        payload.release()

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 1000))
    def lose(self, index: int) -> None:
        self.sender.give_back(*self.under_way.pop(index % len(self.under_way)))

    @precondition(lambda self: self.fin_under_way)
    @rule(lost=st.booleans())
    def end_fin(self, lost: bool) -> None:
        self.fin_under_way, self.fin_acked = False, not lost
        if lost:
            self.sender.give_back_fin()

    @precondition(lambda self: not self.reset_done)
    @rule(really=st.integers(0, 9))
    def reset(self, really: int) -> None:
        if not really:
            self.sender.reset()
            self.reset_done = True

    @invariant()
    def it_has_work_exactly_when_something_may_leave(self) -> None:
        left = set(range(len(self.written))) - self.acked - self._bytes_under_way()
        fin_left = self.fin_wanted and not self.fin_under_way and not self.fin_acked
        may_leave = any(at < self.limit for at in left) or (not left and fin_left)
        assert self.sender.has_work == (may_leave and not self.reset_done)

    @invariant()
    def every_byte_is_held_until_it_is_acknowledged(self) -> None:
        unacknowledged = len(self.written) - len(self.acked)
        held = len(self._bytes_under_way()) if self.reset_done else unacknowledged
        assert self.ledger.live_bytes == held


for machine in (DataInAnyOrder, SendingHalf):
    machine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
test_data_in_any_order = DataInAnyOrder.TestCase
test_sending_half = SendingHalf.TestCase


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, EARLY_JOIN_BYTES), min_size=1, max_size=40), st.randoms())
def test_early_frames_of_any_size_come_out_whole(sizes: list[int], random: object) -> None:
    content = b"".join(bytes([index % 251]) * size for index, size in enumerate(sizes))
    receiver = receiver_of(1 + len(content))
    starts = [1 + sum(sizes[:index]) for index in range(len(sizes))]
    pieces = list(zip(starts, sizes, strict=True))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    for start, size in pieces:
        assert receiver.receive(start, Payload(content[start - 1 : start - 1 + size])) == []
    out = receiver.receive(0, Payload(b"!"))
    assert b"".join(bytes(payload.view) for payload in out) == b"!" + content
    assert len(out) <= 2 + 2 * len(content) // EARLY_JOIN_BYTES
