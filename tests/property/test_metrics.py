"""Any bytes give Statistics or RemoteProtocolError; never anything else, never more than a few."""

import json
import math
from dataclasses import astuple, fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sshunt.mux.errors import RemoteProtocolError
from sshunt.mux.limits import DATAGRAM_BYTES, MAX_LANES
from sshunt.mux.path import CONTENDED, PROBING, STEADY
from sshunt.remote.statistics import (
    LaneStatistics,
    Statistics,
    parse_statistics_untrusted,
    statistics_untrusted,
)
from sshunt.remote.telemetry import measured

pytestmark = pytest.mark.fuzz

unhurried = settings(deadline=None)  # other programs share this machine

numbers = st.one_of(
    st.integers(), st.floats(), st.integers(0, 5000).map(lambda power: 10**power), st.booleans()
)
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)

#: Almost right, more often than chance would make it.
any_number = st.one_of(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e9), values)
lane = st.fixed_dictionaries(
    {
        field.name: st.sampled_from([STEADY, PROBING, CONTENDED])
        if field.name == "phase"
        else st.floats(allow_nan=False, allow_infinity=False)
        for field in fields(LaneStatistics)
    }
)
almost = st.fixed_dictionaries(
    {
        "lanes": st.dictionaries(
            st.one_of(st.integers(0, 10**9).map(str), st.text(max_size=3)),
            st.one_of(lane, lane, lane, values),
            max_size=5,
        ),
        **{f.name: any_number for f in fields(Statistics) if f.name != "lanes"},
    }
)
right = st.fixed_dictionaries(
    {
        "lanes": st.dictionaries(st.integers(0, 10**5).map(str), lane, max_size=MAX_LANES),
        **{f.name: st.integers(0, 2**53) for f in fields(Statistics) if f.name != "lanes"},
    }
)


def check(statistics: Statistics) -> None:
    """Bounded, all of it finite numbers, and it can be shown."""
    assert len(statistics.lanes) <= MAX_LANES
    for number, lane in statistics.lanes.items():
        assert 0 <= number < 10**6
        assert all(math.isfinite(value) for value in astuple(lane)[1:])
    assert all(math.isfinite(value) for value in astuple(statistics)[1:])
    assert len(list(measured("gate", "down", statistics))) <= len(statistics.lanes)


@unhurried
@given(st.binary(max_size=DATAGRAM_BYTES))
@example(b"[" * DATAGRAM_BYTES)
@example(b'{"lanes":{},"control_frames":1' + b"0" * 400 + b"}")
def test_any_bytes_give_statistics_or_the_one_error(data: bytes) -> None:
    try:
        check(parse_statistics_untrusted(data))
    except RemoteProtocolError:
        pass


@unhurried
@given(st.one_of(values, almost))
def test_any_value_gives_statistics_or_the_one_error(value: object) -> None:
    try:
        check(statistics_untrusted(value))
    except RemoteProtocolError:
        pass


@unhurried
@given(right)
def test_statistics_survive_json(value: dict[str, Any]) -> None:
    heard = parse_statistics_untrusted(json.dumps(value).encode())
    assert heard == statistics_untrusted(value)
    check(heard)
    assert sorted(heard.lanes) == sorted(int(number) for number in value["lanes"])
