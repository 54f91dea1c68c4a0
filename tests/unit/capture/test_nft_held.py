"""The chains that hold SYNs, for themselves; with all others they are in test_nft."""

from sshunt.capture.nft_held import Holding, held_chains, injected_chains, known_sets


def _regions(name: str, family: int, verdict: str) -> list[str]:
    return [f"\tchain {name} {{", f"\t\tregions {family} {verdict}", "\t}"]


_AUTO = Holding(20000, {4: 7, 6: 8}, knows=True)
_HONEST = Holding(20000, {4: 7}, knows=False)
_FAST = Holding(0, {4: 7}, knows=False)


def test_known_destinations_in_a_region_are_claimed_before_anything_is_logged() -> None:
    text = "\n".join(held_chains(_AUTO, [], [], _regions))
    assert 0 < text.index("@known4 goto claimed") < text.index("log group 20000")
    assert "regions 4 goto held4" in text
    assert [line.split()[1] for line in known_sets(_AUTO) if "set" in line] == ["known4", "known6"]


def test_with_honest_nobody_is_known() -> None:
    assert known_sets(_HONEST) == []
    assert not any("known" in line for line in held_chains(_HONEST, [], [], _regions))


def test_with_fast_all_is_claimed_and_nothing_logged() -> None:
    chains = held_chains(_FAST, [], [], _regions)
    assert not any("log" in line or "drop" in line for line in chains if "fin drop" not in line)
    assert "\t\tgoto claimed" in chains


def test_what_another_session_claims_is_never_held() -> None:
    for hook in ("hold_output", "hold_prerouting"):
        chains = held_chains(_HONEST, ["\t\tOWN"], ["\t\tFORWARDED"], _regions)
        chain = chains[chains.index(f"\tchain {hook} {{") :]
        lines = chain[: chain.index("\t}")]
        assert lines[-2] == "\t\tmeta mark & 0x08000000 != 0 return"


def test_forwarded_ones_are_held_only_where_some_are_captured() -> None:
    for prerouting in ([], ["\t\tmeta nfproto ipv4 goto hold4"]):
        chains = held_chains(_HONEST, [], prerouting, _regions)
        assert ("\tchain hold_prerouting {" in chains) == bool(prerouting)


def test_what_is_logged_is_marked_and_dropped_where_it_would_have_arrived() -> None:
    text = "\n".join(held_chains(_HONEST, [], ["\t\tFORWARDED"], _regions))
    assert "snaplen 256\n\t\tmeta mark set meta mark | 0x18000000\n" in text
    assert "snaplen 256\n\t\tdrop\n" in text
    for hook in ("output", "input"):
        assert f"hook {hook} priority 300" in text
    # Another session's are another listener's.
    ours = "meta mark & 0x10000000 != 0 ct status dnat meta nfproto ipv4 tcp dport 7 goto held"
    assert text.count(ours) == 2


def test_where_nothing_is_forwarded_nothing_is_dropped_that_comes_in() -> None:
    assert not any("hook input" in line for line in held_chains(_HONEST, [], [], _regions))


def test_a_forwarded_one_that_was_held_goes_to_the_listener_that_others_reach() -> None:
    chains, rule = injected_chains(_AUTO, {4: "dnat ip to 192.0.2.1:5"}, _regions)
    text = "\n".join(chains)
    assert rule.endswith("goto captured_held")
    assert "regions 4 dnat ip to 192.0.2.1:5" in text
    first, second = "fib saddr type != local goto capture4_far", "nfproto ipv4 goto capture4\n"
    assert 0 < text.index(first) < text.index(second)
    assert "capture6_far" not in text
