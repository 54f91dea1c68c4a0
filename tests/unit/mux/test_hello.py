"""HELLO: its bytes, and what is refused in it."""

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
    body_bytes_untrusted,
    common_version,
    decode_body_untrusted,
    make_hello,
)
from sshunt.mux.limits import (
    HELLO_BODY_BYTES,
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
