"""One flow: what stands before its datagrams, and which copies are new."""

import pytest

from sshunt.mux import frames
from sshunt.mux.datagram_frames import (
    BATCH,
    OPENING,
    PLAIN,
    FlowTarget,
    decode_datagram_untrusted,
    encode_datagram_head,
    encode_flow_end,
    has_serial,
)
from sshunt.mux.flows import DatagramFlow, Waiting
from sshunt.mux.limits import ENTRY_BYTES, SERIALS

TARGET = FlowTarget(frames.UDP, "10.1.2.3", 5004)


def kind_of(flow: DatagramFlow, waiting: Waiting) -> int:
    return decode_datagram_untrusted(flow.encode_head(waiting)[8:] + waiting.data).kind


def test_the_opener_names_a_flow_until_the_other_side_knows_it() -> None:
    flow = DatagramFlow(1, TARGET, True, 0.0)
    assert kind_of(flow, Waiting(0.0, b"hi")) == OPENING
    assert kind_of(flow, Waiting(0.0, b"hihi", 2)) == OPENING
    flow.is_known = True
    assert kind_of(flow, Waiting(0.0, b"hi")) == PLAIN
    assert kind_of(flow, Waiting(0.0, b"hihi", 2)) == BATCH


def test_the_other_side_need_not_say_what_the_flow_is() -> None:
    assert kind_of(DatagramFlow(1, TARGET, False, 0.0), Waiting(0.0, b"hi")) == PLAIN


def test_errors_and_ends_leave_unnumbered() -> None:
    raw = encode_flow_end(1)
    assert DatagramFlow(1, TARGET, True, 0.0).encode_head(Waiting(0.0, b"", raw=raw)) == raw


def test_queued_datagrams_leave_in_order_and_are_counted() -> None:
    flow = DatagramFlow(1, TARGET, True, 0.0)
    for data in (b"a", b"bcd"):
        flow.add(Waiting(0.0, data))
    assert flow.queued_bytes == 4 + 2 * ENTRY_BYTES
    assert [flow.take(99).data, flow.take(99).data] == [b"a", b"bcd"]
    assert flow.queued_bytes == 0


@pytest.mark.parametrize(
    ("serials", "new"),
    [
        ([1, 2, 3], [True, True, True]),
        ([1, 1, 2, 1, 2], [True, False, True, False, False]),
        ([3, 1, 2, 2, 1, 3], [True, True, True, False, False, False]),
        ([0, 0], [True, False]),
        ([1, SERIALS, 1, 2], [True, True, False, True]),
        ([1, SERIALS + 1, 1, 2], [True, True, False, True]),
        ([5, 1000, 5, 1000, 999], [True, True, False, False, True]),
        ([2**32 - 1, 1], [True, False]),
    ],
)
def test_only_the_first_copy_of_a_recent_datagram_is_new(
    serials: list[int], new: list[bool]
) -> None:
    flow = DatagramFlow(1, TARGET, False, 0.0)
    assert [flow.is_new(serial) for serial in serials] == new


def test_a_batch_that_is_too_large_is_divided_between_datagrams() -> None:
    flow = DatagramFlow(1, TARGET, True, 0.0)
    flow.add(Waiting(1.0, b"aaabbbccd", 3))
    assert flow.take(7) == Waiting(1.0, b"aaabbb", 3)
    assert flow.queued_bytes == 3 + ENTRY_BYTES
    flow.add(Waiting(1.0, b"aaabb", 3))
    assert flow.take(7) == Waiting(1.0, b"ccd", 3)
    assert flow.take(1) == Waiting(1.0, b"aaa", 3)
    assert flow.take(1) == Waiting(1.0, b"bb", 3)
    flow.add(Waiting(1.0, b"large"))
    assert flow.take(1) == Waiting(1.0, b"large")
    assert flow.queued_bytes == 0


def test_what_may_be_sent_twice_has_a_serial_while_there_are_any() -> None:
    flow = DatagramFlow(1, TARGET, True, 0.0)
    flow.is_known = True
    word, told = Waiting(0.0, b"word"), Waiting(0.0, b"", raw=b"a whole frame")
    first, second = (flow.encode_head(word, numbered=True) for _ in range(2))
    assert [has_serial(head) for head in (first, second)] == [True, True]
    assert second == encode_datagram_head(1, 4, serial=2)
    assert flow.encode_head(told, numbered=True) == b"a whole frame"
    flow.next_serial = 1 << 32
    assert not has_serial(flow.encode_head(word, numbered=True))
    assert not has_serial(flow.encode_head(word))
