"""Each event is told in the words that people and their scripts know: tests/golden/sentences.txt.

A line of that file is a level and a sentence, in the order of EVENTS.
"""

import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import get_args

import pytest

from sshunt.model import Action, Route
from sshunt.tell import report, sentences
from sshunt.tell.report import FIRST_LOGIN, FURTHER_LOGIN, LATER_LOGIN, Event
from sshunt.tell.sentences import ALWAYS, DETAIL, FINE, RAW, route_text, sentence, targets_text

GOLDEN = Path(__file__).parents[2] / "golden" / "sentences.txt"

LEVELS = {RAW: "raw", ALWAYS: "always", DETAIL: "-v", FINE: "-vv"}

OFFICE = Route(ip_network("10.0.0.0/8"), Action.REMOTE)
WEB = Route(ip_network("192.0.2.0/24"), Action.REMOTE, 80, 80)
WEB6 = Route(ip_network("2001:db8::/32"), Action.REMOTE, 8000, 8999)
MANY = (OFFICE, WEB, WEB6, OFFICE, WEB, WEB6)

NOON = time.mktime((2024, 5, 1, 12, 0, 0, 0, 0, -1))

MEASURED = report.LaneMeasured(
    "gate", 1, "down", "PROBING", 12.5e6, 0.0423, 0.04, 0.0023, 65536, 131072, 2, 300, 7e6, 1e7, 2e7
)

EVENTS: list[Event] = [
    report.SessionNamed("0123abcd"),
    report.OwnAddressSkipped(Route(ip_network("192.0.2.1/32"), Action.REMOTE)),
    report.OwnAddressSkipped(WEB6),
    report.Ipv6Skipped(),
    report.UdpSkipped(),
    report.ByIptables(),
    report.MethodTried("nft", "libnftables is not installed"),
    report.Ipv6ResolversSkipped("can't listen on ::1 port 0: Cannot assign requested address"),
    report.HelperStarted(guarded=True),
    report.HelperStarted(guarded=False),
    report.HelperAsked("apply 3 routes, listeners 127.0.0.1 port 40000", 0.0123, ""),
    report.HelperAsked("retain 192.0.2.7", 0.0007, "not-retained"),
    report.RemoteConnected("gate", "gate", 0.0234, (OFFICE,), has_dns=False),
    report.RemoteConnected("gate [0123abcd]", "gate", 0.0, MANY, has_dns=True),
    report.StartStopped("SIGINT"),
    report.RemoteClosed("gate", "SIGTERM", 200.0, 12_300_000, 4_500),
    report.RemoteClosed("gate", "", 4.21, 0, 999),
    report.FarSideNotTold("gate", is_lost=True, grace_s=300),
    report.FarSideNotTold("gate", is_lost=False, grace_s=300),
    report.SshSaid("gate", FIRST_LOGIN, "Welcome to gate"),
    report.SshSaid("gate", LATER_LOGIN, "Welcome to gate"),
    report.SshSaid("gate", FURTHER_LOGIN, "Welcome to gate"),
    report.FarSideSilent("gate", FIRST_LOGIN, "logged in, and no word yet"),
    report.FarSideSilent("gate", LATER_LOGIN, "logged in, and no word yet"),
    report.FarSideSilent("gate", FURTHER_LOGIN, "logged in, and no word yet"),
    report.AgentStarted("gate", 42_000, ("-c", "aes128-gcm@openssh.com")),
    report.AgentStarted("gate", 42_000, ()),
    report.AgentNotDetached("gate"),
    report.RemoteChecked("gate", "the network changed"),
    report.RemoteLost("gate", NOON, "no answer for 4.2 s", 1, are_kept=True),
    report.RemoteLost("gate", NOON, "", 3, are_kept=True),
    report.RemoteLost("gate", NOON, "", 3, are_kept=False),
    report.RemoteLost("gate", NOON, "", 0, are_kept=True),
    report.RemoteReconnected("gate", 12.34, 0),
    report.RemoteReconnected("gate", 12.34, 1),
    report.RemoteReconnected("gate", 12.34, 2),
    report.SessionLost("gate", "its agent died", 1),
    report.SessionLost("gate", "the grace time of 300 s is over", 0),
    report.AnotherMachineAnswered("gate"),
    report.AttemptFailed("gate", 3, "no route to host"),
    report.PersonNeeded("gate", "gate refused the login", "log in once by hand"),
    report.KnownAddressTried("gate", "192.0.2.7"),
    report.LaneOpened("gate", 2),
    report.LaneClosed("gate", 2, "the far side closed it"),
    report.LaneFailed("gate", "no route to host"),
    report.EarlyLanesClosed("gate"),
    report.ChannelsChosen("gate"),
    report.LanesLimited("gate"),
    MEASURED,
    report.StatisticsRefused("gate", "statistics that are no JSON"),
    report.StreamOpened("gate", 7, "10.0.0.1", 443),
    report.StreamReset("gate", 7, "refused by the far host"),
    report.FrontPaused(
        "127.0.0.1 port 12300", "can't accept more connections: Too many open files"
    ),
    report.CallerRefused("no original destination: No such file or directory"),
    report.ArrivalChecked(4, "ARRIVED"),
    report.ArrivalNotRouted(6, "2001:db8::1"),
    report.CapturedLost((4,), ()),
    report.CapturedLost((4, 6), ("ip filter OUTPUT (output: drops)", "inet fw in")),
    report.ConnectedAtOnce(),
    report.ForwardedBarred(12300, ("inet fw in (input: drops by default)",)),
    report.RulesApplied(by_kernel=True),
    report.RulesApplied(by_kernel=False),
    report.TargetsBlocked(),
    report.TargetsStayBlocked(),
    report.OthersBlock(1),
    report.OthersBlock(2),
    report.PartLost("rules"),
    report.PartLost("guard"),
    report.PartLost("device"),
    report.RulesRefused("the address can't be kept"),
    report.ForwardedCaptured(4, ("eth0", "wlan0")),
    report.ForwardedCaptured(6, ()),
    report.ForwardedSkipped(4, "this host does not forward IPv4"),
    report.LinksMissing(("docker0", "virbr0")),
    report.UnseenWayFound("gate [0123abcd]", "gate", ("127.0.0.1", 2222)),
    report.SshPeerSeen("gate", "192.0.2.7"),
    report.AddressesRetained(("192.0.2.7", "192.0.2.8")),
    report.AddressesRetained(()),
    report.ResolversChanged(("192.0.2.53", "192.0.2.54")),
    report.ResolversChanged(()),
    report.ResolversSkipped(("fe80::1%eth0", "2001:db8::1", "2001:db8::2")),
    report.EchoesSkipped(),
    report.EchoesByPing(),
    report.EchoesNotPermitted(),
]

