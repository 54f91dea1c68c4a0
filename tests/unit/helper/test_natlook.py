"""DIOCNATLOOK's bytes, as FreeBSD's and macOS' headers lay them out."""

import socket
import struct

import pytest

from sshunt.helper.natlook import Layout

_PROGRAM, _LISTENER = ("192.0.2.7", 50_001), ("127.0.0.1", 12_300)


@pytest.mark.parametrize(
    ("layout", "request_"), [(Layout.FREEBSD, 0xC04C4417), (Layout.MACOS, 0xC0544417)]
)
def test_the_number_of_the_ioctl_is_the_one_that_is_known(layout: Layout, request_: int) -> None:
    assert layout.request == request_


def test_the_question_has_the_program_s_end_first_and_asks_with_pf_out() -> None:
    addresses = socket.inet_aton("192.0.2.7") + bytes(12) + socket.inet_aton("127.0.0.1")
    rest = bytes(12 + 32)
    freebsd = Layout.FREEBSD.question(6, _PROGRAM, _LISTENER)
    ports = struct.pack("!HH", 50_001, 12_300) + bytes(4)
    assert freebsd == addresses + rest + ports + bytes((2, 6, 0, 2))
    macos = Layout.MACOS.question(6, _PROGRAM, _LISTENER)
    ports = struct.pack("!HxxHxx", 50_001, 12_300) + bytes(8)
    assert macos == addresses + rest + ports + bytes((2, 6, 0, 2))


@pytest.mark.parametrize(("layout", "family"), [(Layout.FREEBSD, 28), (Layout.MACOS, 30)])
def test_each_system_has_its_own_number_for_ipv6(layout: Layout, family: int) -> None:
    question = layout.question(17, ("fd00::7", 50_001), ("::1", 12_300))
    assert question[-4:] == bytes((family, 17, 0, 2))
    assert question[:16] == socket.inet_pton(socket.AF_INET6, "fd00::7")


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("ends", [(_PROGRAM, _LISTENER), (("fd00::7", 1), ("::1", 2))])
def test_the_answer_is_in_the_second_pair(
    layout: Layout, ends: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    meant = {4: "10.0.0.9", 6: "fd00:9::9"}[6 if ":" in ends[0][0] else 4]
    written = bytearray(layout.question(6, *ends))
    # As the kernel does: what the listener's side is called from outside.
    packed = socket.inet_pton(socket.AF_INET6 if ":" in meant else socket.AF_INET, meant)
    written[48 : 48 + len(packed)] = packed
    ports_at = 64 + (6 if layout is Layout.FREEBSD else 12)
    written[ports_at : ports_at + 2] = struct.pack("!H", 443)
    assert layout.answer(bytes(written)) == (meant, 443)


def test_what_is_no_answer_is_refused() -> None:
    question = Layout.FREEBSD.question(6, _PROGRAM, _LISTENER)
    for data in (b"", question[:-1], question + b"\0"):
        with pytest.raises(ValueError, match="belong"):
            Layout.FREEBSD.answer(data)
    with pytest.raises(ValueError, match="of family 99"):
        Layout.FREEBSD.answer(question[:-4] + bytes((99, 6, 0, 2)))
    with pytest.raises(ValueError, match="two families"):
        Layout.MACOS.question(6, ("::1", 1), _LISTENER)
