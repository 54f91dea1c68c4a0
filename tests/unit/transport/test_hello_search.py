"""How a HELLO is found behind what a login shell prints."""

import pytest

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import CLIENT, FEATURE_CREATE, MAGIC, TOKEN_BYTES, make_hello
from sshunt.mux.limits import HELLO_SEARCH_BYTES
from sshunt.transport.hello_search import HelloSearch

HELLO = make_hello(CLIENT, bytes(TOKEN_BYTES), lane=3, features=FEATURE_CREATE, grace_s=3600)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_hello_is_found_behind_a_banner_and_gives_back_what_follows(size: int) -> None:
    wire = b"Last login: today\r\n" + HELLO.encode() + b"frames"
    search = HelloSearch()
    found = None
    for at in range(0, len(wire), size):
        found = search.feed(wire[at : at + size])
        if found is not None:
            rest = search.rest + wire[at + size :]
            break
    assert found == HELLO
    assert (search.noise, rest) == (b"Last login: today\r\n", b"frames")


def test_until_a_hello_is_found_what_was_read_can_be_shown() -> None:
    search = HelloSearch()
    assert search.feed(b"bash: python3: ") is None
    assert search.feed(b"command not found\n") is None
    assert search.unmatched == b"bash: python3: command not found\n"


def test_behind_the_longest_banner_there_may_be_a_hello_is_found() -> None:
    search = HelloSearch()
    assert search.feed(bytes(HELLO_SEARCH_BYTES)) is None
    assert search.feed(HELLO.encode()) == HELLO
    assert len(search.noise) == HELLO_SEARCH_BYTES


@pytest.mark.parametrize("tail", [bytes(len(MAGIC) + 1), b"\0" + HELLO.encode()])
def test_a_shell_that_prints_without_end_is_given_up(tail: bytes) -> None:
    search = HelloSearch()
    assert search.feed(b"." * HELLO_SEARCH_BYTES) is None
    with pytest.raises(RemoteProtocolError, match="no HELLO"):
        search.feed(tail)
    assert search.unmatched == b"." * HELLO_SEARCH_BYTES


def test_a_magic_with_an_impossible_length_behind_it_ends_the_search() -> None:
    with pytest.raises(RemoteProtocolError):
        HelloSearch().feed(MAGIC + b"\xff\xff")
