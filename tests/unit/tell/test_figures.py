"""Figures as a person reads them."""

import pytest

from sshunt.tell.figures import bit_rate, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (59.96, "1 min"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86399.6, "1 d"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
        (86400 + 59, "1 d"),
    ],
)
def test_a_time_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (999_960_000, "1.0 GB"),
     (5e13, "50.0 TB")],
)  # fmt: skip
def test_an_amount_of_data_has_a_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text


def test_a_rate_has_a_unit_that_fits() -> None:
    assert [bit_rate(rate) for rate in (0, 1500, 2.5e6, 9.4e9)] == [
        "0 bit/s",
        "2 kbit/s",
        "2 Mbit/s",
        "9.4 Gbit/s",
    ]
