"""HELLO: its bytes, how it is found behind what a login shell prints, what is refused in it."""

import struct

import pytest

from sshunt.mux.errors import LocalProtocolError, RemoteProtocolError
from sshunt.mux.hello import (
    ACCEPTED,
    AGENT,
    CLIENT,
    FEATURE_CREATE,
    FEATURE_DETACHED,
    HEAD_BYTES,
    HOST_BYTES,
    MAGIC,
    REFUSED_SESSION_GONE,
    TOKEN_BYTES,
    VERSION_MAX,
    VERSION_MIN,
    Hello,
    HelloSearch,
    body_bytes_untrusted,
    common_version,
    decode_body_untrusted,
    make_hello,
)
from sshunt.mux.limits import (
    HELLO_BODY_BYTES,
    HELLO_SEARCH_BYTES,
    LEAST_WINDOW_BYTES,
    MAX_STREAMS,
    SENTENCE_BYTES,
)

TOKEN = bytes(range(TOKEN_BYTES))
HOST = bytes(range(HOST_BYTES))
HELLO = make_hello(CLIENT, TOKEN, lane=3, features=FEATURE_CREATE, grace_s=3600)


def body_of(hello: Hello) -> bytes:
    return hello.encode()[HEAD_BYTES:]


# --- one's own ------------------------------------------------------------------------------------


def test_a_hello_is_a_magic_a_length_and_its_fields_in_network_order() -> None:
    hello = Hello(AGENT, TOKEN, 0x0102, 3, 2, "no", 60, 16384, 100, 1, 4, HOST)
    fields = bytes((1, 4, AGENT, 2)) + struct.pack("!HHI", 0x0102, 2, 3)
    fields += TOKEN + struct.pack("!III", 16384, 100, 60)
    assert hello.encode() == MAGIC + struct.pack("!H", 56 + 2 + 8) + fields + b"no" + HOST


def test_a_hello_says_what_this_program_speaks_and_takes() -> None:
    assert (HELLO.version_min, HELLO.version_max) == (VERSION_MIN, VERSION_MAX)
    assert (HELLO.initial_window_bytes, HELLO.max_streams) == (LEAST_WINDOW_BYTES, MAX_STREAMS)
    assert (HELLO.status, HELLO.sentence, HELLO.host) == (ACCEPTED, "", b"")


@pytest.mark.parametrize("size", [0, TOKEN_BYTES - 1, TOKEN_BYTES + 1])
def test_a_token_of_another_length_is_never_sent(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        make_hello(CLIENT, bytes(size)).encode()


def test_a_sentence_is_cut_to_one_line_before_it_is_sent() -> None:
    hello = make_hello(AGENT, TOKEN, status=REFUSED_SESSION_GONE, sentence="x" * 1000, host=HOST)
    read = decode_body_untrusted(body_of(hello))
    assert (read.sentence, read.host) == ("x" * SENTENCE_BYTES, HOST)


# --- the peer's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hello",
    [
        HELLO,
        make_hello(AGENT, TOKEN, features=FEATURE_DETACHED, host=HOST),
        make_hello(AGENT, TOKEN, status=REFUSED_SESSION_GONE, sentence="it is gone"),
    ],
)
def test_a_hello_is_read_as_it_was_sent(hello: Hello) -> None:
    assert decode_body_untrusted(body_of(hello)) == hello


def test_what_a_later_version_adds_behind_the_host_is_skipped() -> None:
    hello = make_hello(AGENT, TOKEN, host=HOST)
    assert decode_body_untrusted(body_of(hello) + b"and more") == hello


def test_a_host_that_is_cut_short_is_none() -> None:
    hello = make_hello(AGENT, TOKEN, host=HOST)
    assert decode_body_untrusted(body_of(hello)[:-1]).host == b""


def test_a_sentence_is_made_printable_before_anybody_shows_it() -> None:
    hello = make_hello(AGENT, TOKEN, sentence="a\x1b[2Jb\nc")
    assert decode_body_untrusted(body_of(hello)).sentence == "a [2Jb c"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        body_of(HELLO)[:-1],
        body_of(HELLO) + bytes(HELLO_BODY_BYTES),
        body_of(HELLO._replace(role=3)),
        body_of(HELLO._replace(version_min=2, version_max=1)),
        body_of(HELLO)[:6] + struct.pack("!H", 1) + body_of(HELLO)[8:],
        body_of(HELLO)[:6]
        + struct.pack("!H", SENTENCE_BYTES + 1)
        + body_of(HELLO)[8:]
        + bytes(500),
    ],
    ids=["empty", "short", "long", "role", "versions", "sentence missing", "sentence too long"],
)
def test_a_body_that_no_version_can_mean_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_body_untrusted(body)


def test_the_head_says_how_long_the_body_is_within_a_limit() -> None:
    assert body_bytes_untrusted(HELLO.encode()[:HEAD_BYTES]) == len(body_of(HELLO))
    longest = MAGIC + struct.pack("!H", HELLO_BODY_BYTES)
    assert body_bytes_untrusted(longest) == HELLO_BODY_BYTES
    with pytest.raises(RemoteProtocolError):
        body_bytes_untrusted(MAGIC + struct.pack("!H", HELLO_BODY_BYTES + 1))


@pytest.mark.parametrize("head", [b"", MAGIC, b"x" * HEAD_BYTES, MAGIC + b"\0\1\0"])
def test_bytes_that_are_no_hello_head_are_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        body_bytes_untrusted(head)


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 3), (2, 5), 3),
        ((2, 5), (1, 3), 3),
        ((1, 1), (2, 3), None),
        ((2, 3), (1, 1), None),
    ],
)
def test_the_session_uses_the_highest_version_that_both_speak(
    ours: tuple[int, int], theirs: tuple[int, int], common: int | None
) -> None:
    one = HELLO._replace(version_min=ours[0], version_max=ours[1])
    other = HELLO._replace(version_min=theirs[0], version_max=theirs[1])
    assert common_version(one, other) == common


# --- behind a banner ------------------------------------------------------------------------------


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
