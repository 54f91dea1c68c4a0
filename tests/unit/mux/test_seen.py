"""Which numbers were used: in any order, in bounded memory."""

import random

import pytest

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import STREAM_GAP
from sshunt.mux.seen import SeenStreams


@pytest.mark.parametrize("first", [1, 2])
def test_numbers_are_seen_once_they_were_added_in_whatever_order(first: int) -> None:
    seen = SeenStreams(first)
    numbers = [first + 2 * index for index in range(200)]
    random.Random(first).shuffle(numbers)
    for number in numbers:
        assert number not in seen
        seen.add(number)
        assert number in seen
    assert first + 400 not in seen


def test_a_number_too_far_from_the_others_is_an_error_of_the_peer() -> None:
    seen = SeenStreams(1)
    seen.add(1)
    with pytest.raises(RemoteProtocolError):
        seen.add(1 + 2 * (STREAM_GAP + 1))
    seen.add(1 + 2 * STREAM_GAP)
    assert 1 + 2 * STREAM_GAP in seen
