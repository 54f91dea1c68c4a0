"""docs/protocol.md says what the code does: its tables, and its example byte for byte."""

import re
from pathlib import Path

import pytest

from sshunt.mux import datagram_frames, frames, hello, limits
from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.events import StreamRequested
from sshunt.mux.frames import Destination, FrameReader
from sshunt.mux.hello import AGENT, CLIENT, FEATURE_CREATE, FEATURE_DETACHED, make_hello
from sshunt.mux.payload import Payload
from sshunt.mux.session import Session
from sshunt.mux.streams import RECEIVER_TRANSITIONS, SENDER_TRANSITIONS
from tests.unit.mux.ends import join, text

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def table(header: str) -> list[list[str]]:
    """The cells of the first table whose header row begins with ``header``."""
    return tables(header)[0]


def tables(header: str) -> list[list[list[str]]]:
    found = []
    for block in re.split(r"\n\s*\n", DOCUMENT):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows and rows[0].startswith(header):
            found.append([[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]])
    return found


def constants(module: object, prefix: str) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.startswith(prefix)}


# --- tables ---------------------------------------------------------------------------------------


def test_every_frame_type_has_its_number_and_its_lengths() -> None:
    documented = {row[1]: int(row[0]) for row in table("| type | name |")}
    assert documented == {name: getattr(frames, name) for name in documented}
    for kind in set(range(256)) - set(documented.values()):
        check_length(kind, 8, False)
    for number, _, lengths, *_ in table("| type | name |"):
        shortest, *longest = (int(word) for word in lengths.split(" to "))
        for length in range(max(shortest - 1, 0), shortest + 1):
            check_length(int(number), length, length == shortest)
        for length in (longest or [shortest])[0], (longest or [shortest])[0] + 1:
            check_length(int(number), length, length == (longest or [shortest])[0])


def check_length(kind: int, length: int, allowed: bool) -> None:
    header = memoryview((kind << 24 | length).to_bytes(4, "big") + bytes(4))
    if allowed:
        FrameReader().feed(header)
    else:
        with pytest.raises(RemoteProtocolError):
            FrameReader().feed(header)


@pytest.mark.parametrize(
    ("header", "module", "prefix"),
    [
        ("| code | name | meaning |\n|---|---|---|\n| 1", frames, "RESET_"),
        ("| code | name | meaning |\n|---|---|---|\n| 0", frames, "GOODBYE_"),
        ("| code | name | meaning |\n|---|---|---|\n| 0", datagram_frames, "FLOW_"),
        ("| feature | name |", hello, "FEATURE_"),
    ],
)
def test_every_code_has_its_number(header: str, module: object, prefix: str) -> None:
    rows = [row for rows in tables(header.split("\n")[0]) for row in rows]
    documented = {row[1]: int(row[0]) for row in rows if row[1].startswith(prefix)}
    assert documented == constants(module, prefix)


def test_every_network_has_its_number() -> None:
    documented = {row[1]: int(row[0]) for row in table("| network | name |")}
    assert documented == {name: getattr(frames, name) for name in documented}


def test_every_kind_of_datagram_has_its_number() -> None:
    documented = {row[1]: int(row[0]) for row in table("| kind | name |")}
    assert documented == {name: getattr(datagram_frames, name) for name in documented}
    for kind in set(range(datagram_frames.NUMBERED)) - set(documented.values()):
        found = datagram_frames.decode_datagram_untrusted(bytes((kind,)) + b"whatever")
        assert found == datagram_frames.Datagram(kind)


def test_every_flag_has_its_number() -> None:
    documented = {row[1]: int(row[0]) for rows in tables("| flag | name |") for row in rows}
    ours = {name: getattr(datagram_frames, name) for name in ("ANY_PEER", "DONT_FRAGMENT")}
    asked = frames.encode_open(1, Destination(frames.TCP, "10.1.2.3", 80))
    assert documented == {"WANTS_OPENED": asked[9], **ours}


def test_every_status_of_hello_has_its_number() -> None:
    documented = {row[1]: int(row[0]) for row in table("| status | name |")}
    assert documented == {"ACCEPTED": hello.ACCEPTED, **constants(hello, "REFUSED_")}


