"""Any bytes give a HELLO, patience, or RemoteProtocolError; never anything else."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshunt.agent.attach import decode_lane_untrusted
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.hello import (
    AGENT,
    CLIENT,
    HEAD_BYTES,
    HOST_BYTES,
    MAGIC,
    TOKEN_BYTES,
    Hello,
    body_bytes_untrusted,
    common_version,
    decode_body_untrusted,
)
from sshunt.mux.limits import HELLO_BODY_BYTES, HELLO_SEARCH_BYTES, SENTENCE_BYTES
from sshunt.transport.hello_search import HelloSearch

pytestmark = pytest.mark.fuzz

unhurried = settings(deadline=None)  # other programs share this machine

BYTE = st.integers(0, 255)
WORD = st.integers(0, 2**32 - 1)

hellos = st.builds(
    Hello,
    role=st.sampled_from([CLIENT, AGENT]),
    token=st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES),
    lane=st.integers(0, 65535),
    features=WORD,
    status=BYTE,
    sentence=st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)),
    grace_s=WORD,
    initial_window_bytes=WORD,
    max_streams=WORD,
    version_min=st.integers(0, 100),
    version_max=st.integers(100, 255),
    host=st.sampled_from([b"", bytes(range(HOST_BYTES))]),
)

#: Bytes that look like the real thing, more often than chance would make them.
almost = st.builds(
    lambda hello, cut, junk: hello.encode()[:cut] + junk,
    hellos,
    st.integers(0, 600),
    st.binary(max_size=80),
)
anything = st.one_of(st.binary(max_size=200), almost, almost.map(lambda data: MAGIC + data))

#: A banner: what a shell may print, which never contains the magic's first byte as UTF-8 text.
banners = st.text(max_size=200).map(str.encode)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at the given places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


@unhurried
@given(hellos)
def test_a_hello_comes_out_as_it_went_in(hello: Hello) -> None:
    expected = hello._replace(sentence=hello.sentence[:SENTENCE_BYTES])
    assert HelloSearch().feed(hello.encode()) == expected
    assert decode_lane_untrusted(hello.encode()) == expected


@unhurried
@given(banners, hellos, st.binary(max_size=100), st.lists(st.integers(0, 2000), max_size=8))
def test_a_hello_is_found_behind_any_banner_however_the_bytes_are_cut(
    banner: bytes, hello: Hello, behind: bytes, cuts: list[int]
) -> None:
    search = HelloSearch()
    found = None
    rest = b""
    for piece in pieces(banner + hello.encode() + behind, cuts):
        if found is not None:
            rest += piece
            continue
        found = search.feed(piece)
        rest = search.rest
    assert found == hello._replace(sentence=hello.sentence[:SENTENCE_BYTES])
    assert search.noise == banner
    assert rest == behind


@unhurried
@given(st.lists(anything, max_size=5))
def test_any_bytes_are_a_hello_an_unfinished_one_or_an_error(chunks: list[bytes]) -> None:
    search = HelloSearch()
    try:
        for chunk in chunks:
            if search.feed(chunk) is not None:
                break
    except RemoteProtocolError:
        pass
    assert len(search.unmatched) <= sum(map(len, chunks))


@unhurried
@given(st.one_of(anything, st.binary(max_size=HELLO_BODY_BYTES + 10)))
def test_any_body_is_a_hello_or_an_error(body: bytes) -> None:
    try:
        hello = decode_body_untrusted(body)
    except RemoteProtocolError:
        return
    assert len(hello.token) == TOKEN_BYTES
    assert len(hello.sentence.encode()) <= 4 * SENTENCE_BYTES
    assert hello.sentence.isprintable()
    assert hello.version_min <= hello.version_max


@unhurried
@given(anything)
def test_any_attach_message_is_a_hello_an_unfinished_one_or_an_error(data: bytes) -> None:
    try:
        hello = decode_lane_untrusted(data)
    except RemoteProtocolError:
        return
    if hello is None:
        assert len(data) < HEAD_BYTES + HELLO_BODY_BYTES
        return
    assert len(data) == HEAD_BYTES + body_bytes_untrusted(data[:HEAD_BYTES])


@unhurried
@given(st.integers(500, 50_000))
def test_a_search_without_end_is_given_up_in_bounded_memory(chunk_bytes: int) -> None:
    search = HelloSearch()
    fed = 0
    try:
        while fed < 4 * HELLO_SEARCH_BYTES:
            search.feed(b"." * chunk_bytes)
            fed += chunk_bytes
    except RemoteProtocolError:
        assert len(search.unmatched) <= HELLO_SEARCH_BYTES
        return
    raise AssertionError("it went on for ever")


@unhurried
@given(hellos, hellos)
def test_the_common_version_is_one_that_both_speak(one: Hello, other: Hello) -> None:
    version = common_version(one, other)
    assert version is not None  # both speak 100
    for hello in (one, other):
        assert hello.version_min <= version <= hello.version_max
