"""A payload is opaque: a length that can be cut, joined, kept and released."""

from sshunt.mux.payload import Payload


def test_cutting_splits_off_the_first_bytes_and_keeps_the_rest() -> None:
    payload = Payload(b"abcdef")
    head = payload.cut(2)
    assert (bytes(head.view), bytes(payload.view)) == (b"ab", b"cdef")
    assert (len(head), len(payload)) == (2, 4)


def test_cutting_more_than_there_is_takes_all() -> None:
    payload = Payload(b"abc")
    assert bytes(payload.cut(9).view) == b"abc"
    assert len(payload) == 0


def test_a_kept_payload_survives_the_buffer_that_it_came_in() -> None:
    buffer = bytearray(b"hello")
    kept, borrowed = Payload(memoryview(buffer)), Payload(memoryview(buffer))
    kept.keep()
    buffer[:] = b"XXXXX"
    assert bytes(kept.view) == b"hello"
    assert bytes(borrowed.view) == b"XXXXX"


def test_joining_takes_over_the_bytes_of_the_following_payload() -> None:
    first, following = Payload(b"one "), Payload(b"two")
    first.join(following)
    assert bytes(first.view) == b"one two"
    assert len(following) == 0


def test_a_released_payload_is_empty_and_holds_no_buffer() -> None:
    buffer = bytearray(b"hello")
    payload = Payload(memoryview(buffer))
    payload.release()
    assert len(payload) == 0
    buffer.append(0)  # raises BufferError while anybody still holds a view of it


def test_a_duplicate_is_released_on_its_own() -> None:
    payload = Payload(b"hello")
    duplicate = payload.duplicate()
    payload.release()
    assert bytes(duplicate.view) == b"hello"