def test_every_limit_is_documented_with_its_value() -> None:
    documented = {row[0].strip("`"): float(row[1]) for row in table("| limit | value |")}
    ours = {name: value for name, value in vars(limits).items() if name.isupper()}
    del ours["KIB"], ours["MIB"]
    assert documented == ours


def test_limits_that_the_text_names_are_those_of_the_table() -> None:
    for number in (
        limits.HELLO_SEARCH_BYTES,
        limits.HELLO_BODY_BYTES,
        limits.SENTENCE_BYTES,
        2 * limits.STREAM_GAP,
        limits.EARLY_PIECES,
        limits.EARLY_JOIN_BYTES,
        limits.ACK_EVERY_BYTES,
        limits.DATAGRAM_BYTES,
        limits.MAX_FLOWS,
    ):
        assert f" {number} " in DOCUMENT.partition("## 8. Limits")[0].replace("\n", " ")


@pytest.mark.parametrize(
    ("number", "expected"), [(0, SENDER_TRANSITIONS), (1, RECEIVER_TRANSITIONS)]
)
def test_the_state_tables_are_those_of_the_code(
    number: int, expected: dict[str, dict[str, str]]
) -> None:
    documented: dict[str, dict[str, str]] = {}
    for state, event, following in tables("| state | input |")[number]:
        documented.setdefault(state, {})[event] = following
    assert documented == expected


def test_the_layout_of_hello_adds_up() -> None:
    sizes = [int(row[0]) for row in table("| bytes | field | meaning |") if row[0].isdigit()]
    assert sum(sizes) == len(make_hello(CLIENT, bytes(32)).encode())
    magic = bytes.fromhex(table("| bytes | field | meaning |")[0][2].strip("`"))
    assert magic == hello.MAGIC


# --- the example ----------------------------------------------------------------------------------


def example() -> list[tuple[str, bytes]]:
    """(who writes, the bytes) of each write in the document's last code block."""
    block = re.findall(r"```\n(.*?)```", DOCUMENT, re.DOTALL)[-1]
    writes = []
    for paragraph in block.strip().split("\n\n"):
        who = paragraph.split()[0]
        lines = (line[8:] for line in paragraph.splitlines())
        found = (re.match(r"(?:[0-9A-F]{2}(?: {1,2}|$))+", line) for line in lines)
        writes.append((who, b"".join(bytes.fromhex(line[0]) for line in found if line)))
    return writes


def test_the_example_is_what_two_sessions_say_to_each_other() -> None:
    token = bytes(range(32))
    client, agent = Session(CLIENT), Session(AGENT)
    client.add_lane(1, 0.0)
    agent.add_lane(1, 10.0)

    stream = client.open(Destination(frames.TCP, "10.1.2.3", 80))
    client.write(stream, Payload(b"ping"), 0.0)
    client.finish(stream, 0.0)
    asked = join(client.transmit(1, 0.0))

    agent.receive(1, memoryview(asked), 10.0)
    (request, *rest) = agent.take_events()
    assert isinstance(request, StreamRequested)
    assert text(rest) == b"ping"
    agent.accept(request.stream)
    agent.write(request.stream, Payload(b"pong"), 10.0)
    agent.finish(request.stream, 10.0)
    answered = join(agent.transmit(1, 10.0 + 2**-11))

    client.receive(1, memoryview(answered), 0.0625)
    assert text(client.take_events()) == b"pong"
    acknowledged = join(client.transmit(1, 0.0625 + 2**-6))
    agent.receive(1, memoryview(acknowledged), 11.0)
    assert agent.transmit(1, 12.0) == []
    client.consumed(stream, len(b"pong"), 1.0)
    agent.consumed(request.stream, len(b"ping"), 12.0)
    assert (client.streams, agent.streams) == ({}, {})

    hellos = [
        make_hello(CLIENT, token, lane=1, features=FEATURE_CREATE, grace_s=300).encode(),
        make_hello(AGENT, token, lane=1, features=FEATURE_DETACHED, grace_s=300).encode(),
    ]
    assert example() == [
        ("client", hellos[0]),
        ("agent", hellos[1]),
        ("client", asked),
        ("agent", answered),
        ("client", acknowledged),
    ]
