"""What the pacers measure, from the session to values, and nothing else on the way."""

import json
from typing import Any

import pytest

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import MAX_LANES
from sshunt.mux.path import CONTENDED, PROBING, STEADY
from sshunt.mux.payload import Payload
from sshunt.remote.statistics import (
    LaneStatistics,
    Statistics,
    parse_statistics_untrusted,
    statistics_untrusted,
)
from tests.unit.mux.ends import WEB, Ends

LANE: dict[str, Any] = {
    "phase": STEADY,
    "limit_bytes": 128 * 1024,
    "in_flight_bytes": 64 * 1024,
    "rate_bytes_s": 2_500_000,
    "rtt_s": 0.0523,
    "min_rtt_s": 0.05,
    "queue_s": 0.0021,
    "frame_bytes": 3750,
    "stalls": 0,
    "starting": 0,
}
SAID: dict[str, Any] = {
    "lanes": {"0": LANE},
    "control_frames": 1,
    "datagram_bytes": 2,
    "sparse_bytes": 3,
    "bulk_bytes": 4,
}


def with_lane(**changes: object) -> dict[str, Any]:
    return {**SAID, "lanes": {"0": {**LANE, **changes}}}


def busy_session() -> Ends:
    """A client with one lane that has measured, and with something in every queue."""
    ends = Ends(lanes=2)
    near, _ = ends.connect(bulky=True)
    ends.client.write(near, Payload(bytes(200_000)), ends.now)
    ends.transmit(ends.client)
    ends.now += 0.05
    ends.deliver(ends.agent)
    ends.transmit(ends.agent)
    ends.deliver(ends.client)
    ends.client.open(WEB)
    ends.datagram(ends.client, b"12345")
    return ends


def test_statistics_arrive_as_they_were_sent() -> None:
    ends = busy_session()
    said = ends.client.statistics(ends.now)
    heard = parse_statistics_untrusted(json.dumps(said).encode())
    assert heard == statistics_untrusted(said)
    assert list(heard.lanes) == [1, 2]
    assert (heard.control_frames, heard.datagram_bytes) == (1, 5)
    assert heard.bulk_bytes > 100_000
    assert heard.lanes[1].limit_bytes == ends.client.lanes[1].pacer.limit_bytes


def test_a_session_that_has_measured_nothing_has_statistics_too() -> None:
    ends = Ends(lanes=1)
    heard = parse_statistics_untrusted(json.dumps(ends.client.statistics(ends.now)).encode())
    lane = heard.lanes[1]
    assert (lane.phase, lane.rate_bytes_s, lane.rtt_s, lane.min_rtt_s) == (STEADY, 0, 0, 0)


def test_a_session_without_lanes_has_statistics_of_none() -> None:
    assert statistics_untrusted(Ends(lanes=0).client.statistics(0.0)).lanes == {}


def test_every_field_is_taken_as_it_was_said() -> None:
    assert statistics_untrusted(SAID) == Statistics(
        lanes={
            0: LaneStatistics(
                phase=STEADY,
                limit_bytes=128 * 1024,
                in_flight_bytes=64 * 1024,
                rate_bytes_s=2_500_000,
                rtt_s=0.0523,
                min_rtt_s=0.05,
                queue_s=0.0021,
                frame_bytes=3750,
                stalls=0,
                starting=0,
            )
        },
        control_frames=1,
        datagram_bytes=2,
        sparse_bytes=3,
        bulk_bytes=4,
    )


@pytest.mark.parametrize("phase", [STEADY, PROBING, CONTENDED])
def test_every_phase_of_the_path_is_understood(phase: str) -> None:
    assert statistics_untrusted(with_lane(phase=phase)).lanes[0].phase == phase


def test_fields_of_a_later_version_are_ignored() -> None:
    assert statistics_untrusted({**with_lane(mood="good"), "more": []}) == statistics_untrusted(
        SAID
    )


def test_more_lanes_than_anybody_opens_are_not_looked_at() -> None:
    many = {**SAID, "lanes": {str(number): LANE for number in range(10 * MAX_LANES)}}
    assert list(statistics_untrusted(many).lanes) == list(range(MAX_LANES))


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"lanes": []},
        {**SAID, "lanes": {"-1": LANE}},
        {**SAID, "lanes": {"": LANE}},
        {**SAID, "lanes": {"٣": LANE}},
        {**SAID, "lanes": {"0": []}},
        {**SAID, "bulk_bytes": "4"},
        {**SAID, "bulk_bytes": float("inf")},
        {name: value for name, value in SAID.items() if name != "sparse_bytes"},
        with_lane(phase="ASLEEP"),
        with_lane(phase=[STEADY]),
        with_lane(rtt_s=None),
        with_lane(rtt_s=True),
        with_lane(rtt_s=float("nan")),
        pytest.param(with_lane(limit_bytes=10**400), id="no float"),
    ],
)
def test_what_makes_no_sense_is_refused(found: object) -> None:
    with pytest.raises(RemoteProtocolError):
        statistics_untrusted(found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        pytest.param(b"9" * 5000, id="many digits"),
        pytest.param(b"[" * 60_000, id="deep lists"),
        pytest.param(b'{"a":' * 12_000, id="deep objects"),
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_statistics_untrusted(data)