#: Facts that nobody reads of.
UNTOLD = {
    report.ShutdownStarted,
    report.LoginStarted,
    report.LoginEnded,
    report.FrontResumed,
    report.PeersBypassed,
}


def lines() -> Iterator[str]:
    for event in EVENTS:
        told = sentence(event)
        assert told is not None, event
        yield f"{LEVELS[told.level]:8}{told.text}\n"


def test_every_event_is_told_in_the_words_that_people_know() -> None:
    assert "".join(lines()) == GOLDEN.read_text()


def test_every_event_is_in_the_golden_file_or_known_to_be_untold() -> None:
    assert {type(event) for event in EVENTS} | UNTOLD == set(get_args(Event))
    assert {type(event) for event in EVENTS} & UNTOLD == set()


@pytest.mark.parametrize(
    "event",
    [
        report.ShutdownStarted(),
        report.LoginStarted("gate"),
        report.LoginEnded("gate"),
        report.FrontResumed("127.0.0.1 port 12300"),
        report.PeersBypassed("gate", (("192.0.2.7", 22),)),
    ],
)
def test_events_that_nobody_reads_have_no_sentence(event: Event) -> None:
    assert sentence(event) is None


def test_events_of_streams_are_shown_to_nobody_who_did_not_ask() -> None:
    told = [sentence(event) for event in EVENTS if type(event) in report.OF_STREAMS]
    assert [each.level for each in told if each is not None] == [DETAIL, DETAIL]


@pytest.mark.parametrize(
    ("route", "text"),
    [
        (OFFICE, "10.0.0.0/8"),
        (WEB, "192.0.2.0/24:80"),
        (WEB6, "[2001:db8::/32]:8000-8999"),
        (Route(ip_network("2001:db8::/32"), Action.REMOTE), "2001:db8::/32"),
    ],
)
def test_a_route_is_shown_as_it_can_be_typed(route: Route, text: str) -> None:
    assert route_text(route) == text


def test_four_routes_are_named_and_the_rest_are_counted() -> None:
    assert targets_text((OFFICE,) * 4, has_dns=False).count("10.0.0.0/8") == 4
    assert "more" not in targets_text((OFFICE,) * 4, has_dns=False)
    assert targets_text((OFFICE,) * 6, has_dns=True).endswith(" and 2 more, and DNS")


def test_without_uncovered_resolvers_there_is_nothing_to_say() -> None:
    assert sentences.uncovered(()) == ""
