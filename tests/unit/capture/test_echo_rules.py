"""Rules for echo requests: who is logged, who is left alone. What they do: helper.test_echoes."""

from sshunt.capture.echo_rules import RATE, echo_chains

MARK = 0x04000000


def chains(
    families: list[int], forwarded: dict[int, str], alive: list[str] | None = None
) -> dict[str, list[str]]:
    """The rules by the chain that they are in."""
    lines = echo_chains(20064, MARK, families, forwarded, alive or [], ["\t\tours return"])
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("\tchain "):
            rules = found.setdefault(line.split()[1], [])
        elif line != "\t}":
            rules.append(line.strip())
    return found


def test_this_host_s_requests_are_logged_and_sent_to_loopback() -> None:
    found = chains([4, 6], {})
    assert found["echo_away4"] == [
        f"limit rate {RATE}/second burst {RATE} packets log group 20064",
        "notrack meta mark set meta mark | 0x04000000 ip daddr set 127.115.104.117",
    ]
    assert found["echo_away6"][1].endswith("ip6 daddr set ::1")
    assert "icmp type echo-request ip daddr @remote4 goto echo_away4" in found["echo_output"]
    assert (
        'iifname "lo" meta mark & 0x04000000 != 0 icmp type echo-request drop'
        in (found["echo_prerouting"])
    )


def test_what_is_ours_is_left_alone_before_anything_is_logged() -> None:
    rules = chains([4], {})["echo_output"]
    first = next(number for number, rule in enumerate(rules) if "goto" in rule)
    before = rules[:first]
    assert "ours return" in before
    assert "meta mark & 0x04000000 != 0 notrack return" in before
    assert "fib daddr type { local, broadcast, multicast, anycast } return" in before


def test_a_family_that_is_not_captured_has_no_rules() -> None:
    for family, other in ((4, "ip6"), (6, "ip ")):
        text = "\n".join(echo_chains(1, MARK, [family], {family: ""}, [], []))
        assert f"@remote{family}" in text
        assert f"@remote{10 - family}" not in text
        assert f"{other} daddr" not in text.replace("\t", "")


def test_what_is_forwarded_is_logged_from_the_links_that_are_served_and_dropped() -> None:
    found = chains([4, 6], {4: ' iifname { "docker0" }'})
    assert found["echo_gone"][1] == "drop"
    assert (
        'icmp type echo-request iifname { "docker0" } ip ttl > 1 ip daddr @remote4 goto echo_gone'
        in found["echo_prerouting"]
    )
    assert not any("remote6" in rule for rule in found["echo_prerouting"])
    assert "echo_gone" not in chains([4, 6], {})


def test_where_nobody_may_be_alive_nothing_is_captured() -> None:
    found = chains([4], {4: ""}, ["\t\talive return"])
    for name in ("echo_output", "echo_prerouting"):
        rules = found[name]
        assert rules.index("alive return") < next(
            number for number, rule in enumerate(rules) if "goto" in rule
        )
